"""Solves integer shapes: a family's aspect ratio at a size, matched to its rivals.

A rung is one size in all families. Its target is a number that every shape of the rung meets:
training FLOPs per token f, or a parameter count. By default f is that of the ideal balanced shape:
real-valued depth and width at the reference aspect ratio, with `size` matrix parameters in its
blocks. Each family answers with integers: the same d_head and GQA ratio as its rivals, an aspect
ratio within a third of its own, and d_ff, within 10% of the common d_ff / d_model, as the fine
adjustment. Integers leave gaps, so the target gives way to the nearest value that all can meet.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count

from slm.architecture.compute import TRAINING_FACTOR, training_flops_per_token
from slm.architecture.shapes import MLP_MATRICES, ModelShape, count_parameters
from slm.errors import ConfigError, Problem

MATCH_TOLERANCE = 0.03  # two shapes of a pair may differ this much in FLOPs per token
FF_TOLERANCE = 0.10  # d_ff / d_model may leave the common ratio by this share
ASPECT_TOLERANCE = 1 / 3  # a shape may not leave its family's aspect ratio by more
# (a shape's distance from the rung's target, the target's from what was asked): the first that all
# families can keep holds. Two shapes on either side of the target are twice its distance apart.
RUNG_TOLERANCES = ((0.005, 0.10), (MATCH_TOLERANCE / 2, 0.25))
SLACK = 1 + 1e-9  # for comparisons of rounded numbers

MEASURES = {
    "flops_per_token": training_flops_per_token,
    "params_total": lambda shape: count_parameters(shape).params_total,
    "params_non_embedding": lambda shape: count_parameters(shape).params_non_embedding,
}
Span = tuple[float, float]


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


@dataclass(frozen=True)
class Rung:
    """What every shape of one size meets: `target` in units of `measure`.

    `flops_per_token` is the f that turns tokens_per_param into tokens, equal for all families. It is
    the target itself, or for a parameter count the f of the ideal balanced shape.
    """

    measure: str
    target: int
    flops_per_token: int
    shift: float
    """Share by which the target lies above what was asked for."""


@lru_cache(maxsize=1024)
def rung_of(
    frame: ShapeFrame,
    reference: float,
    aspect_ratios: tuple[float, ...],
    size: int,
    counts: str = "balanced_params",
) -> Rung:
    """The rung of a size in a ladder with these aspect ratios.

    `counts` is what `size` counts: `balanced_params`, or a key of MEASURES.

    Raises:
        ConfigError: when the families have no shapes that meet; it names the nearest sizes that do.
    """
    balanced = counts == "balanced_params"
    measure = "flops_per_token" if balanced else counts
    asked = ideal(frame, reference, size)[measure] if balanced else size
    for tolerance, shift in RUNG_TOLERANCES:
        common = _met_by_all(frame, aspect_ratios, measure, _around(asked, shift), tolerance)
        if common:
            target = round(_nearest(common, asked))
            f = target if measure == "flops_per_token" else round(
                ideal(frame, reference, size, counts)["flops_per_token"]
            )  # fmt: skip
            return Rung(measure, target, f, target / asked - 1)
    raise ConfigError([_no_rung(frame, reference, aspect_ratios, size, counts)])


def ideal(
    frame: ShapeFrame, aspect_ratio: float, size: float, counts: str = "balanced_params"
) -> dict[str, float]:
    """All measures of the real-valued shape of `aspect_ratio` that has `size` by one of them.

    Blocks count their matrices alone; norms are left out.
    """
    counts = "params_non_embedding" if counts == "balanced_params" else counts
    low, high = 1e-3, 1e7  # of d_model; every measure grows with it
    for _ in range(80):
        middle = math.sqrt(low * high)
        low, high = (
            (low, middle) if _ideal(frame, aspect_ratio, middle)[counts] > size else (middle, high)
        )
    return _ideal(frame, aspect_ratio, low)


def _ideal(frame: ShapeFrame, aspect_ratio: float, d_model: float) -> dict[str, float]:
    # Of one block, in units of d_model^2: query and output, key and value, three MLP matrices.
    params_per_d2 = 2 + 2 / frame.gqa_ratio + 3 * frame.ff_ratio
    depth = d_model / aspect_ratio
    active = params_per_d2 * d_model**2 * depth
    table = d_model * frame.vocab_size
    scores = 2 * frame.seq_len * d_model * depth
    blocks = active / frame.layer_sharing
    return {
        "params_non_embedding": blocks,
        "params_total": blocks + table * (1 if frame.tied else 2),
        "flops_per_token": TRAINING_FACTOR * (2 * active + scores + 2 * table),
    }


@lru_cache(maxsize=1024)
def solve_shape(
    frame: ShapeFrame, aspect_ratio: float, target: int, measure: str = "flops_per_token"
) -> ModelShape:
    """The shape nearest to `aspect_ratio` among those that best meet the target.

    A match within 0.5% counts as exact, then one within 1.5%, then one within 3%.

    Raises:
        ConfigError: when no shape comes within 3%; it names the nearest that exists.
    """
    window = _around(target, MATCH_TOLERANCE)
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


def _grid(
    frame: ShapeFrame, aspect_ratio: float, measure: str, window: Span
) -> Iterator[tuple[int, int, range]]:
    """(n_layers, n_heads, allowed d_ff) of every depth and width that may lie in the window."""
    for n_heads in count(frame.gqa_ratio, frame.gqa_ratio):
        widths, depths = (
            _allowed_d_ff(frame, n_heads),
            _allowed_layers(frame, aspect_ratio, n_heads),
        )
        if not widths or not depths:  # too narrow for a multiple of d_ff_multiple, or for a layer
            continue
        smallest = frame.shape(depths[0], n_heads, widths[0])
        if MEASURES[measure](smallest) > window[1]:
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


def _met_by_all(
    frame: ShapeFrame, aspect_ratios: Sequence[float], measure: str, window: Span, tolerance: float
) -> list[Span]:
    """Targets inside the window that every family meets within the tolerance."""
    common = [window]
    for aspect_ratio in aspect_ratios:
        spans = []
        for n_layers, n_heads, widths in _grid(frame, aspect_ratio, measure, window):
            first, last = (
                MEASURES[measure](frame.shape(n_layers, n_heads, d_ff))
                for d_ff in (widths[0], widths[-1])
            )
            step = (last - first) / max(len(widths) - 1, 1)  # every measure is linear in d_ff
            met = (first + index * step for index in range(len(widths)))
            spans += [(value / (1 + tolerance), value / (1 - tolerance)) for value in met]
        common = _intersection(common, sorted(spans))
    return common


def _intersection(left: Sequence[Span], right: Sequence[Span]) -> list[Span]:
    """Overlaps of two sorted lists of spans, merged where they touch."""
    merged: list[Span] = []
    for low, high in right:
        if merged and low <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    ends = [high for _, high in merged]
    overlaps = []
    for low, high in left:
        for other_low, other_high in merged[bisect_left(ends, low) :]:
            if other_low > high:
                break
            overlaps.append((max(low, other_low), min(high, other_high)))
    return overlaps


def _nearest(spans: Sequence[Span], to: float) -> float:
    points = (min(max(to, low), high) for low, high in spans)
    return min(points, key=lambda point: abs(math.log(point / to)))


def _around(value: float, share: float) -> Span:
    return value / (1 + share), value * (1 + share)


def _candidates(
    frame: ShapeFrame, aspect_ratio: float, measure: str, window: Span, target: int
) -> Iterator[ModelShape]:
    """One shape per depth and width, with the allowed d_ff that brings it nearest to the target."""
    for n_layers, n_heads, widths in _grid(frame, aspect_ratio, measure, window):
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
    steps = [tolerance for tolerance, _ in RUNG_TOLERANCES] + [MATCH_TOLERANCE]
    step = next((i for i, limit in enumerate(steps) if mismatch <= limit * SLACK), len(steps))
    aspect_error = abs(math.log(shape.aspect_ratio / aspect_ratio))
    return (step, mismatch if step == len(steps) else aspect_error, mismatch)


def _no_rung(
    frame: ShapeFrame, reference: float, aspect_ratios: Sequence[float], size: int, counts: str
) -> Problem:
    """The nearest sizes below and above at which the families meet."""
    measure = "flops_per_token" if counts == "balanced_params" else counts
    asked = ideal(frame, reference, size, counts)[measure]
    common = _met_by_all(frame, aspect_ratios, measure, (asked / 8, asked * 8), MATCH_TOLERANCE / 2)
    below = [high for low, high in common if high < asked][-1:]
    above = [low for low, high in common if low > asked][:1]
    unit = "params_non_embedding" if counts == "balanced_params" else counts
    sizes = [f"{ideal(frame, reference, f, measure)[unit]:.3g}" for f in (*below, *above)]
    listed = ", ".join(f"{a:g}" for a in aspect_ratios)
    rule = (
        f"families of aspect ratio {listed} (d_head {frame.d_head}, GQA ratio {frame.gqa_ratio}) have "
        f"no shapes there that meet in {measure} within {MATCH_TOLERANCE:.0%}"
    )
    named = " or ".join(f"{float(s):,.0f}" for s in sizes)
    return Problem("size", size, rule, f"nearest: {named}" if named else "try a larger size")


def _no_shape(frame: ShapeFrame, aspect_ratio: float, measure: str, target: int) -> Problem:
    rule = (
        f"no shape with aspect ratio near {aspect_ratio:g}, d_head {frame.d_head} and GQA ratio "
        f"{frame.gqa_ratio} comes within {MATCH_TOLERANCE:.0%} of {target:,} {measure}"
    )
    for widening in (2, 8, 64, 4096):
        window = (target / widening, target * widening)
        near = list(_candidates(frame, aspect_ratio, measure, window, target))
        if near:
            best = min(near, key=lambda shape: abs(math.log(MEASURES[measure](shape) / target)))
            fix = f"nearest: {best.label} with {MEASURES[measure](best):,}; try another size"
            return Problem("size", target, rule, fix)
    return Problem("size", target, rule, "try a larger size")
