"""Counts against the real module and torch's FLOP counter; shapes against their rungs."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from slm.architecture.compute import forward_flops_per_token, training_flops_per_token
from slm.architecture.families import (
    ShapeFrame,
    aspect_is_kept,
    ideal_flops_per_token,
    rung_flops_per_token,
    solve_shape,
)
from slm.architecture.shapes import ModelShape, count_parameters
from slm.errors import ConfigError
from slm.model.transformer import Transformer

MICRO = ShapeFrame(99, 128, True, d_head=8, gqa_ratio=2, ff_ratio=8 / 3, d_ff_multiple=2)
SUB1B = ShapeFrame(8192, 2048, True, d_head=64, gqa_ratio=2, ff_ratio=8 / 3, d_ff_multiple=64)
GRID = [
    ModelShape(layers, 8 * heads, heads, kv, 8, d_ff, 97, 16, tied)
    for layers, (heads, kv), d_ff, tied in itertools.product(
        (1, 3), ((4, 4), (4, 2), (6, 1)), (24, 50), (True, False)
    )
]


@pytest.mark.parametrize("shape", GRID, ids=str)
def test_parameters_equal_the_module(shape: ModelShape) -> None:
    model = Transformer(shape)
    counts = count_parameters(shape)
    assert counts.params_total == sum(p.numel() for p in model.parameters())
    in_blocks = sum(p.numel() for p in [*model.blocks.parameters(), *model.norm.parameters()])
    assert counts.params_non_embedding == in_blocks


@pytest.mark.parametrize("shape", GRID, ids=str)
def test_flops_equal_torchs_counter(shape: ModelShape) -> None:
    model = Transformer(shape, attention="reference")
    tokens = torch.zeros(2, shape.seq_len, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(tokens)
    full = forward_flops_per_token(shape, causal=False)
    assert counter.get_total_flops() == full.total * tokens.numel()
    causal = forward_flops_per_token(shape)
    assert 2 * causal.attention_scores == full.attention_scores
    assert training_flops_per_token(shape) == 3 * causal.total


def test_published_total_of_mobilellm_125m() -> None:
    shape = ModelShape(30, 576, 9, 3, 64, 1536, 32_000, 2048)
    assert count_parameters(shape).params_total == 124_635_456  # 2402.14905, table 1: 124.6M
    untied = replace(shape, tied=False)
    assert count_parameters(untied).params_total - 124_635_456 == 32_000 * 576


@pytest.mark.parametrize(
    ("frame", "reference", "aspects", "sizes"),
    [
        (MICRO, 11.0, (4.0, 32.0), (80_000, 128_000, 144_000, 256_000, 400_000, 2_000_000)),
        (SUB1B, 64.0, (24.0, 64.0, 192.0), (32e6, 64e6, 125e6, 350e6, 1e9, 1.5e9)),
    ],
)
def test_families_meet_on_every_rung(
    frame: ShapeFrame, reference: float, aspects: tuple[float, ...], sizes: tuple[float, ...]
) -> None:
    for size in map(int, sizes):
        f = rung_flops_per_token(frame, reference, aspects, size)
        assert abs(f / ideal_flops_per_token(frame, reference, size) - 1) <= 0.10
        shapes = [solve_shape(frame, aspect, f) for aspect in aspects]
        measured = [training_flops_per_token(shape) for shape in shapes]
        assert max(measured) / min(measured) - 1 <= 0.03
        for shape, aspect in zip(shapes, aspects, strict=True):
            assert aspect_is_kept(shape, aspect)
            assert shape.n_heads * shape.d_head == shape.d_model
            assert shape.n_heads == frame.gqa_ratio * shape.n_kv_heads
            assert abs(shape.d_ff / shape.d_model / frame.ff_ratio - 1) <= 0.10 + 1e-9


def test_an_impossible_size_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="nearest: L1-d16"):
        solve_shape(MICRO, 4.0, 10_000)
