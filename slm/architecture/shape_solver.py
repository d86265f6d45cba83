"""Solve for the integer shape of a given aspect ratio that meets a target.

The target is training FLOPs per token or a parameter count. All shapes of a comparison share a frame:
d_head, GQA ratio, vocabulary size, sequence length and kind of block. A shape may differ from its
family's aspect ratio by a third, and from the common d_ff / d_model by 10%. Depth and width set the
coarse size; d_ff is the fine adjustment.
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
from slm.errors import Problem, ShapeNotFound

# Relative tolerances.
MATCH_TOLERANCE = 0.03  # of FLOPs per token between the two shapes of a pair
FF_TOLERANCE = 0.10  # of d_ff / d_model from the common ratio
ASPECT_TOLERANCE = 1 / 3  # of d_model / depth from the family's aspect ratio
# Two shapes that deviate this much from their target in opposite directions differ by MATCH_TOLERANCE.
SIDE_TOLERANCE = MATCH_TOLERANCE / (2 + MATCH_TOLERANCE)
CLOSE_TOLERANCE = 0.005  # a shape within this share of its target counts as exact
SLACK = 1 + 1e-9  # absorbs floating-point rounding in comparisons
DECIMAL = Context(prec=28)

MEASURES = {
    "flops_per_token": training_flops_per_token,
    "params_total": lambda shape: count_parameters(shape).params_total,
    "params_non_embedding": lambda shape: count_parameters(shape).params_non_embedding,
}
Window = tuple[float, float]


@dataclass(frozen=True)
class ShapeFrame:
    """Dimensions and options that all shapes of one comparison share.

    `ff_ratio` is d_ff / d_model of a SwiGLU MLP; a GELU MLP uses 3/2 of it.
    """

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
        """Return the frame of `shape`, for solving shapes of other families to compare it with."""
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
        """d_ff / d_model of this kind of MLP."""
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
    """Return the shape nearest to `aspect_ratio` among those that best meet the target.

    Shapes within 0.5% of the target are preferred, then within 1.48% (half of what a pair may differ
    by), then within 3%.

    Raises:
        ShapeNotFound: if no shape is within 3%; the message names the nearest shape.
    """
    window = window_around(target, MATCH_TOLERANCE)
    candidates = list(_candidates(frame, aspect_ratio, measure, window, target))
    best = min(
        candidates,
        key=lambda shape: _penalty(shape, aspect_ratio, measure, target),
        default=None,
    )
    if best is None or _mismatch(best, measure, target) > MATCH_TOLERANCE * SLACK:
        raise ShapeNotFound([_no_shape_problem(frame, aspect_ratio, measure, target)])
    return best


def is_within_aspect_tolerance(shape: ModelShape, aspect_ratio: float) -> bool:
    return abs(shape.aspect_ratio / aspect_ratio - 1) <= ASPECT_TOLERANCE * SLACK


def shape_grid(
    frame: ShapeFrame, aspect_ratio: float, measure: str, window: Window
) -> Iterator[tuple[int, int, range]]:
    """Yield (n_layers, n_heads, allowed d_ff) for each depth and width that may lie in the window."""
    for n_heads in count(frame.gqa_ratio, frame.gqa_ratio):
        if MEASURES[measure](frame.shape(1, n_heads, 0)) > window[1]:
            return
        widths = _allowed_d_ff(frame, n_heads)
        depths = _allowed_layers(frame, aspect_ratio, n_heads)
        if not widths or not depths:  # too narrow for a multiple of d_ff_multiple or for one layer
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


def log_distance(a: float, b: float) -> float:
    """Return |ln(a / b)|, correctly rounded.

    The last bit of the C library's logarithm differs between machines. It would decide between two shapes
    that lie equally far above and below the target.
    """
    return abs(float(DECIMAL.ln(Decimal(a / b))))


def window_around(value: float, share: float) -> Window:
    return value / (1 + share), value * (1 + share)


def _candidates(
    frame: ShapeFrame, aspect_ratio: float, measure: str, window: Window, target: int
) -> Iterator[ModelShape]:
    """Yield one shape per depth and width, with the allowed d_ff nearest to the target."""
    for n_layers, n_heads, widths in shape_grid(frame, aspect_ratio, measure, window):
        # Every measure is linear in d_ff, so two values give the d_ff of the target.
        zero, one_step = (
            MEASURES[measure](frame.shape(n_layers, n_heads, d_ff)) for d_ff in (0, widths.step)
        )
        steps = round((target - zero) / (one_step - zero))
        yield frame.shape(n_layers, n_heads, min(max(steps * widths.step, widths[0]), widths[-1]))


def _mismatch(shape: ModelShape, measure: str, target: int) -> float:
    return abs(MEASURES[measure](shape) / target - 1)


def _penalty(
    shape: ModelShape, aspect_ratio: float, measure: str, target: int
) -> tuple[int, float, float]:
    """Return the sort key: the tolerance that the mismatch meets, aspect ratio error, mismatch."""
    mismatch = _mismatch(shape, measure, target)
    limits = [CLOSE_TOLERANCE, SIDE_TOLERANCE, MATCH_TOLERANCE]
    rounding = 1 / target  # targets are integers
    grade = next((i for i, limit in enumerate(limits) if mismatch <= limit + rounding), len(limits))
    aspect_error = log_distance(shape.aspect_ratio, aspect_ratio)
    return (grade, mismatch if grade == len(limits) else aspect_error, mismatch)


def _no_shape_problem(frame: ShapeFrame, aspect_ratio: float, measure: str, target: int) -> Problem:
    """Report that no shape meets the target, and name the nearest shape."""
    rule = (
        f"no shape with aspect ratio near {aspect_ratio:g}, d_head {frame.d_head} and GQA ratio "
        f"{frame.gqa_ratio} is within {MATCH_TOLERANCE:.0%} of {target:,} {measure}"
    )
    for widening in (2, 8, 64, 4096):
        window = (target / widening, target * widening)
        candidates = list(_candidates(frame, aspect_ratio, measure, window, target))
        if candidates:
            best = min(candidates, key=lambda shape: log_distance(MEASURES[measure](shape), target))
            fix = f"nearest: {best.label} with {MEASURES[measure](best):,}"
            return Problem("size", target, rule, fix)
    return Problem("size", target, rule, "try a larger size")
