"""The transformer: against a numpy float64 implementation, its options and its invariances."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from itertools import pairwise
from typing import Any, get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats

from slm.architecture.shapes import ModelShape
from slm.config.schema import ParametrizationConfig, ParametrizationKind
from slm.errors import ConfigError
from slm.model.attention import attend
from slm.model.documents import document_ids
from slm.model.generate import generate
from slm.model.kv_cache import KeyValueCache
from slm.model.logical_names import to_logical
from slm.model.parametrization import Parametrization, initialize
from slm.model.transformer import Transformer

pytestmark = pytest.mark.numeric

SHAPE = ModelShape(3, 48, 6, 2, 8, 100, 61, 20)
Array = NDArray[np.float64]


def build_transformer(
    shape: ModelShape = SHAPE, kind: str = "mup", **settings: object
) -> Transformer:
    config = ParametrizationConfig(kind=kind, base_width=16, base_depth=2)  # type: ignore[arg-type]
    parametrization = Parametrization.of(config, shape)
    model = Transformer(
        shape,
        branch_multiplier=parametrization.branch_multiplier,
        logit_multiplier=parametrization.logit_multiplier,
        **settings,  # type: ignore[arg-type]
    )
    initialize(model, parametrization, seed=0)
    return model.eval()


def random_tokens(shape: ModelShape = SHAPE, batch: int = 2) -> torch.Tensor:
    return torch.randint(shape.vocab_size, (batch, shape.seq_len), generator=torch.manual_seed(1))


def independent_logits(model: Transformer, row: NDArray[np.int64]) -> Array:
    """Compute the logits of one sequence in numpy, with loops over heads and positions."""
    s = model.shape
    tensors = to_logical(dict(model.named_parameters()), s)
    w = {name: tensor.detach().double().numpy() for name, tensor in tensors.items()}

    def norm(x: Array, gain: Array) -> Array:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + model.norm_eps) * gain

    def rope(x: Array) -> Array:
        out, half = np.empty_like(x), s.d_head // 2
        for t, i in np.ndindex(len(x), half):
            angle = t * model.rope_theta ** (-2 * i / s.d_head)
            a, b = x[t, i], x[t, i + half]
            out[t, i] = a * math.cos(angle) - b * math.sin(angle)
            out[t, i + half] = a * math.sin(angle) + b * math.cos(angle)
        return out

    def attention(y: Array, p: dict[str, Array]) -> Array:
        heads = []
        for h in range(s.n_heads):
            g = h // (s.n_heads // s.n_kv_heads)
            q_rows, kv_rows = (slice(i * s.d_head, (i + 1) * s.d_head) for i in (h, g))
            q = y @ p["attention.query.weight"][q_rows].T
            k = y @ p["attention.key.weight"][kv_rows].T
            if s.qk_norm:
                q = norm(q, p["attention.query_norm.weight"])
                k = norm(k, p["attention.key_norm.weight"])
            q, k, v = rope(q), rope(k), y @ p["attention.value.weight"][kv_rows].T
            output = np.zeros_like(v)
            for t in range(len(y)):
                scores = np.exp(q[t] @ k[: t + 1].T / math.sqrt(s.d_head))
                output[t] = scores / scores.sum() @ v[: t + 1]
            heads.append(output)
        return np.concatenate(heads, axis=1) @ p["attention.output.weight"].T

    def mlp(y: Array, p: dict[str, Array]) -> Array:
        up = y @ p["mlp.up.weight"].T
        if s.mlp == "gelu":
            return up * stats.norm.cdf(up) @ p["mlp.down.weight"].T
        gate = y @ p["mlp.gate.weight"].T
        return (gate / (1 + np.exp(-gate)) * up) @ p["mlp.down.weight"].T

    x, m = w["embedding.weight"][row], model.branch_multiplier
    for layer in range(s.n_layers):
        p = {n.removeprefix(f"blocks.{layer}."): v for n, v in w.items() if f"blocks.{layer}." in n}
        for _ in range(s.layer_sharing):
            x = x + m * attention(norm(x, p["attention_norm.weight"]), p)
            x = x + m * mlp(norm(x, p["mlp_norm.weight"]), p)
    head = w.get("head.weight", w["embedding.weight"])
    return norm(x, w["norm.weight"]) @ head.T * model.logit_multiplier


@pytest.mark.parametrize(
    ("switch", "settings"),
    [
        ({"n_kv_heads": 6}, {}),  # multi-head
        ({"n_kv_heads": 3}, {}),
        ({"n_kv_heads": 1}, {}),  # multi-query
        ({"tied": False}, {}),
        ({"mlp": "gelu"}, {}),
        ({"qk_norm": True}, {}),
        ({"layer_sharing": 2}, {}),
        ({}, {"rope_theta": 100.0}),
        ({}, {"norm_eps": 0.1}),
        ({"mlp": "gelu", "qk_norm": True, "layer_sharing": 2, "tied": False}, {"norm_eps": 1e-3}),
    ],
    ids=str,
)
def test_equals_an_independent_implementation(
    switch: dict[str, Any], settings: dict[str, Any]
) -> None:
    shape = replace(SHAPE, **switch)
    model = build_transformer(shape, "completep", **settings)
    assert model.branch_multiplier != 1 and model.logit_multiplier != 1
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:  # an unused gain would not be noticed at its initial value 1
                parameter.add_(0.1 * torch.randn_like(parameter))
    batch = random_tokens(shape)
    with torch.no_grad():
        ours = model.double()(batch).numpy()
    for row, logits in zip(batch.numpy(), ours, strict=True):
        # Both sides use float64, except for the RoPE table: fp32, relative error 1e-7.
        np.testing.assert_allclose(logits, independent_logits(model, row), rtol=1e-5, atol=1e-6)


def test_shared_block_equals_copies_of_the_block() -> None:
    shared = build_transformer(replace(SHAPE, layer_sharing=2))
    unrolled = Transformer(
        replace(SHAPE, n_layers=6),
        branch_multiplier=shared.branch_multiplier,
        logit_multiplier=shared.logit_multiplier,
    )
    for index, block in enumerate(unrolled.blocks):
        block.load_state_dict(shared.blocks[index // 2].state_dict())
    unrolled.embedding.load_state_dict(shared.embedding.state_dict())
    unrolled.norm.load_state_dict(shared.norm.state_dict())
    with torch.no_grad():
        assert torch.equal(shared(random_tokens()), unrolled.eval()(random_tokens()))


def random_inputs(groups: int, queries: int = 17, keys: int = 17) -> list[torch.Tensor]:
    generator = torch.manual_seed(0)
    sizes = [(2, 6, queries, 8), (2, groups, keys, 8), (2, groups, keys, 8)]
    return [torch.randn(size, generator=generator) for size in sizes]


DOCUMENTS = torch.tensor([[0] * 5 + [1] * 12, [0] * 16 + [1]])


@pytest.mark.parametrize("groups", [6, 2, 1])
@pytest.mark.parametrize("queries", [17, 5, 1])
def test_attention_backends_agree(groups: int, queries: int) -> None:
    q, k, v = random_inputs(groups, queries)
    # The same sums in a different order: they differ by a few units in the last place of fp32.
    torch.testing.assert_close(
        attend(q, k, v, "sdpa"), attend(q, k, v, "reference"), rtol=1e-5, atol=1e-6
    )
    # Decoding computes the last queries of a full pass.
    whole = attend(torch.cat([q[:, :, :1].expand(-1, -1, 17 - queries, -1), q], 2), k, v)
    torch.testing.assert_close(attend(q, k, v), whole[:, :, -queries:], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", ["sdpa", "reference"])
def test_attention_stays_within_documents(backend: str) -> None:
    q, k, v = random_inputs(groups=2)
    packed = attend(q, k, v, backend, DOCUMENTS)
    for row, start, end in ((0, 0, 5), (0, 5, 17), (1, 0, 16), (1, 16, 17)):
        alone = [x[row : row + 1, :, start:end] for x in (q, k, v)]
        # Differs by rounding: softmax over fewer keys adds in a different order.
        torch.testing.assert_close(
            packed[row : row + 1, :, start:end], attend(*alone, backend), rtol=1e-5, atol=1e-6
        )


def test_packed_row_equals_its_separate_documents() -> None:
    model, row = build_transformer(), random_tokens(batch=1)
    row[0, [0, 7, 8]] = 60  # separators: three documents
    starts = (row[0] == 60).nonzero().flatten().tolist()
    with torch.no_grad():
        packed = model(row, document_ids(row, separator=60))
        for start, end in pairwise([*starts, row.shape[1]]):
            # A separate document starts at position 0. RoPE scores depend only on distances, up to
            # the rounding of cos and sin at other positions.
            alone = model(row[:, start:end])
            torch.testing.assert_close(packed[:, start:end], alone, rtol=1e-4, atol=1e-5)


def test_error_without_flash_attn_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    with pytest.raises(ConfigError, match=r"\[flash\]"):
        build_transformer(attention="flash")


@pytest.mark.parametrize("switch", [{}, {"n_kv_heads": 1}, {"layer_sharing": 2, "qk_norm": True}])
@pytest.mark.parametrize("chunks", [[20], [7, 13], [5, 1, 1, 6, 1, 1, 1, 1, 1, 1, 1]])
def test_decoding_with_a_cache_equals_the_full_pass(
    switch: dict[str, Any], chunks: list[int]
) -> None:
    model = build_transformer(replace(SHAPE, **switch))
    batch = random_tokens(model.shape)
    cache = KeyValueCache(model.shape)
    with torch.no_grad():
        whole = model(batch)
        parts = [model(part, cache=cache) for part in batch.split(chunks, dim=1)]
    assert cache.length == 20
    # Differs by rounding: matrices of other sizes add in a different order.
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-4, atol=1e-6)


def test_generation_is_greedy_or_sampled_and_bounded_by_seq_len() -> None:
    model, prompt = build_transformer(), random_tokens()[:, :4]
    greedy = generate(model, prompt, 10)
    with torch.no_grad():
        expected = prompt
        for _ in range(10):
            likeliest = model(expected)[:, -1].argmax(-1, keepdim=True)
            expected = torch.cat([expected, likeliest], dim=1)
    assert torch.equal(greedy, expected)
    draws = [generate(model, prompt, 10, temperature=1.0, seed=s) for s in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    with pytest.raises(ConfigError, match="seq_len=20"):
        generate(model, prompt, 17)
    assert generate(model.double(), prompt, 3).shape == (2, 7)


def test_cache_rejects_too_many_tokens_and_several_documents() -> None:
    model, batch = build_transformer(), random_tokens()
    cache = KeyValueCache(model.shape, capacity=40)
    with torch.no_grad(), pytest.raises(ValueError, match="seq_len=20"):
        model(batch, cache=cache)
        model(batch[:, :1], cache=cache)
    with torch.no_grad(), pytest.raises(ValueError, match="exceed the capacity of the cache, 3"):
        model(batch, cache=KeyValueCache(model.shape, capacity=3))
    with pytest.raises(ValueError, match="one document per row"):
        model(batch, document_ids(batch, 60), KeyValueCache(model.shape))


def test_logits_do_not_depend_on_future_tokens() -> None:
    model, batch = build_transformer(), random_tokens()
    changed = batch.clone()
    changed[:, 12] = (changed[:, 12] + 1) % SHAPE.vocab_size
    with torch.no_grad():
        before, after = model(batch), model(changed)
    assert torch.equal(before[:, :12], after[:, :12])
    assert not torch.allclose(before[:, 12:], after[:, 12:])


def test_rows_of_a_batch_are_independent() -> None:
    model, batch = build_transformer(), random_tokens(batch=3)
    with torch.no_grad():
        # Differs by rounding: another batch size may change the blocking of matrix products.
        torch.testing.assert_close(model(batch)[1:2], model(batch[1:2]), rtol=1e-5, atol=1e-6)


def test_tied_table_is_one_tensor() -> None:
    tied, untied = build_transformer(), build_transformer(replace(SHAPE, tied=False))
    assert tied.head.weight is tied.embedding.weight
    assert "head.weight" not in dict(tied.named_parameters())
    assert "head.weight" in dict(untied.named_parameters())


def test_initial_std_follows_the_parametrization_table() -> None:
    shape = ModelShape(8, 256, 8, 4, 32, 640, 1000, 8, tied=False)
    model = build_transformer(shape)  # base_width 16, so the width multiplier is 16
    expected = {
        "embedding.weight": 1 / math.sqrt(16),
        "head.weight": 1 / math.sqrt(16),
        "blocks.3.attention.query.weight": 1 / math.sqrt(256),
        "blocks.3.attention.output.weight": 1 / math.sqrt(256 * 16),
        "blocks.3.mlp.gate.weight": 1 / math.sqrt(256),
        "blocks.3.mlp.down.weight": 1 / math.sqrt(640 * 16),
    }
    parameters = to_logical(dict(model.named_parameters()), model.shape)
    for name, std in expected.items():
        # The standard error of the std of n >= 32,768 normals is at most 0.4%; 2% is five of them.
        assert parameters[name].std().item() == pytest.approx(std, rel=0.02)
    assert torch.equal(parameters["norm.weight"], torch.ones(256))


def test_parametrizations_agree_at_the_base_shape() -> None:
    shape = replace(SHAPE, d_model=16, n_heads=2, n_kv_heads=1)
    models = [
        build_transformer(replace(shape, n_layers=2), kind)
        for kind in get_args(ParametrizationKind)
    ]
    assert all(model.logit_multiplier == model.branch_multiplier == 1 for model in models)
    for tensors in zip(*(model.parameters() for model in models), strict=True):
        assert all(torch.equal(tensors[0], tensor) for tensor in tensors)


def test_initialisation_depends_only_on_the_seed() -> None:
    first = build_transformer()
    torch.randn(1000)
    assert all(
        torch.equal(a, b)
        for a, b in zip(first.parameters(), build_transformer().parameters(), strict=True)
    )


def test_dropout_applies_to_embedding_and_branches_in_training_only() -> None:
    shape = replace(SHAPE, vocab_size=5, d_model=240, n_heads=6, n_kv_heads=2, d_head=40)
    plain, model = build_transformer(shape), build_transformer(shape, dropout=0.25)
    batch = random_tokens(shape, batch=8)
    seen: dict[str, list[torch.Tensor]] = {
        "embedding": [],
        "residual": [],
        "attention": [],
        "mlp": [],
    }
    model.embedding.register_forward_hook(lambda *call: seen["embedding"].append(call[2]))
    model.blocks[0].attention.register_forward_hook(lambda *call: seen["attention"].append(call[2]))
    model.blocks[0].mlp_norm.register_forward_hook(
        lambda *call: seen["residual"].append(call[1][0])
    )
    model.blocks[0].mlp.register_forward_hook(lambda *call: seen["mlp"].append(call[2]))
    model.blocks[0].register_forward_hook(
        lambda *call: seen["residual"].extend([call[1][0], call[2]])
    )
    with torch.no_grad():
        assert torch.equal(model(batch), plain(batch))
        for tensors in seen.values():
            tensors.clear()
        model.train()(batch)
    between, start, end = seen["residual"]
    for before, after in (
        (seen["embedding"][0], start),
        (seen["attention"][0] * model.branch_multiplier, between - start),
        (seen["mlp"][0] * model.branch_multiplier, end - between),
    ):
        dropped = after == 0
        # 38,400 draws: the tolerance is five standard errors of 0.0022.
        assert dropped.float().mean().item() == pytest.approx(0.25, abs=0.011)
        expected = torch.where(dropped, 0, before / 0.75)
        torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_activation_checkpointing_changes_no_bit(dropout: float) -> None:
    gradients = []
    shape = replace(SHAPE, layer_sharing=2)
    for checkpointing in (False, True):
        model = build_transformer(
            shape, dropout=dropout, activation_checkpointing=checkpointing
        ).train()
        passes: list[int] = []
        model.blocks[1].mlp.register_forward_pre_hook(lambda *_, passes=passes: passes.append(1))
        torch.manual_seed(0)
        model(random_tokens(), targets=random_tokens().roll(-1)).objective.backward()
        gradients.append([p.grad for p in model.parameters()])
        assert len(passes) == (4 if checkpointing else 2)  # layer_sharing=2; each pass recomputed
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
