"""Check what a set of runs can identify, from the design alone, without any loss.

Each violated rule gives one sentence: the finding, the requirement, and which runs to add. A refusal means that
the estimate is not reported; a warning is reported beside it. Imports only numpy, so that planning stays fast.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.arrays import Floats
from analysis.formatting import count
from slm.architecture.shape_solver import MATCH_TOLERANCE
from slm.rounding import ROUNDING_TOLERANCE, exceeds

MIN_SIZES = 4
WANTED_SIZES = 6
MIN_BUDGETS = 2
MAX_CORRELATION = 0.95
MIN_OVERLAP = 0.70
MIN_SIZE_RANGE = 10.0  # largest N / smallest N of a family
MAX_DRIFT = 0.05  # of the mean ln(aspect ratio) per rung, over the ladder
WANTED_BUDGETS = 3
WANTED_BUDGET_SPAN = 8.0
SAME = 1e-3  # relative; token counts closer than this are one budget (they are rounded to whole batches)

Labels = Sequence[Hashable] | NDArray[Any]


def exponent_refusals(
    family: Labels,
    size: Labels | None,
    n: ArrayLike,
    tokens: ArrayLike,
    *,
    single_budget_share: float = 0.0,
) -> list[str]:
    """Return the reasons why the exponents of a joint law in N and D are not identified; empty if they are.

    Args:
        family: family label of each run.
        size: size label of each run (a rung or a shape), compared within a family. None: distinct values of N
            are counted, and a size may have a single token budget, as in a cloud of points.
        n: N of each run, in any definition, above 0.
        tokens: D of each run, above 0.
        single_budget_share: share of the sizes that may have a single token budget.
    """
    family, n, tokens = labels(family), np.asarray(n, float), np.asarray(tokens, float)
    size = None if size is None else labels(size)
    refusals: list[str] = []
    for name in dict.fromkeys(family):
        rows = family == name
        own = None if size is None else size[rows]
        found = family_refusals(own, n[rows], tokens[rows], single_budget_share=single_budget_share)
        prefix = f"{name}: " if len(set(family)) > 1 else ""
        refusals += [prefix + reason for reason in found]
    return [*refusals, *collinearity_refusals(np.log(n), np.log(tokens))]


def family_refusals(
    size: Labels | None, n: Floats, tokens: Floats, *, single_budget_share: float = 0.0
) -> list[str]:
    """Return why one family has too few sizes or token budgets for an exponent; see `exponent_refusals`."""
    size = None if size is None else labels(size)
    sizes = [] if size is None else list(dict.fromkeys(size))
    n_sizes = count_distinct(n) if size is None else len(sizes)
    refusals = too_few_sizes(n_sizes)
    single = [s for s in sizes if count_distinct(tokens[size == s]) < MIN_BUDGETS]
    if len(single) > single_budget_share * n_sizes:
        has = "has" if len(single) == 1 else "have"
        refusals.append(
            f"{len(single)} of {count(n_sizes, 'size')} {has} a single token budget, so the effects of "
            f"size and data cannot be separated; run each size at {WANTED_BUDGETS} budgets that span "
            f"{WANTED_BUDGET_SPAN:g}x"
        )
    return refusals


def too_few_sizes(n_sizes: int) -> list[str]:
    """Return the reason why a number of sizes does not give an exponent; empty if it does."""
    if n_sizes >= MIN_SIZES:
        return []
    missing = MIN_SIZES - n_sizes
    return [f"{count(n_sizes, 'size')}, at least {MIN_SIZES} are needed; run {missing} more"]


def collinearity_refusals(log_n: Floats, log_d: Floats) -> Iterator[str]:
    """Yield the reason why the effects of size and data cannot be separated, if there is one."""
    if len(log_n) < 2 or min(np.ptp(log_n), np.ptp(log_d)) <= ROUNDING_TOLERANCE:
        yield (
            "the correlation of ln N and ln D is undefined, because N or D does not vary; run several sizes, "
            "each at several token budgets"
        )
        return
    correlation = float(np.corrcoef(log_n, log_d)[0, 1])
    if exceeds(abs(correlation), MAX_CORRELATION):
        yield (
            f"the correlation of ln N and ln D is {correlation:.3f}, above {MAX_CORRELATION} in absolute value; "
            "run more token budgets per size"
        )


def comparison_refusals(
    family: Labels, flops_per_token: ArrayLike, deep: str, wide: str
) -> list[str]:
    """Return the reasons why two families cannot be compared; empty if they can.

    `flops_per_token` may be in any unit that is common to all runs.
    """
    family, f = labels(family), np.asarray(flops_per_token, float)
    present = list(dict.fromkeys(family))
    if len(present) < 2:
        name = f", {present[0]}" if present else ""
        return [
            f"one family{name}; a comparison needs two, so run a second family at the same sizes"
        ]
    missing = [name for name in (deep, wide) if name not in present]
    if missing:
        return [
            f"no runs of {' or '.join(missing)}; the families are {', '.join(map(str, present))}"
        ]
    return overlap_refusals(f[family == deep], f[family == wide], deep, wide)


def overlap_refusals(deep_flops: Floats, wide_flops: Floats, deep: str, wide: str) -> list[str]:
    """Return the reason why two families have too few sizes in common, given the FLOPs per token of their runs."""
    overlap = range_overlap(np.log(deep_flops), np.log(wide_flops))
    if not exceeds(MIN_OVERLAP, overlap):
        return []
    return [
        f"{deep} has {count(count_distinct(deep_flops), 'size')}, {wide} has {count_distinct(wide_flops)}, and "
        f"{_common_sizes(deep_flops, wide_flops)} of them match; the ranges of FLOPs per token overlap over {overlap:.0%} "
        f"of both together, below {MIN_OVERLAP:.0%}; run the sizes that one family lacks"
    ]


def _common_sizes(a: Floats, b: Floats) -> int:
    """Return how many sizes of `a` have a size of `b` within MATCH_TOLERANCE."""
    ratios = np.abs(np.log(a[:, None] / b[None, :])).min(axis=1)
    return count_distinct(a[~exceeds(ratios, np.log1p(MATCH_TOLERANCE))])


def range_overlap(a: Floats, b: Floats) -> float:
    """Return the length of the intersection of two ranges, in logarithms, as a share of their union."""
    covered = max(a.max(), b.max()) - min(a.min(), b.min())
    common = min(a.max(), b.max()) - max(a.min(), b.min())
    if not exceeds(covered, np.log1p(MATCH_TOLERANCE)):  # one size each, matched
        return 1.0
    return float(max(common, 0.0) / covered)


def design_warnings(
    family: Labels,
    rung: Labels,
    n: ArrayLike,
    tokens: ArrayLike,
    seed: Labels | None = None,
    *,
    aspect_ratio: ArrayLike | None = None,
) -> list[str]:
    """Return the weaknesses of a design that do not forbid a comparison.

    `aspect_ratio` is given if the design cannot separate a drift of the mean aspect ratio from a curved optimum.
    """
    family, rung = labels(family), labels(rung)
    n, tokens = np.asarray(n, float), np.asarray(tokens, float)
    families = list(dict.fromkeys(family))
    warnings = list(_range_warnings(family, families, n))
    common = set.intersection(*(set(rung[family == name]) for name in families))
    if len(families) > 1 and len(common) == MIN_SIZES:
        warnings.append(
            f"{MIN_SIZES} sizes common to all families leave few degrees of freedom; run {WANTED_SIZES} or more"
        )
    per_token = tokens / n
    most = max((count_distinct(tokens[rung == r]) for r in set(rung)), default=0)
    span = per_token.max() / per_token.min()
    if most < WANTED_BUDGETS or exceeds(WANTED_BUDGET_SPAN, span):
        here = (
            "only one"
            if most == 1
            else f"{most} per size, spanning {span:.1f}x in tokens_per_param"
        )
        warnings.append(
            f"token budgets: {here}; {WANTED_BUDGETS} that span {WANTED_BUDGET_SPAN:g}x are recommended"
        )
    for name in sorted(common, key=str):
        sides = [float(n[(rung == name) & (family == one)].mean()) for one in families]
        mismatch = max(sides) / min(sides) - 1
        if exceeds(mismatch, MATCH_TOLERANCE):
            warnings.append(
                f"rung {name}: shapes differ by {mismatch:.1%} in FLOPs per token, more than {MATCH_TOLERANCE:.0%}"
            )
    if aspect_ratio is not None:
        warnings += _drift_warnings(rung, n, np.log(np.asarray(aspect_ratio, float)))
    if seed is not None and len(set(map(str, labels(seed)))) < 2:
        warnings.append(
            "no size has more than one seed, so the noise of a seed cannot be told from the random effect of a shape"
        )
    return warnings


def _drift_warnings(rung: NDArray[Any], n: Floats, log_aspect: Floats) -> Iterator[str]:
    names = list(dict.fromkeys(rung))
    if len(names) < 2:
        return
    # Every shape counts once, whatever its number of budgets and seeds.
    shapes = [np.unique(np.column_stack([np.log(n), log_aspect])[rung == r], axis=0) for r in names]
    size, aspect = np.array([one.mean(axis=0) for one in shapes]).T
    drift = float(np.polyfit(size - size.mean(), aspect, 1)[0] * np.ptp(size))
    if exceeds(abs(drift), MAX_DRIFT):
        yield (
            f"the mean ln(aspect ratio) of the two families drifts by {drift:+.2f} over the sizes, more than "
            f"{MAX_DRIFT}: with a curved optimum this looks like an exponent difference; add a third aspect ratio"
        )


def _range_warnings(family: NDArray[Any], families: list[Any], n: Floats) -> Iterator[str]:
    for name in families:
        sizes = n[family == name]
        factor = sizes.max() / sizes.min()
        if exceeds(MIN_SIZE_RANGE, factor):
            if count_distinct(sizes) == 1:
                yield f"{name}: there is only one size; use sizes that differ at least {MIN_SIZE_RANGE:g}-fold in N"
            else:
                yield f"{name}: the sizes differ {factor:.3g}-fold in N; use at least {MIN_SIZE_RANGE:g}-fold"


def count_distinct(values: Floats) -> int:
    """Return the number of distinct values; sorted neighbours within 0.1% count as one."""
    if not len(values):
        return 0
    ordered = np.sort(values)
    return 1 + int(exceeds(ordered[1:] / ordered[:-1], 1 + SAME).sum())


def labels(values: Labels) -> NDArray[Any]:
    """Return labels of any type as an array of objects, in which 1 and "1" stay different."""
    array = np.empty(len(values), dtype=object)
    array[:] = list(values)
    return array
