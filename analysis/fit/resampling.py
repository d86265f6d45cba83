"""Refits without, or with other weights on, whole clusters of runs. Warm starts, all at once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from analysis.arrays import Floats, Ints
from analysis.fit.levenberg_marquardt import Minima, Problem, minimise, start_grid


@dataclass(frozen=True)
class Replicates:
    """`theta` (replicates kept, size) of those that converged; `discarded` counts the others."""

    theta: Floats
    discarded: int

    @property
    def discarded_share(self) -> float:
        return self.discarded / (self.discarded + len(self.theta))


def codes(labels: NDArray[Any]) -> Ints:
    """Labels of any kind as 0, 1, 2, ... in order of appearance."""
    found: dict[Any, int] = {}
    return np.array([found.setdefault(label, len(found)) for label in labels], dtype=np.int64)


@dataclass(frozen=True)
class Solution:
    """A problem minimised once, from the full grid of starts. Jackknife, profile, permutation and bootstrap
    start from its `theta`. `cluster`: code per run of the runs that are deleted together.
    """

    problem: Problem
    starts: Floats
    minima: Minima
    cluster: Ints

    @property
    def theta(self) -> Floats:
        """Parameters at the lowest minimum, (size,)."""
        return self.minima.theta[self.minima.best]

    @cached_property
    def jackknife(self) -> Minima:
        """The fit without each cluster in turn, (clusters, size)."""
        return delete_one(self.problem, self.theta, self.cluster)


def solve(problem: Problem, cluster: Ints, seed: int = 0) -> Solution:
    """Minimise a problem from the full grid of starts; `seed` draws the random ones."""
    starts = start_grid(problem.law, problem.points, seed=seed)
    return Solution(problem, starts, minimise(problem, starts), cluster)


def delete_one(problem: Problem, theta: Floats, cluster: Ints) -> Minima:
    """The fit without each cluster in turn, (clusters, size)."""
    base = np.ones(len(problem.points)) if problem.weights is None else problem.weights
    weights = base * (cluster[None, :] != np.arange(cluster.max() + 1)[:, None])
    return minimise(replace(problem, weights=weights), np.repeat(theta[None], len(weights), 0))


def jackknife_error(values: Floats) -> Floats:
    """sqrt((G-1)/G sum (v_-g - mean)^2) over the first axis (Efron and Stein 1981)."""
    groups = len(values)
    return np.sqrt((groups - 1) / groups * ((values - values.mean(axis=0)) ** 2).sum(axis=0))


def cluster_weights(cluster: Ints, stratum: Ints, replicates: int, seed: int) -> Floats:
    """How often each run is in each resample, (replicates, n): clusters drawn with replacement
    within their stratum (a family), so that no family ever vanishes.
    """
    generator = np.random.default_rng(seed)
    weights = np.zeros((replicates, int(cluster.max()) + 1))
    for one in np.unique(stratum):
        mine = np.unique(cluster[stratum == one])
        weights[:, mine] = generator.multinomial(
            len(mine), np.full(len(mine), 1 / len(mine)), size=replicates
        )
    return weights[:, cluster]


def cluster_bootstrap(
    problem: Problem,
    theta: Floats,
    cluster: Ints,
    stratum: Ints,
    *,
    replicates: int = 999,
    seed: int = 0,
) -> Replicates:
    """Refits of resampled clusters. A resample with under two distinct sizes in a family, or whose fit
    did not converge, is discarded and counted.
    """
    weights = cluster_weights(cluster, stratum, replicates, seed)
    enough = np.ones(replicates, dtype=bool)
    for one in np.unique(stratum):
        mine = stratum == one
        first = np.array(
            [np.flatnonzero(mine & (cluster == c))[0] for c in np.unique(cluster[mine])]
        )
        enough &= (weights[:, first] > 0).sum(axis=1) >= min(2, len(first))
    kept = weights[enough]
    found = minimise(replace(problem, weights=kept), np.repeat(theta[None], len(kept), 0))
    return Replicates(found.theta[found.converged], replicates - int(found.converged.sum()))


def bootstrap_interval(
    drawn: Floats, estimate: float, deleted: Floats | None = None, level: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of replicates (sets,); with delete-one values BCa (Efron 1987).

    Percentiles are kept for few clusters, where the acceleration is itself a guess.
    """
    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    if deleted is not None:
        below = np.clip(
            (drawn < estimate).mean(), 1 / (len(drawn) + 1), len(drawn) / (len(drawn) + 1)
        )
        bias = special.ndtri(below)
        apart = deleted.mean() - deleted
        scale = 6 * ((apart**2).sum()) ** 1.5
        acceleration = 0.0 if scale == 0 else float((apart**3).sum()) / scale
        z = bias + special.ndtri(tails)
        tails = special.ndtr(bias + z / (1 - acceleration * z))
    low, high = np.quantile(drawn, tails)
    return float(low), float(high)
