"""The ladder of sizes: each rung is one size with a target that one shape of every family meets.

By default the target is the training FLOPs per token f of the ideal balanced shape, which has
real-valued depth and width, the reference aspect ratio, and `size` matrix parameters in its blocks.
Integer shapes leave gaps between reachable values, so the rung moves its target to the nearest value
that all families can meet.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from slm.architecture.flops import TRAINING_FACTOR
from slm.architecture.shape_solver import (
    CLOSE_TOLERANCE,
    MATCH_TOLERANCE,
    MEASURES,
    SIDE_TOLERANCE,
    ShapeFrame,
    Window,
    log_distance,
    shape_grid,
    window_around,
)
from slm.errors import Problem, ShapeNotFound

# (largest deviation of a shape from the target, largest shift of the target from the requested value).
# The first pair that all families can satisfy is used. Two shapes on opposite sides of the target
# differ by twice the deviation.
RUNG_TOLERANCES = ((CLOSE_TOLERANCE, 0.10), (SIDE_TOLERANCE, 0.25))


@dataclass(frozen=True)
class Rung:
    """One size of the ladder: every shape of the rung has `measure` within tolerance of `target`.

    `flops_per_token` is the f that converts tokens_per_param into tokens, the same for all families:
    the target itself, or for a parameter count the f of the ideal balanced shape.
    """

    measure: str
    target: int
    flops_per_token: int
    shift: float
    """Relative deviation of the target from the requested value."""


@lru_cache(maxsize=1024)
def solve_rung(
    frame: ShapeFrame,
    reference: float,
    aspect_ratios: tuple[float, ...],
    size: int,
    size_counts: str = "balanced_params",
) -> Rung:
    """Find the target nearest to `size` that shapes of all aspect ratios can meet.

    `reference` is the aspect ratio of the ideal balanced shape. `size_counts` names the quantity that
    `size` is: `balanced_params` or a key of MEASURES.

    Raises:
        ShapeNotFound: if there is no common target; the message names the nearest sizes that have one.
    """
    measure, requested, flops = _requested(frame, reference, size, size_counts)
    for tolerance, shift in RUNG_TOLERANCES:
        window = window_around(requested, shift)
        targets = _common_targets(frame, aspect_ratios, measure, window, tolerance)
        if targets:
            target = round(_nearest(targets, requested))
            flops_per_token = target if measure == "flops_per_token" else round(flops)
            return Rung(measure, target, flops_per_token, target / requested - 1)
    raise ShapeNotFound([_no_rung_problem(frame, reference, aspect_ratios, size, size_counts)])


@lru_cache(maxsize=1024)
def largest_matched_set(
    frame: ShapeFrame,
    reference: float,
    aspect_ratios: tuple[float, ...],
    size: int,
    size_counts: str = "balanced_params",
) -> tuple[float, ...]:
    """Return the aspect ratios that meet the target which the most of them meet.

    If several targets are met by equally many, the one nearest to `size` is used. Returns all aspect ratios if
    no target is met by two.
    """
    measure, requested, _ = _requested(frame, reference, size, size_counts)
    tolerance, shift = RUNG_TOLERANCES[-1]
    window = window_around(requested, shift)
    targets = {
        ratio: _common_targets(frame, (ratio,), measure, window, tolerance)
        for ratio in aspect_ratios
    }

    def ratios_at(target: float) -> tuple[float, ...]:
        return tuple(
            ratio
            for ratio, intervals in targets.items()
            if any(low <= target <= high for low, high in intervals)
        )

    # The set of ratios changes only at the ends of intervals.
    ends = {end for intervals in targets.values() for interval in intervals for end in interval}
    nearest_first = sorted({requested, *ends}, key=lambda end: (log_distance(end, requested), end))
    matched = max(map(ratios_at, nearest_first), key=len)
    return matched if len(matched) > 1 else aspect_ratios


def _requested(
    frame: ShapeFrame, reference: float, size: int, size_counts: str
) -> tuple[str, float, float]:
    """Return the measure to match, its requested value, and the ideal shape's FLOPs per token."""
    flops = ideal_measures(frame, reference, size, size_counts)["flops_per_token"]
    if size_counts == "balanced_params":
        return "flops_per_token", flops, flops
    return size_counts, size, flops


