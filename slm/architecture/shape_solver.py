"""Solves integer shapes: the one of a given aspect ratio that meets a target.

The target is training FLOPs per token or a parameter count. All shapes of a comparison share a frame:
d_head, GQA ratio, vocabulary, context and kind of block. A shape keeps its family's aspect ratio
within a third and the common d_ff / d_model within 10%; d_ff is the fine adjustment.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Context, Decimal
from functools import lru_cache
from itertools import count

from slm.architecture.flops import training_flops_per_token
from slm.architecture.shapes import MLP_MATRICES, ModelShape, count_parameters
from slm.errors import ConfigError, Problem

MATCH_TOLERANCE = 0.03  # two shapes of a pair may differ this much in FLOPs per token
FF_TOLERANCE = 0.10  # d_ff / d_model may leave the common ratio by this share
ASPECT_TOLERANCE = 1 / 3  # a shape may not leave its family's aspect ratio by more
# So far from their target on either side, two shapes differ by MATCH_TOLERANCE.
SIDE_TOLERANCE = MATCH_TOLERANCE / (2 + MATCH_TOLERANCE)
CLOSE_TOLERANCE = 0.005  # a shape this near to its target counts as exact
SLACK = 1 + 1e-9  # for comparisons of rounded numbers
EXACT = Context(prec=28)

MEASURES = {
    "flops_per_token": training_flops_per_token,
    "params_total": lambda shape: count_parameters(shape).params_total,
    "params_non_embedding": lambda shape: count_parameters(shape).params_non_embedding,
}
Window = tuple[float, float]


@dataclass(frozen=True)
class ShapeFrame:
    """What all shapes of one comparison share. `ff_ratio` is a SwiGLU's; a GELU MLP gets 3/2 of it."""

    vocab_size: int
    seq_len: int
    tied: bool
    d_head: int
    gqa_ratio: int
    ff_ratio: float
    d_ff_multiple: int
    mlp: str = "swiglu"
    qk_norm: bool = False
    layer_sharing: int = 1

    @classmethod
    def of(cls, shape: ModelShape, d_ff_multiple: int) -> ShapeFrame:
        """The frame in which `shape` has counterparts."""
        return cls(
            vocab_size=shape.vocab_size,
            seq_len=shape.seq_len,
            tied=shape.tied,
            d_head=shape.d_head,
            gqa_ratio=shape.n_heads // shape.n_kv_heads,
            ff_ratio=shape.ff_ratio,
            d_ff_multiple=d_ff_multiple,
            mlp=shape.mlp,
            qk_norm=shape.qk_norm,
            layer_sharing=shape.layer_sharing,
        )

    @property
    def common_ff(self) -> float:
        """Common d_ff / d_model of this kind of MLP."""
        return self.ff_ratio * MLP_MATRICES["swiglu"] / MLP_MATRICES[self.mlp]

    def shape(self, n_layers: int, n_heads: int, d_ff: int) -> ModelShape:
        return ModelShape(
            n_layers=n_layers,
            d_model=n_heads * self.d_head,
            n_heads=n_heads,
            n_kv_heads=n_heads // self.gqa_ratio,
            d_head=self.d_head,
            d_ff=d_ff,
            vocab_size=self.vocab_size,
            seq_len=self.seq_len,
            tied=self.tied,
            mlp=self.mlp,
            qk_norm=self.qk_norm,
            layer_sharing=self.layer_sharing,
        )


@lru_cache(maxsize=1024)
def solve_shape(
    frame: ShapeFrame, aspect_ratio: float, target: int, measure: str = "flops_per_token"
) -> ModelShape:
    """The shape nearest to `aspect_ratio` among those that best meet the target.

    A match within 0.5% counts as exact, then one within 1.48%, half of what a pair may differ by, then
    one within 3%.

    Raises:
        ConfigError: when no shape comes within 3%; it names the nearest that exists.
    """
    window = around(target, MATCH_TOLERANCE)
    candidates = list(_candidates(frame, aspect_ratio, measure, window, target))
    best = min(
        candidates,
        key=lambda shape: _penalty(shape, aspect_ratio, measure, target),
        default=None,
    )
    if best is None or _mismatch(best, measure, target) > MATCH_TOLERANCE * SLACK:
        raise ConfigError([_no_shape(frame, aspect_ratio, measure, target)])
    return best


def aspect_is_kept(shape: ModelShape, aspect_ratio: float) -> bool:
    return abs(shape.aspect_ratio / aspect_ratio - 1) <= ASPECT_TOLERANCE * SLACK


