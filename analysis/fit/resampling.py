"""Jackknife and bootstrap over clusters of runs. All refits run at once and start from the full fit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from analysis.arrays import Floats, Ints
from analysis.fit.law import Points
from analysis.fit.levenberg_marquardt import Minima, Problem, minimise, start_grid


@dataclass(frozen=True)
class Replicates:
    """Bootstrap replicates: `theta` of those that converged, shape (kept, size); `discarded` counts the others."""

    theta: Floats
    discarded: int

    @property
    def discarded_share(self) -> float:
        return self.discarded / (self.discarded + len(self.theta))


@dataclass(frozen=True)
class Solution:
    """A problem solved once, from the full grid of starts.

    Jackknife, profile likelihood, permutation test and bootstrap start from its `theta`. `cluster`: cluster index
    of each run; the runs of a cluster are deleted together.
    """

    problem: Problem
    starts: Floats
    minima: Minima
    cluster: Ints

    @property
    def theta(self) -> Floats:
        """Parameters at the lowest minimum, shape (size,)."""
        return self.minima.theta[self.minima.best]

    @cached_property
    def jackknife(self) -> Minima:
        """Delete-one-cluster fits, `theta` of shape (clusters, size)."""
        return delete_one(self.problem, self.theta, self.cluster)


def solve(problem: Problem, cluster: Ints, seed: int = 0) -> Solution:
    """Minimise a problem from the full grid of starts; `seed` is that of the random starts."""
    starts = start_grid(problem.law, problem.points, seed=seed)
    return Solution(problem, starts, minimise(problem, starts), cluster)


def delete_one(problem: Problem, theta: Floats, cluster: Ints) -> Minima:
    """Refit without each cluster in turn; `theta` of the result has shape (clusters, size)."""
    base = np.ones(len(problem.points)) if problem.weights is None else problem.weights
    weights = base * (cluster[None, :] != np.arange(cluster.max() + 1)[:, None])
    return minimise(replace(problem, weights=weights), np.repeat(theta[None], len(weights), 0))


def jackknife_error(values: Floats) -> Floats:
    """Return the jackknife standard error over the first axis, sqrt((G-1)/G sum (v_-g - mean)^2).

    Efron and Stein (1981).
    """
    groups = len(values)
    return np.sqrt((groups - 1) / groups * ((values - values.mean(axis=0)) ** 2).sum(axis=0))


def cluster_weights(cluster: Ints, stratum: Ints, replicates: int, seed: int) -> Floats:
    """Return how often each run is in each bootstrap resample, shape (replicates, n).

    Clusters are drawn with replacement within their stratum (family), so that every family stays in the sample.
    """
    generator = np.random.default_rng(seed)
    weights = np.zeros((replicates, int(cluster.max()) + 1))
    for name in np.unique(stratum):
        members = np.unique(cluster[stratum == name])
        weights[:, members] = generator.multinomial(
            len(members), np.full(len(members), 1 / len(members)), size=replicates
        )
    return weights[:, cluster]


def codes_by_numbers(codes: Ints, points: Points) -> Ints:
    """Return codes of the same groups of runs, in the order of N, tokens and loss of their runs."""
    runs = np.round(np.column_stack([points.x, points.z, points.y]), 9)
    found = {code: sorted(map(tuple, runs[codes == code])) for code in np.unique(codes)}
    rank = {code: place for place, code in enumerate(sorted(found, key=found.__getitem__))}
    return np.array([rank[code] for code in codes], dtype=np.int64)


def cluster_bootstrap(
    problem: Problem,
    theta: Floats,
    cluster: Ints,
    stratum: Ints,
    *,
    replicates: int = 999,
    seed: int = 0,
) -> Replicates:
    """Refit to bootstrap resamples of clusters; the draws do not depend on the codes of clusters and strata.

    A resample with fewer than two distinct clusters in a stratum, or whose fit does not converge, is discarded
    and counted.
    """
    cluster, stratum = (codes_by_numbers(codes, problem.points) for codes in (cluster, stratum))
    weights = cluster_weights(cluster, stratum, replicates, seed)
    enough = np.ones(replicates, dtype=bool)
    for name in np.unique(stratum):
        rows = stratum == name
        first = np.array(
            [np.flatnonzero(rows & (cluster == c))[0] for c in np.unique(cluster[rows])]
        )
        enough &= (weights[:, first] > 0).sum(axis=1) >= min(2, len(first))
    kept = weights[enough]
    minima = minimise(replace(problem, weights=kept), np.repeat(theta[None], len(kept), 0))
    return Replicates(minima.theta[minima.converged], replicates - int(minima.converged.sum()))
