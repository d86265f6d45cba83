"""Attention in blocks of batched products, forward and backward, against its definition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from slm.architecture.shapes import ModelShape
from slm.model import attention_matmul
from slm.model.attention import attend
from slm.model.generate import KeyValueCache
from slm.model.transformer import Transformer

D_HEAD, N_HEADS, QUERIES = 8, 6, 17
DOCUMENTS = torch.tensor([[0] * 5 + [1] * 12, [0] * 16 + [1]])


@pytest.fixture(autouse=True)
def _short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """17 queries are three whole blocks and a rest, or two and a rest, by MAX_BLOCKS."""
    monkeypatch.setattr(attention_matmul, "MIN_BLOCK_QUERIES", 5)


def drawn(groups: int, keys: int, dtype: torch.dtype) -> list[Tensor]:
    """q, k, v in the memory order of projections, and a gradient for what is mixed."""
    generator = torch.manual_seed(0)
    sizes = [(QUERIES, N_HEADS), (keys, groups), (keys, groups), (QUERIES, N_HEADS)]
    return [
        torch.randn(2, time, heads, D_HEAD, generator=generator, dtype=torch.float64)
        .to(dtype)
        .transpose(1, 2)
        .requires_grad_()
        for time, heads in sizes
    ]


def mixed_and_gradients(
    tensors: list[Tensor], backend: str, documents: Tensor | None
) -> list[Tensor]:
    q, k, v, by_mixed = tensors
    mixed = attend(q, k, v, backend, documents)
    return [mixed, *torch.autograd.grad(mixed, (q, k, v), by_mixed.detach())]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("max_blocks", [2, 16])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("groups", [6, 3, 2, 1])
def test_it_equals_the_definition(
    groups: int,
    packed: bool,
    max_blocks: int,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention_matmul, "MAX_BLOCKS", max_blocks)
    tensors, documents = drawn(groups, QUERIES, dtype), DOCUMENTS if packed else None
    # Same sums in another order: a few units in the last place.
    rtol, atol = (1e-12, 1e-13) if dtype == torch.float64 else (1e-5, 2e-6)
    for own, exact in zip(
        mixed_and_gradients(tensors, "matmul", documents),
        mixed_and_gradients(tensors, "reference", documents),
        strict=True,
    ):
        torch.testing.assert_close(own, exact, rtol=rtol, atol=atol)


@pytest.mark.parametrize("groups", [6, 2, 1])
def test_more_keys_than_queries(groups: int) -> None:
    tensors = drawn(groups, QUERIES + 9, torch.float64)
    for own, exact in zip(
        mixed_and_gradients(tensors, "matmul", None),
        mixed_and_gradients(tensors, "reference", None),
        strict=True,
    ):
        torch.testing.assert_close(own, exact, rtol=1e-12, atol=1e-13)
    q, k, v, _ = (x.detach() for x in tensors)
    torch.testing.assert_close(attend(q[:, :, -1:], k, v, "matmul"), attend(q, k, v)[:, :, -1:])


@pytest.mark.parametrize("packed", [False, True])
def test_in_bf16_it_is_off_by_the_rounding_of_scores(packed: bool) -> None:
    tensors, documents = drawn(2, QUERIES, torch.bfloat16), DOCUMENTS if packed else None
    exact = [x.detach().double().requires_grad_() for x in tensors]
    for own, other in zip(
        mixed_and_gradients(tensors, "matmul", documents),
        mixed_and_gradients(exact, "reference", documents),
        strict=True,
    ):
        assert own.dtype == torch.bfloat16
        # Scores of up to 4 keep 8 bits, so weights are off by up to 2^-7 of themselves; sums of
        # unit normals under them are off by a few of that, most of them by far less.
        torch.testing.assert_close(own.double(), other, rtol=3e-2, atol=5e-2)
        assert (own - other).square().mean().sqrt() < 8e-3 * other.square().mean().sqrt()


def test_gradients_are_those_of_finite_differences() -> None:
    q, k, v, _ = drawn(3, QUERIES, torch.float64)
    assert torch.autograd.gradcheck(lambda *x: attend(*x, "matmul"), (q, k, v), fast_mode=True)


def test_it_keeps_torchs_rules_of_operators() -> None:
    q, k, v, _ = drawn(3, QUERIES, torch.float32)
    for keep in (False, True):
        torch.library.opcheck(
            attention_matmul._attend, (q.detach(), k.detach(), v.detach(), None, keep)
        )
    torch.library.opcheck(attention_matmul._attend, (q, k, v, DOCUMENTS, True))


def test_without_gradients_no_weights_are_kept() -> None:
    q, k, v, _ = drawn(3, QUERIES, torch.float32)
    assert attend(q.detach(), k.detach(), v.detach(), "matmul").grad_fn is None
    with torch.no_grad():
        assert attend(q, k, v, "matmul").grad_fn is None
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        attend(q, k, v, "matmul")
    squares = [x.shape for x in saved if x.shape[-1] != D_HEAD]
    assert squares == [
        (6, 10, 5),
        (6, 10, 10),
        (6, 10, 15),
        (6, 4, 17),
    ]  # half of 17 x 17, and blocks


@pytest.mark.parametrize("n_kv_heads", [6, 2, 1])
def test_a_model_decodes_and_learns_as_with_sdpa(n_kv_heads: int) -> None:
    shape = ModelShape(2, 48, 6, n_kv_heads, 8, 100, 61, 20)
    torch.manual_seed(0)
    models = [Transformer(shape, attention=name) for name in ("sdpa", "matmul")]
    models[1].load_state_dict(models[0].state_dict())
    batch = torch.randint(61, (2, 20))
    gradients = []
    for model in models:
        model(batch, targets=batch.roll(-1)).objective.backward()
        gradients.append([p.grad for p in model.parameters()])
    for own, other in zip(*gradients, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5)
    cache = KeyValueCache(shape)
    with torch.no_grad():
        parts = [models[1](part, cache=cache) for part in batch.split([11, 1, 8], dim=1)]
        torch.testing.assert_close(torch.cat(parts, dim=1), models[0](batch), rtol=1e-4, atol=1e-5)
