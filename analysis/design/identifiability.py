"""What a set of runs can identify, before any loss is looked at.

Each rule yields a sentence that says what was found, what is needed, and what to run. A refusal
forbids a number; a warning goes beside it. numpy alone, so that the planner can ask.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.arrays import Floats
from analysis.formatting import count as told
from slm.architecture.shape_solver import MATCH_TOLERANCE
from slm.rounding import ROUNDING_TOLERANCE, exceeds

MIN_SIZES = 4
MIN_PAIRS = 6  # below, no labeling of the pairs is rarer than 1 in 20
MIN_BUDGETS = 2
MAX_CORRELATION = 0.95
MIN_OVERLAP = 0.70
MIN_DECADES = 1.0
WANTED_BUDGETS = 3
WANTED_BUDGET_SPAN = 8.0
SAME = 1e-3  # token counts this close are one budget: they are rounded to whole batches

Labels = Sequence[Hashable] | NDArray[Any]


def exponent_refusals(
    family: Labels, size: Labels | None, n: ArrayLike, tokens: ArrayLike
) -> list[str]:
    """Why the exponents of a joint law in N and D cannot be told; empty if they can.

    Args:
        family: label of each run.
        size: label of each run's size (a rung, a shape), compared within a family. None: values of N
            are counted, and need not recur at another budget, as in a cloud of points.
        n: N of each run, in any definition, above 0.
        tokens: D of each run, above 0.
    """
    family, n, tokens = labels(family), np.asarray(n, float), np.asarray(tokens, float)
    size = None if size is None else labels(size)
    found: list[str] = []
    for name in dict.fromkeys(family):
        own = family == name
        called = f"{name}: " if len(set(family)) > 1 else ""
        sizes = [] if size is None else list(dict.fromkeys(size[own]))
        count = count_distinct(n[own]) if size is None else len(sizes)
        if count < MIN_SIZES:
            found.append(
                f"{called}{told(count, 'size')}, at least {MIN_SIZES} are needed; run {MIN_SIZES - count} more"
            )
        single = [s for s in sizes if count_distinct(tokens[own & (size == s)]) < MIN_BUDGETS]
        if single:
            found.append(
                f"{called}{len(single)} of {told(len(sizes), 'size')} {'has' if len(single) == 1 else 'have'} a single token budget, so size and "
                f"data cannot be told apart; run each size at {WANTED_BUDGETS} budgets that span "
                f"{WANTED_BUDGET_SPAN:g}x"
            )
    return [*found, *collinearity_refusals(np.log(n), np.log(tokens))]


def collinearity_refusals(log_n: Floats, log_d: Floats) -> Iterator[str]:
    """Why size and data cannot be told apart; nothing if they can."""
    if len(log_n) < 2 or min(np.ptp(log_n), np.ptp(log_d)) <= ROUNDING_TOLERANCE:
        yield (
            "the correlation of ln N and ln D is undefined, since one of them does not vary; run "
            "several sizes, each at several token budgets"
        )
        return
    correlation = float(np.corrcoef(log_n, log_d)[0, 1])
    if exceeds(abs(correlation), MAX_CORRELATION):
        yield (
            f"ln N and ln D are correlated at {correlation:.3f}, above {MAX_CORRELATION}; run more "
            "token budgets per size"
        )


def comparison_refusals(
    family: Labels, flops_per_token: ArrayLike, deep: str, wide: str
) -> list[str]:
    """Why two families cannot be compared at all; empty if they can.

    `flops_per_token` may be in any unit that all runs share.
    """
    family, f = labels(family), np.asarray(flops_per_token, float)
    present = list(dict.fromkeys(family))
    if len(present) < 2:
        only = f", {present[0]}" if present else ""
        return [f"one family{only}: nothing to compare it with; run a second one at the same sizes"]
    lost = [name for name in (deep, wide) if name not in present]
    if lost:
        return [f"no runs of {' or '.join(lost)}; there are {', '.join(map(str, present))}"]
    overlap = range_overlap(np.log(f[family == deep]), np.log(f[family == wide]))
    if exceeds(MIN_OVERLAP, overlap):
        return [
            f"{deep} and {wide} overlap in FLOPs per token over {overlap:.0%} of their range, below "
            f"{MIN_OVERLAP:.0%}; run the sizes that one of them lacks"
        ]
    return []


def range_overlap(a: Floats, b: Floats) -> float:
    """Length of the common part of two ranges of logarithms as a share of what both cover together."""
    covered = max(a.max(), b.max()) - min(a.min(), b.min())
    common = min(a.max(), b.max()) - max(a.min(), b.min())
    if not exceeds(covered, np.log1p(MATCH_TOLERANCE)):  # one size each, matched
        return 1.0
    return float(max(common, 0.0) / covered)


def design_warnings(
    family: Labels, rung: Labels, n: ArrayLike, tokens: ArrayLike, seed: ArrayLike | None = None
) -> list[str]:
    """What weakens a comparison without forbidding it."""
    family, rung = labels(family), labels(rung)
    n, tokens = np.asarray(n, float), np.asarray(tokens, float)
    families = list(dict.fromkeys(family))
    found = list(_range_warnings(family, families, n))
    common = set.intersection(*(set(rung[family == name]) for name in families))
    if len(families) > 1 and len(common) < MIN_PAIRS:
        smallest = 2 / 2 ** len(common)
        found.append(
            f"{told(len(common), 'size')} common to all families: the smallest possible p of a permutation is "
            f"{smallest:.2g}; {MIN_PAIRS} sizes make it {2 / 2**MIN_PAIRS:.2g}"
        )
    per_token = tokens / n
    most = max((count_distinct(tokens[rung == r]) for r in set(rung)), default=0)
    span = per_token.max() / per_token.min()
    if most < WANTED_BUDGETS or exceeds(WANTED_BUDGET_SPAN, span):
        found.append(
            f"token budgets: {most} per size over {span:.1f}x of tokens_per_param; {WANTED_BUDGETS} over "
            f"{WANTED_BUDGET_SPAN:g}x are wanted"
        )
    for name in sorted(common, key=str):
        sides = [float(n[(rung == name) & (family == one)].mean()) for one in families]
        mismatch = max(sides) / min(sides) - 1
        if exceeds(mismatch, MATCH_TOLERANCE):
            found.append(f"rung {name}: its shapes differ by {mismatch:.1%} in FLOPs per token")
    if seed is not None and len(np.unique(np.asarray(seed))) < 2:
        found.append(
            "no size has more than one seed, so the seed standard deviation is assumed, not measured"
        )
    return found


def _range_warnings(family: NDArray[Any], families: list[Any], n: Floats) -> Iterator[str]:
    for name in families:
        own = n[family == name]
        decades = math.log10(own.max() / own.min())
        if exceeds(MIN_DECADES, decades):
            yield f"{name}: sizes span {decades:.1f} decades, less than {MIN_DECADES:g}"


def count_distinct(values: Floats) -> int:
    """How many different values there are, those within a tenth of a percent taken for one."""
    if not len(values):
        return 0
    ordered = np.sort(values)
    return 1 + int(exceeds(ordered[1:] / ordered[:-1], 1 + SAME).sum())


def labels(values: Labels) -> NDArray[Any]:
    """Labels of any kind as an array of objects, so that 1 and "1" stay apart."""
    array = np.empty(len(values), dtype=object)
    array[:] = list(values)
    return array
