"""A rung: one size in all families, and the target that every shape of it meets.

By default the target is the training FLOPs per token f of the ideal balanced shape: real-valued depth
and width at the reference aspect ratio, with `size` matrix parameters in its blocks. Integers leave
gaps, so the target gives way to the nearest value that all families can meet.
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
    apart,
    around,
    shape_grid,
)
from slm.errors import ConfigError, Problem

# (a shape's distance from the rung's target, the target's from what was asked): the first that all
# families can keep holds. Two shapes on either side of the target are twice its distance apart.
RUNG_TOLERANCES = ((CLOSE_TOLERANCE, 0.10), (SIDE_TOLERANCE, 0.25))


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
    measure, asked, flops = _asked(frame, reference, size, counts)
    for tolerance, shift in RUNG_TOLERANCES:
        common = _met_by_all(frame, aspect_ratios, measure, around(asked, shift), tolerance)
        if common:
            target = round(_nearest(common, asked))
            own = target if measure == "flops_per_token" else round(flops)
            return Rung(measure, target, own, target / asked - 1)
    raise ConfigError([_no_rung(frame, reference, aspect_ratios, size, counts)])


def _asked(frame: ShapeFrame, reference: float, size: int, counts: str) -> tuple[str, float, float]:
    """The measure that `counts` names, the value asked for, and the ideal shape's FLOPs per token."""
    flops = ideal(frame, reference, size, counts)["flops_per_token"]
    return (
        ("flops_per_token", flops, flops) if counts == "balanced_params" else (counts, size, flops)
    )


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
    active = params_per_d2 * d_model * d_model * depth
    table = d_model * frame.vocab_size
    scores = 2 * frame.seq_len * d_model * depth
    blocks = active / frame.layer_sharing
    return {
        "params_non_embedding": blocks,
        "params_total": blocks + table * (1 if frame.tied else 2),
        "flops_per_token": TRAINING_FACTOR * (2 * active + scores + 2 * table),
    }


def _met_by_all(
    frame: ShapeFrame,
    aspect_ratios: Sequence[float],
    measure: str,
    window: Window,
    tolerance: float,
) -> list[Window]:
    """Targets inside the window that every family meets within the tolerance."""
    common = [window]
    for aspect_ratio in aspect_ratios:
        spans = []
        for n_layers, n_heads, widths in shape_grid(frame, aspect_ratio, measure, window):
            first, last = (
                MEASURES[measure](frame.shape(n_layers, n_heads, d_ff))
                for d_ff in (widths[0], widths[-1])
            )
            step = (last - first) / max(len(widths) - 1, 1)  # every measure is linear in d_ff
            if step <= 2 * tolerance * first:  # what one d_ff meets touches what the next one does
                spans.append((first / (1 + tolerance), last / (1 - tolerance)))
                continue
            met = (first + index * step for index in range(len(widths)))
            spans += [(value / (1 + tolerance), value / (1 - tolerance)) for value in met]
        common = _intersection(common, sorted(spans))
    return common


def _intersection(left: Sequence[Window], right: Sequence[Window]) -> list[Window]:
    """Overlaps of two sorted lists of spans, merged where they touch."""
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


def _nearest(spans: Sequence[Window], to: float) -> float:
    points = (min(max(to, low), high) for low, high in spans)
    return min(points, key=lambda point: apart(point, to))


def _no_rung(
    frame: ShapeFrame, reference: float, aspect_ratios: Sequence[float], size: int, counts: str
) -> Problem:
    """The nearest sizes below and above at which the families meet."""
    measure, asked, _ = _asked(frame, reference, size, counts)
    common = _met_by_all(frame, aspect_ratios, measure, (asked / 8, asked * 8), SIDE_TOLERANCE)
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
