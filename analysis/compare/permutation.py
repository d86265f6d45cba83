"""Permutation tests within matched pairs of shapes: what differs if labels, or signs, were exchanged.

Exact where all 2^k labelings of k pairs are tried, else a random sample with the observed one in it. A
statistic that equals the observed one as closely as a fit converges counts as reaching it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.arrays import Floats, Ints
from analysis.fit.law import ALPHA, log_loss
from analysis.fit.levenberg_marquardt import NOISE_FREE, Problem, minimise
from analysis.formatting import count, format_p_value
from slm.rounding import ITERATION_TOLERANCE, snap_to_zero
from slm.summary import Summarized

ALL_LABELINGS_UP_TO = 12  # pairs; with more, 4095 random labelings and the observed one are used


def sign_patterns(pairs: int, generator: np.random.Generator) -> Floats:
    """Return sign patterns, shape (labelings, pairs): the observed one (all +1) first, all 2^pairs if few pairs."""
    if pairs <= ALL_LABELINGS_UP_TO:
        bits = (np.arange(2**pairs)[:, None] >> np.arange(pairs)) & 1
        return 1.0 - 2.0 * bits.astype(np.float64)
    drawn = generator.choice([-1.0, 1.0], size=(2**ALL_LABELINGS_UP_TO, pairs))
    drawn[0] = 1.0
    return drawn


@dataclass(frozen=True, repr=False)
class Permutation(Summarized):
    """`p`: share of labelings at least as extreme as the observed, which is one of them."""

    p: float
    labelings: int
    pairs: int
    exact: bool

    @property
    def smallest_p(self) -> float:
        """No data of this design could give less."""
        return 2 / self.labelings

    def title(self) -> str:
        labelings = count(self.labelings, "labeling" if self.exact else "random labeling")
        return f"permutation test: {format_p_value(self.p)}, {labelings} of {count(self.pairs, 'pair')}"


@dataclass(frozen=True)
class Pairing:
    """Which runs stand opposite each other. `rung` per run, -1 where it has no partner; `cell` a number
    per rung and token budget; `is_deep`, `is_wide` per run.
    """

    rung: Ints
    cell: Ints
    is_deep: NDArray[np.bool_]
    is_wide: NDArray[np.bool_]

    @property
    def pairs(self) -> int:
        return int(self.rung.max()) + 1

    def signs_of(self, patterns: Floats) -> Floats:
        """Signs per run (labelings, n) from those per pair; +1 where there is no partner."""
        return np.where(self.rung >= 0, patterns[:, self.rung], 1.0)


def pairing(
    rung: NDArray[Any], tokens: Floats, is_deep: NDArray[Any], is_wide: NDArray[Any]
) -> Pairing:
    """Pair the runs of two families that share a rung and a token count."""
    cells: dict[tuple[Any, float], int] = {}
    cell = np.full(len(rung), -1)
    pair = np.full(len(rung), -1)
    pairs: dict[Any, int] = {}
    for row, key in enumerate(zip(rung, tokens, strict=True)):
        same = (rung == key[0]) & (tokens == key[1])
        if (is_deep[row] or is_wide[row]) and (same & is_deep).any() and (same & is_wide).any():
            cell[row] = cells.setdefault(key, len(cells))
            pair[row] = pairs.setdefault(key[0], len(pairs))
    return Pairing(pair, cell, np.asarray(is_deep, bool), np.asarray(is_wide, bool))


def any_difference(
    problem: Problem, theta: Floats, pairs: Pairing, families: tuple[int, int], *, seed: int = 0
) -> Permutation:
    """Do the two families differ in anything (M0 against M2)? Labels are swapped within pairs.

    The statistic is the residual sum of squares of the law under the swapped labels: the family-blind
    law is the same for all of them.
    """
    signs = pairs.signs_of(sign_patterns(pairs.pairs, np.random.default_rng(seed)))
    deep, wide = families
    swapped = np.where(pairs.is_deep, wide, np.where(pairs.is_wide, deep, problem.points.family))
    labels = np.where(signs < 0, swapped, problem.points.family)
    relabeled = replace(problem, points=replace(problem.points, family=labels))
    starts = np.repeat(theta[None], len(labels), 0)
    objective = minimise(relabeled, starts).objective
    objective = np.minimum(objective, _of_opposite(objective, pairs))
    as_extreme = objective <= objective[0] * (1 + ITERATION_TOLERANCE) + NOISE_FREE * len(
        problem.points
    )
    return _permutation(as_extreme, pairs)


def exponent_difference(
    problem: Problem, theta: Floats, pairs: Pairing, families: tuple[int, int], *, seed: int = 0
) -> Permutation:
    """Do the exponents differ, whatever the levels do (M1 against M2)? Approximate.

    The residuals of the law with one exponent for both families have the sign of their differences
    within pairs flipped, and the law is refitted (Freedman and Lane 1983). Swapping labels would test
    the levels too.
    """
    law, points = problem.law, problem.points
    tied = replace(law, tied=families)
    common = minimise(Problem.of(tied, points), tied.embed(law, theta[None])).theta
    predicted = log_loss(tied, common, points)[0][0]
    residual = points.y - predicted
    signs = pairs.signs_of(sign_patterns(pairs.pairs, np.random.default_rng(seed)))
    flipped = residual + (signs - 1) * _half_differences(residual, pairs)
    refit = replace(problem, points=replace(points, y=predicted + flipped))
    starts = np.repeat(law.embed(tied, common), len(signs), 0)
    found = minimise(refit, starts).theta
    first, second = law.slots[ALPHA][list(families)]
    statistic = np.abs(snap_to_zero(found[:, first] - found[:, second]))
    statistic = np.maximum(statistic, _of_opposite(statistic, pairs))
    return _permutation(statistic >= statistic[0] * (1 - ITERATION_TOLERANCE), pairs)


def _of_opposite(statistic: Floats, pairs: Pairing) -> Floats:
    """The statistic of the opposite labeling, which is the same but for what tells a pair's sizes apart:
    the two count as one, so that no p is below 2 / 2^k. A sample of labelings lacks the opposites.
    """
    return statistic[::-1] if pairs.pairs <= ALL_LABELINGS_UP_TO else statistic


def _half_differences(residual: Floats, pairs: Pairing) -> Floats:
    """Half the difference of a cell's mean residuals, + for deep runs, - for wide ones, 0 unpaired."""
    half = np.zeros(len(residual))
    for cell in range(int(pairs.cell.max()) + 1):
        deep, wide = ((pairs.cell == cell) & side for side in (pairs.is_deep, pairs.is_wide))
        gap = (residual[deep].mean() - residual[wide].mean()) / 2
        half[deep], half[wide] = gap, -gap
    return half


def _permutation(as_extreme: NDArray[np.bool_], pairs: Pairing) -> Permutation:
    return Permutation(
        p=float(as_extreme.mean()),
        labelings=len(as_extreme),
        pairs=pairs.pairs,
        exact=pairs.pairs <= ALL_LABELINGS_UP_TO,
    )
