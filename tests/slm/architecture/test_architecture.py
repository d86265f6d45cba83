"""Parameter and FLOP counts against the module and torch's FLOP counter; shapes against their rungs."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from slm.architecture.describe import describe
from slm.architecture.flops import forward_flops_per_token, training_flops_per_token
from slm.architecture.ladder import Rung, ideal_measures, solve_rung
from slm.architecture.shape_solver import (
    MEASURES,
    ShapeFrame,
    is_within_aspect_tolerance,
    solve_shape,
)
from slm.architecture.shapes import ModelShape, count_parameters
from slm.errors import ConfigError
from slm.model.transformer import Transformer
from tests.in_process import run_here

pytestmark = pytest.mark.numeric

MICRO = ShapeFrame(99, 64, True, d_head=8, gqa_ratio=1, ff_ratio=8 / 3, d_ff_multiple=2)
SUB1B = ShapeFrame(8192, 2048, True, d_head=32, gqa_ratio=2, ff_ratio=8 / 3, d_ff_multiple=32)
MICRO_ASPECTS, SUB1B_ASPECTS = (4.0, 11.0, 32.0), (24.0, 64.0, 192.0)
PLAIN = [
    ModelShape(layers, 8 * heads, heads, kv, 8, d_ff, 97, 16, tied)
    for layers, (heads, kv), d_ff, tied in itertools.product(
        (1, 3), ((4, 4), (4, 2), (6, 1)), (24, 50), (True, False)
    )
]
GRID = [
    *PLAIN,
    replace(PLAIN[-1], mlp="gelu"),
    replace(PLAIN[-2], qk_norm=True),
    replace(PLAIN[-2], layer_sharing=2),
    replace(PLAIN[-1], mlp="gelu", qk_norm=True, layer_sharing=3),
]
PUBLISHED = {  # 2402.14905; the last two run each block twice and so have no extra parameters
    "mobilellm_125m": 124_635_456,
    "mobilellm_350m": 345_355_200,
    "mobilellm_600m": 603_188_352,
    "mobilellm_1b": 1_005_461_760,
    "mobilellm_1_5b": 1_511_188_800,
    "mobilellm_ls_125m": 124_635_456,
    "mobilellm_ls_350m": 345_355_200,
}


def assert_counts_equal_module(shape: ModelShape) -> None:
    with torch.device("meta"):
        model = Transformer(shape)
    counts = count_parameters(shape)
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    groups = {
        "embedding": ("embedding.",),
        "head": ("head.",),
        "attention": ("qkv.", "output."),
        "mlp": ("mlp.",),
        "norm": ("norm.",),
    }
    for group, parts in groups.items():
        expected = sum(size for name, size in sizes.items() if any(part in name for part in parts))
        assert getattr(counts, group) == expected, group
    assert counts.params_total == sum(sizes.values())
    blocks = [*model.blocks.parameters(), *model.norm.parameters()]
    assert counts.params_non_embedding == sum(p.numel() for p in blocks)


@pytest.mark.parametrize("shape", GRID, ids=str)
def test_parameter_counts_equal_the_module(shape: ModelShape) -> None:
    assert_counts_equal_module(shape)


@pytest.mark.parametrize("shape", GRID, ids=str)
def test_flops_equal_torch_flop_counter(shape: ModelShape) -> None:
    model = Transformer(shape, attention="reference")
    tokens = torch.zeros(2, shape.seq_len, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(tokens)
    full = forward_flops_per_token(shape, causal=False)
    assert counter.get_total_flops() == full.total * tokens.numel()
    assert full.total - full.without_head == 2 * shape.d_model * shape.vocab_size
    causal = forward_flops_per_token(shape)
    assert 2 * causal.attention_scores == full.attention_scores
    assert training_flops_per_token(shape) == 3 * causal.total


@pytest.mark.parametrize(("preset", "total"), PUBLISHED.items())
def test_presets_have_published_counts_and_matching_family_shapes(preset: str, total: int) -> None:
    """Check the output of `describe`: published total, module counts, shapes of other families."""
    described = run_describe(f"model={preset}")
    shape = ModelShape(**described["shape"])
    assert described["params_total"] == total
    assert_counts_equal_module(shape)
    untied = replace(shape, tied=False)
    assert_counts_equal_module(untied)
    assert count_parameters(untied).params_total - total == 32_000 * shape.d_model
    frame = ShapeFrame.of(shape, 32)
    # Depth of the LS variants changes in steps of two blocks: too coarse for a wide shape that matches.
    for aspect_ratio in SUB1B_ASPECTS[1:] if shape.layer_sharing == 1 else ():
        partner = solve_shape(frame, aspect_ratio, training_flops_per_token(shape))
        assert training_flops_per_token(partner) == pytest.approx(
            described["flops_per_token"], rel=0.01
        )
        assert_within_frame(partner, frame, aspect_ratio)


def run_describe(*arguments: str) -> dict:  # type: ignore[type-arg]
    done = run_here(["python", "-m", "slm", "describe", *arguments, "--json"])
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def assert_within_frame(shape: ModelShape, frame: ShapeFrame, aspect_ratio: float) -> None:
    assert is_within_aspect_tolerance(shape, aspect_ratio)
    assert shape.n_heads * shape.d_head == shape.d_model
    assert shape.n_heads == frame.gqa_ratio * shape.n_kv_heads
    assert shape.d_ff % frame.d_ff_multiple == 0
    assert shape.ff_ratio == pytest.approx(frame.ff_ratio, rel=0.1001)


@pytest.mark.parametrize(
    ("frame", "reference", "aspects", "sizes"),
    [
        (MICRO, 11.0, MICRO_ASPECTS, (20e3, 25e3, 50e3, 80e3, 128e3, 200e3, 320e3, 800e3, 2e6)),
        (SUB1B, 64.0, SUB1B_ASPECTS, (4e6, 8e6, 16e6, 32e6, 64e6, 125e6, 350e6, 1e9, 1.5e9)),
        (replace(SUB1B, d_head=64, d_ff_multiple=64), 64.0, SUB1B_ASPECTS, (8e6, 32e6, 125e6, 1e9)),
        (replace(MICRO, layer_sharing=2), 11.0, MICRO_ASPECTS[:2], (128e3, 512e3)),
        (replace(MICRO, mlp="gelu", tied=False), 11.0, MICRO_ASPECTS, (128e3, 512e3)),
    ],
)
def test_families_match_on_every_rung(
    frame: ShapeFrame, reference: float, aspects: tuple[float, ...], sizes: tuple[float, ...]
) -> None:
    for size in map(int, sizes):
        rung = solve_rung(frame, reference, aspects, size)
        requested = ideal_measures(frame, reference, size)["flops_per_token"]
        assert rung.target / requested - 1 == pytest.approx(rung.shift, abs=1e-9)
        assert abs(rung.shift) <= 0.25 + 1e-3
        shapes = [solve_shape(frame, aspect, rung.target) for aspect in aspects]
        measured = [training_flops_per_token(shape) for shape in shapes]
        assert max(measured) / min(measured) - 1 <= 0.03
        for shape, aspect in zip(shapes, aspects, strict=True):
            assert_within_frame(shape, frame, aspect)


@pytest.mark.parametrize(
    ("frame", "aspects", "smallest", "largest", "closest"),
    [
        (MICRO, MICRO_ASPECTS, 5e4, 2e6, 0.95),
        (replace(MICRO, gqa_ratio=2, d_ff_multiple=8), MICRO_ASPECTS, 1.3e5, 2e6, 0.5),
        (SUB1B, SUB1B_ASPECTS, 4e6, 1.5e9, 0.95),
    ],
)
def test_families_match_at_arbitrary_sizes(
    frame: ShapeFrame, aspects: tuple[float, ...], smallest: float, largest: float, closest: float
) -> None:
    """Scan 80 sizes: all pairs match within 3%, and a share of at least `closest` within 1%."""
    differences = []
    for step in range(80):
        size = int(smallest * (largest / smallest) ** (step / 79))
        target = solve_rung(frame, aspects[1], aspects, size).target
        measured = [training_flops_per_token(solve_shape(frame, a, target)) for a in aspects]
        differences.append(max(measured) / min(measured) - 1)
    assert max(differences) <= 0.03
    assert sum(difference <= 0.01 for difference in differences) >= closest * len(differences)


@pytest.mark.parametrize("counts", ["params_total", "params_non_embedding", "flops_per_token"])
@pytest.mark.parametrize("tied", [True, False])
def test_rung_of_any_size_counts(counts: str, tied: bool) -> None:
    frame, size = replace(SUB1B, tied=tied), 125_000_000
    rung = solve_rung(frame, 64.0, SUB1B_ASPECTS, size, counts)
    assert isinstance(rung, Rung) and rung.measure == counts
    assert rung.target == pytest.approx(size, rel=0.10)
    for aspect in SUB1B_ASPECTS:
        shape = solve_shape(frame, aspect, rung.target, counts)
        assert MEASURES[counts](shape) == pytest.approx(rung.target, rel=0.015)
        assert_within_frame(shape, frame, aspect)


def test_tied_shape_has_more_layers_at_equal_params_total() -> None:
    """The tied shape uses for blocks the parameters that the untied shape uses for its head."""
    shapes = [
        solve_shape(replace(SUB1B, tied=tied, vocab_size=32_000), 24.0, 125_000_000, "params_total")
        for tied in (True, False)
    ]
    assert shapes[0].n_layers > shapes[1].n_layers
    blocks = [count_parameters(shape).params_non_embedding for shape in shapes]
    assert blocks[0] - blocks[1] > 10_000_000


def test_ideal_shape_is_the_same_from_each_measure() -> None:
    measures = ideal_measures(SUB1B, 64.0, 125e6)
    assert measures["params_non_embedding"] == pytest.approx(125e6)
    for counts, value in measures.items():
        assert ideal_measures(SUB1B, 64.0, value, counts) == pytest.approx(measures)


def test_error_for_impossible_rung_names_possible_sizes() -> None:
    with pytest.raises(ConfigError) as caught:
        solve_rung(MICRO, 11.0, MICRO_ASPECTS, 35_000)
    fix = caught.value.problems[0].fix
    below, above = (int(word.replace(",", "")) for word in fix.split() if word[0].isdigit())
    assert below < 35_000 < above
    for size in (below * 0.99, above * 1.01):
        assert solve_rung(MICRO, 11.0, MICRO_ASPECTS, int(size)).target > 0


def test_error_for_impossible_shape_names_the_nearest_shape() -> None:
    with pytest.raises(ConfigError, match="nearest: L2-d8 with"):
        solve_shape(MICRO, 4.0, 10_000)


def test_describe_command_prints_the_counts_of_the_shape() -> None:
    printed = run_describe("family=wide_shallow", "size=128k")
    shape = ModelShape(**printed["shape"])
    assert printed["family"] == "wide_shallow" and printed["label"] == shape.label
    expected = describe(shape)
    assert {key: printed[key] for key in expected} == expected
    assert sum(printed["params_by_component"].values()) == printed["params_total"]
    forward = printed["forward_flops_per_token_by_component"]
    assert 3 * sum(forward.values()) == printed["flops_per_token"]
    assert printed["params_non_embedding"] + printed["params_embedding"] == printed["params_total"]