def shape_grid(
    frame: ShapeFrame, aspect_ratio: float, measure: str, window: Window
) -> Iterator[tuple[int, int, range]]:
    """(n_layers, n_heads, allowed d_ff) of every depth and width that may lie in the window."""
    for n_heads in count(frame.gqa_ratio, frame.gqa_ratio):
        if MEASURES[measure](frame.shape(1, n_heads, 0)) > window[1]:
            return
        widths, depths = (
            _allowed_d_ff(frame, n_heads),
            _allowed_layers(frame, aspect_ratio, n_heads),
        )
        if not widths or not depths:  # too narrow for a multiple of d_ff_multiple, or for a layer
            continue
        if MEASURES[measure](frame.shape(depths[0], n_heads, widths[0])) > window[1]:
            return
        if MEASURES[measure](frame.shape(depths[-1], n_heads, widths[-1])) >= window[0]:
            for n_layers in depths:
                yield n_layers, n_heads, widths


def _allowed_d_ff(frame: ShapeFrame, n_heads: int) -> range:
    step, common = frame.d_ff_multiple, frame.common_ff * n_heads * frame.d_head
    lowest = math.ceil((1 - FF_TOLERANCE) * common / SLACK / step) * step
    highest = math.floor((1 + FF_TOLERANCE) * common * SLACK / step) * step
    return range(lowest, highest + 1, step)


def _allowed_layers(frame: ShapeFrame, aspect_ratio: float, n_heads: int) -> range:
    exact = n_heads * frame.d_head / aspect_ratio / frame.layer_sharing
    fewest = math.ceil(exact / (1 + ASPECT_TOLERANCE) / SLACK)
    return range(max(1, fewest), math.floor(exact / (1 - ASPECT_TOLERANCE) * SLACK) + 1)


def apart(a: float, b: float) -> float:
    """Return |ln(a / b)|, correctly rounded.

    The C library's logarithm is not on every machine, and its last bit would choose between two shapes
    that lie as far from what is asked for on either side.
    """
    return abs(float(EXACT.ln(Decimal(a / b))))


def around(value: float, share: float) -> Window:
    return value / (1 + share), value * (1 + share)


def _candidates(
    frame: ShapeFrame, aspect_ratio: float, measure: str, window: Window, target: int
) -> Iterator[ModelShape]:
    """One shape per depth and width, with the allowed d_ff that brings it nearest to the target."""
    for n_layers, n_heads, widths in shape_grid(frame, aspect_ratio, measure, window):
        none, one_step = (
            MEASURES[measure](frame.shape(n_layers, n_heads, d_ff)) for d_ff in (0, widths.step)
        )
        steps = round((target - none) / (one_step - none))
        yield frame.shape(n_layers, n_heads, min(max(steps * widths.step, widths[0]), widths[-1]))


def _mismatch(shape: ModelShape, measure: str, target: int) -> float:
    return abs(MEASURES[measure](shape) / target - 1)


def _penalty(
    shape: ModelShape, aspect_ratio: float, measure: str, target: int
) -> tuple[int, float, float]:
    """Order of preference: how well it matches in steps, then the aspect ratio, then the match."""
    mismatch = _mismatch(shape, measure, target)
    steps = [CLOSE_TOLERANCE, SIDE_TOLERANCE, MATCH_TOLERANCE]
    rounding = 1 / target  # targets are whole numbers
    step = next((i for i, limit in enumerate(steps) if mismatch <= limit + rounding), len(steps))
    aspect_error = apart(shape.aspect_ratio, aspect_ratio)
    return (step, mismatch if step == len(steps) else aspect_error, mismatch)


def _no_shape(frame: ShapeFrame, aspect_ratio: float, measure: str, target: int) -> Problem:
    rule = (
        f"no shape with aspect ratio near {aspect_ratio:g}, d_head {frame.d_head} and GQA ratio "
        f"{frame.gqa_ratio} comes within {MATCH_TOLERANCE:.0%} of {target:,} {measure}"
    )
    for widening in (2, 8, 64, 4096):
        window = (target / widening, target * widening)
        near = list(_candidates(frame, aspect_ratio, measure, window, target))
        if near:
            best = min(near, key=lambda shape: apart(MEASURES[measure](shape), target))
            fix = f"nearest: {best.label} with {MEASURES[measure](best):,}"
            return Problem("size", target, rule, fix)
    return Problem("size", target, rule, "try a larger size")
