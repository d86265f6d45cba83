"""The transformer against its definition in float64 numpy, and its invariances."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from slm.architecture.shapes import ModelShape
from slm.model.attention import attend
from slm.model.loss import IGNORED, token_nats
from slm.model.parametrization import Parametrization, initialize
from slm.model.transformer import Transformer
from slm.schema import ParametrizationConfig

SHAPE = ModelShape(3, 48, 6, 2, 8, 100, 61, 20)
Array = NDArray[np.float64]


def build(shape: ModelShape = SHAPE, kind: str = "mup", **settings: object) -> Transformer:
    parametrization = Parametrization.of(ParametrizationConfig(kind=kind, base_width=16), shape)  # type: ignore[arg-type]
    model = Transformer(shape, logit_multiplier=parametrization.logit_multiplier, **settings)  # type: ignore[arg-type]
    initialize(model, parametrization, seed=0)
    return model.eval()


def tokens(shape: ModelShape = SHAPE, batch: int = 2) -> torch.Tensor:
    return torch.randint(shape.vocab_size, (batch, shape.seq_len), generator=torch.manual_seed(1))


def independent_logits(model: Transformer, row: NDArray[np.int64]) -> Array:
    """The forward pass of one sequence, written anew in numpy: loops over heads and positions."""
    s = model.shape
    w = {name: p.detach().double().numpy() for name, p in model.named_parameters()}

    def norm(x: Array, gain: Array) -> Array:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * gain

    def rope(x: Array) -> Array:
        out, half = np.empty_like(x), s.d_head // 2
        for t, i in np.ndindex(len(x), half):
            angle = t * 10_000.0 ** (-2 * i / s.d_head)
            a, b = x[t, i], x[t, i + half]
            out[t, i] = a * math.cos(angle) - b * math.sin(angle)
            out[t, i + half] = a * math.sin(angle) + b * math.cos(angle)
        return out

    x = w["embedding.weight"][row]
    for layer in range(s.n_layers):
        p = {n.removeprefix(f"blocks.{layer}."): v for n, v in w.items() if f"blocks.{layer}." in n}
        y = norm(x, p["attention_norm.weight"])
        heads = []
        for h in range(s.n_heads):
            g = h // (s.n_heads // s.n_kv_heads)
            own, shared = (slice(i * s.d_head, (i + 1) * s.d_head) for i in (h, g))
            q = rope(y @ p["attention.query.weight"][own].T)
            k = rope(y @ p["attention.key.weight"][shared].T)
            v = y @ p["attention.value.weight"][shared].T
            mixed = np.zeros_like(v)
            for t in range(len(y)):
                scores = np.exp(q[t] @ k[: t + 1].T / math.sqrt(s.d_head))
                mixed[t] = scores / scores.sum() @ v[: t + 1]
            heads.append(mixed)
        x = x + np.concatenate(heads, axis=1) @ p["attention.output.weight"].T
        y = norm(x, p["mlp_norm.weight"])
        gate = y @ p["mlp.gate.weight"].T
        x = x + (gate / (1 + np.exp(-gate)) * (y @ p["mlp.up.weight"].T)) @ p["mlp.down.weight"].T
    head = w.get("head.weight", w["embedding.weight"])
    return norm(x, w["norm.weight"]) @ head.T * model.logit_multiplier


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("n_kv_heads", [6, 3, 1])
def test_equals_an_independent_implementation(tied: bool, n_kv_heads: int) -> None:
    shape = replace(SHAPE, tied=tied, n_kv_heads=n_kv_heads)
    model = build(shape)
    batch = tokens(shape)
    with torch.no_grad():
        ours = model.double()(batch).numpy()
    for row, logits in zip(batch.numpy(), ours, strict=True):
        # float64 on both sides, but the rotary table is kept in fp32: 1e-7 relative.
        np.testing.assert_allclose(logits, independent_logits(model, row), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("groups", [6, 2, 1])
def test_attention_backends_agree(groups: int) -> None:
    generator = torch.manual_seed(0)
    q = torch.randn(2, 6, 17, 8, generator=generator)
    k, v = (torch.randn(2, groups, 17, 8, generator=generator) for _ in range(2))
    # Same sums in another order: a few units in the last place of fp32.
    torch.testing.assert_close(
        attend(q, k, v, "sdpa"), attend(q, k, v, "reference"), rtol=1e-5, atol=1e-6
    )


def test_the_future_does_not_reach_the_past() -> None:
    model, batch = build(), tokens()
    changed = batch.clone()
    changed[:, 12] = (changed[:, 12] + 1) % SHAPE.vocab_size
    with torch.no_grad():
        before, after = model(batch), model(changed)
    assert torch.equal(before[:, :12], after[:, :12])
    assert not torch.allclose(before[:, 12:], after[:, 12:])


def test_rows_of_a_batch_do_not_meet() -> None:
    model, batch = build(), tokens(batch=3)
    with torch.no_grad():
        # Another batch size may pick another blocking of the matrix product: rounding only.
        torch.testing.assert_close(model(batch)[1:2], model(batch[1:2]), rtol=1e-5, atol=1e-6)


def test_a_tied_table_is_one_tensor() -> None:
    tied, untied = build(), build(replace(SHAPE, tied=False))
    assert tied.head.weight is tied.embedding.weight
    assert "head.weight" not in dict(tied.named_parameters())
    assert "head.weight" in dict(untied.named_parameters())


def test_initial_spread_follows_the_table() -> None:
    shape = ModelShape(8, 256, 8, 4, 32, 640, 1000, 8, tied=False)
    model = build(shape)  # base_width 16, so the width multiplier is 16
    expected = {
        "embedding.weight": 1 / math.sqrt(16),
        "head.weight": 1 / math.sqrt(16),
        "blocks.3.attention.query.weight": 1 / math.sqrt(256),
        "blocks.3.attention.output.weight": 1 / math.sqrt(256 * 16),
        "blocks.3.mlp.gate.weight": 1 / math.sqrt(256),
        "blocks.3.mlp.down.weight": 1 / math.sqrt(640 * 16),
    }
    parameters = dict(model.named_parameters())
    for name, std in expected.items():
        # The sd of a sample of n >= 32768 normals is within 2% of its law by five standard errors.
        assert parameters[name].std().item() == pytest.approx(std, rel=0.02)
    assert torch.equal(parameters["norm.weight"], torch.ones(256))


def test_parametrizations_agree_at_the_base_width() -> None:
    shape = replace(SHAPE, d_model=16, n_heads=2, n_kv_heads=1)
    standard, mup = build(shape, "standard"), build(shape, "mup")
    assert standard.logit_multiplier == mup.logit_multiplier == 1
    for a, b in zip(standard.parameters(), mup.parameters(), strict=True):
        assert torch.equal(a, b)


def test_initialisation_depends_on_the_seed_alone() -> None:
    first = build()
    torch.randn(1000)
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), build().parameters(), strict=True)
    )


def test_nats_are_those_of_the_distribution_and_ignored_targets_cost_nothing() -> None:
    logits, targets = torch.randn(2, 5, 7), torch.randint(7, (2, 5))
    targets[1, 3:] = IGNORED
    nats = token_nats(logits, targets).reshape(2, 5)
    p = logits.double().softmax(-1)
    for b, t in np.ndindex(2, 5):
        wanted = 0.0 if targets[b, t] == IGNORED else -math.log(p[b, t, targets[b, t]])
        assert nats[b, t].item() == pytest.approx(wanted, abs=1e-5)
