"""Blockwise matmul attention, forward and backward, against the reference backend."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from slm.architecture import query_blocks
from slm.architecture.shapes import ModelShape
from slm.model import attention_matmul
from slm.model.attention import attend
from slm.model.kv_cache import KeyValueCache
from slm.model.transformer import Transformer

pytestmark = pytest.mark.numeric

D_HEAD, N_HEADS, QUERIES = 8, 6, 17
DOCUMENTS = torch.tensor([[0] * 5 + [1] * 12, [0] * 16 + [1]])


@pytest.fixture(autouse=True)
def _short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Split 17 queries into 3 full blocks and a partial one; with MAX_BLOCKS=2 into 1 and a partial."""
    monkeypatch.setattr(query_blocks, "MIN_BLOCK_QUERIES", 5)


def random_inputs(groups: int, keys: int, dtype: torch.dtype) -> list[Tensor]:
    """Return q, k, v in the memory layout of the projections, and a gradient of the output."""
    generator = torch.manual_seed(0)
    sizes = [(QUERIES, N_HEADS), (keys, groups), (keys, groups), (QUERIES, N_HEADS)]
    return [
        torch.randn(2, time, heads, D_HEAD, generator=generator, dtype=torch.float64)
        .to(dtype)
        .transpose(1, 2)
        .requires_grad_()
        for time, heads in sizes
    ]


def output_and_gradients(
    tensors: list[Tensor], backend: str, documents: Tensor | None
) -> list[Tensor]:
    q, k, v, grad_output = tensors
    output = attend(q, k, v, backend, documents)
    return [output, *torch.autograd.grad(output, (q, k, v), grad_output.detach())]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("max_blocks", [2, 16])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("groups", [6, 3, 2, 1])
def test_equals_reference(
    groups: int,
    packed: bool,
    max_blocks: int,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(query_blocks, "MAX_BLOCKS", max_blocks)
    tensors, documents = random_inputs(groups, QUERIES, dtype), DOCUMENTS if packed else None
    # The same sums in a different order: they differ by a few units in the last place.
    rtol, atol = (1e-12, 1e-13) if dtype == torch.float64 else (1e-5, 2e-6)
    for actual, expected in zip(
        output_and_gradients(tensors, "matmul", documents),
        output_and_gradients(tensors, "reference", documents),
        strict=True,
    ):
        torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize("groups", [6, 2, 1])
def test_equals_reference_with_more_keys_than_queries(groups: int) -> None:
    tensors = random_inputs(groups, QUERIES + 9, torch.float64)
    for actual, expected in zip(
        output_and_gradients(tensors, "matmul", None),
        output_and_gradients(tensors, "reference", None),
        strict=True,
    ):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-13)
    q, k, v, _ = (x.detach() for x in tensors)
    torch.testing.assert_close(attend(q[:, :, -1:], k, v, "matmul"), attend(q, k, v)[:, :, -1:])


@pytest.mark.parametrize("packed", [False, True])
def test_bf16_error_is_the_rounding_of_scores(packed: bool) -> None:
    tensors, documents = random_inputs(2, QUERIES, torch.bfloat16), DOCUMENTS if packed else None
    exact = [x.detach().double().requires_grad_() for x in tensors]
    for actual, expected in zip(
        output_and_gradients(tensors, "matmul", documents),
        output_and_gradients(exact, "reference", documents),
        strict=True,
    ):
        assert actual.dtype == torch.bfloat16
        # Scores up to 4 have 8 significant bits, so weights have a relative error of up to 2^-7.
        # Weighted sums of unit normals then differ by a few times 2^-7, and most by much less.
        torch.testing.assert_close(actual.double(), expected, rtol=3e-2, atol=5e-2)
        error = (actual - expected).square().mean().sqrt()
        assert error < 8e-3 * expected.square().mean().sqrt()


def test_gradients_equal_finite_differences() -> None:
    q, k, v, _ = random_inputs(3, QUERIES, torch.float64)
    assert torch.autograd.gradcheck(lambda *x: attend(*x, "matmul"), (q, k, v), fast_mode=True)


def test_custom_op_passes_opcheck() -> None:
    q, k, v, _ = random_inputs(3, QUERIES, torch.float32)
    for save_weights in (False, True):
        torch.library.opcheck(
            attention_matmul._attend, (q.detach(), k.detach(), v.detach(), None, save_weights)
        )
    torch.library.opcheck(attention_matmul._attend, (q, k, v, DOCUMENTS, True))


def test_saves_weights_only_for_gradients() -> None:
    q, k, v, _ = random_inputs(3, QUERIES, torch.float32)
    assert attend(q.detach(), k.detach(), v.detach(), "matmul").grad_fn is None
    with torch.no_grad():
        assert attend(q, k, v, "matmul").grad_fn is None
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        attend(q, k, v, "matmul")
    # The lower triangle of 17 x 17, rounded up to blocks of 5 queries for 2 query heads per group.
    weights = [x.shape for x in saved if x.shape[-1] != D_HEAD]
    assert weights == [(6, 10, 5), (6, 10, 10), (6, 10, 15), (6, 4, 17)]


@pytest.mark.parametrize("n_kv_heads", [6, 2, 1])
def test_model_gradients_and_decoding_equal_sdpa(n_kv_heads: int) -> None:
    shape = ModelShape(2, 48, 6, n_kv_heads, 8, 100, 61, 20)
    torch.manual_seed(0)
    models = [Transformer(shape, attention=name) for name in ("sdpa", "matmul")]
    models[1].load_state_dict(models[0].state_dict())
    batch = torch.randint(61, (2, 20))
    gradients = []
    for model in models:
        model(batch, targets=batch.roll(-1)).objective.backward()
        gradients.append([p.grad for p in model.parameters()])
    for expected, actual in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    cache = KeyValueCache(shape)
    with torch.no_grad():
        parts = [models[1](part, cache=cache) for part in batch.split([11, 1, 8], dim=1)]
        torch.testing.assert_close(torch.cat(parts, dim=1), models[0](batch), rtol=1e-4, atol=1e-5)