def ideal_measures(
    frame: ShapeFrame, aspect_ratio: float, size: float, size_counts: str = "balanced_params"
) -> dict[str, float]:
    """Return all measures of the real-valued shape of `aspect_ratio` whose `size_counts` is `size`.

    Only the matrices of blocks are counted, without norms.
    """
    measure = "params_non_embedding" if size_counts == "balanced_params" else size_counts
    low, high = 1e-3, 1e7  # bounds of d_model for bisection; every measure increases with d_model
    for _ in range(80):
        middle = math.sqrt(low * high)
        if _ideal_measures_at(frame, aspect_ratio, middle)[measure] > size:
            high = middle
        else:
            low = middle
    return _ideal_measures_at(frame, aspect_ratio, low)


def _ideal_measures_at(frame: ShapeFrame, aspect_ratio: float, d_model: float) -> dict[str, float]:
    # Per block: query and output, key and value, three MLP matrices.
    params_per_d2 = 2 + 2 / frame.gqa_ratio + 3 * frame.ff_ratio
    depth = d_model / aspect_ratio
    active = params_per_d2 * d_model * d_model * depth
    table = d_model * frame.vocab_size
    scores = 2 * frame.seq_len * d_model * depth
    blocks = active / frame.layer_sharing
    return {
        "params_non_embedding": blocks,
        "params_total": blocks + table * (1 if frame.tied else 2),
        "flops_per_token": TRAINING_FACTOR * (2 * active + scores + 2 * table),
    }


def _common_targets(
    frame: ShapeFrame,
    aspect_ratios: Sequence[float],
    measure: str,
    window: Window,
    tolerance: float,
) -> list[Window]:
    """Return the intervals of targets in the window that every family meets within the tolerance."""
    common = [window]
    for aspect_ratio in aspect_ratios:
        intervals = []
        for n_layers, n_heads, widths in shape_grid(frame, aspect_ratio, measure, window):
            first, last = (
                MEASURES[measure](frame.shape(n_layers, n_heads, d_ff))
                for d_ff in (widths[0], widths[-1])
            )
            step = (last - first) / max(len(widths) - 1, 1)  # every measure is linear in d_ff
            if step <= 2 * tolerance * first:  # intervals of adjacent d_ff overlap: use one
                intervals.append((first / (1 + tolerance), last / (1 - tolerance)))
                continue
            values = (first + index * step for index in range(len(widths)))
            intervals += [(value / (1 + tolerance), value / (1 - tolerance)) for value in values]
        common = _intersection(common, sorted(intervals))
    return common


def _intersection(left: Sequence[Window], right: Sequence[Window]) -> list[Window]:
    """Intersect two sorted lists of intervals; overlapping intervals of `right` are merged first."""
    merged: list[Window] = []
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


def _nearest(intervals: Sequence[Window], value: float) -> float:
    """Return the point of the intervals nearest to `value` in log distance."""
    points = (min(max(value, low), high) for low, high in intervals)
    return min(points, key=lambda point: log_distance(point, value))


def _no_rung_problem(
    frame: ShapeFrame,
    reference: float,
    aspect_ratios: tuple[float, ...],
    size: int,
    size_counts: str,
) -> Problem:
    """Report a size without a rung, and the nearest sizes below and above that have one."""
    measure, requested, _ = _requested(frame, reference, size, size_counts)
    window = (requested / 8, requested * 8)
    targets = _common_targets(frame, aspect_ratios, measure, window, SIDE_TOLERANCE)
    below = [high for low, high in targets if high < requested][-1:]
    above = [low for low, high in targets if low > requested][:1]
    unit = "params_non_embedding" if size_counts == "balanced_params" else size_counts
    sizes = [
        f"{ideal_measures(frame, reference, target, measure)[unit]:.3g}"
        for target in (*below, *above)
    ]
    listed = ", ".join(f"{ratio:g}" for ratio in aspect_ratios)
    rule = (
        f"the families (aspect ratios {listed}; d_head {frame.d_head}, GQA ratio {frame.gqa_ratio}) have "
        f"no shapes of this size whose {measure} agree within {MATCH_TOLERANCE:.0%}"
    )
    matched = largest_matched_set(frame, reference, aspect_ratios, size, size_counts)
    missing = ", ".join(f"{ratio:g}" for ratio in aspect_ratios if ratio not in matched)
    if missing:
        rule += f"; without aspect ratio {missing} there are such shapes"
    nearest = " or ".join(f"{float(s):,.0f}" for s in sizes)
    return Problem("size", size, rule, f"nearest: {nearest}" if nearest else "try a larger size")
