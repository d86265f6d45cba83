"""The compute multiplier kappa = C_wide / C_deep at equal loss: what the better shape saves.

Each family's envelope is the lower convex hull of its runs in ln C and ln L, joined by a monotone cubic
(PCHIP). kappa needs neither a law nor a unit. On compute-optimal envelopes equal exponents with a shared E
make it constant, so a slope of ln kappa in ln C speaks of exponents; with few token budgets it drifts a
little by itself, so the slope is compared with the one that the law M1 (levels alone) predicts for the
same runs. What is reported with an interval comes from the frontiers of the law (`analysis.fit.frontier`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy.interpolate import PchipInterpolator

from analysis.arrays import Floats
from analysis.compare.exponents import FittedStudy
from analysis.design.identifiability import count_distinct
from analysis.fit.frontier import Frontier, largest_common_flops, log_multiplier
from analysis.fit.law import JointLaw, log_loss
from analysis.fit.levenberg_marquardt import Problem, minimise
from analysis.fit.profile_likelihood import quantile_t
from analysis.fit.resampling import bootstrap_interval, cluster_bootstrap, codes, jackknife_error
from analysis.formatting import format_interval, format_number, power_of_ten
from slm.rounding import exceeds, merge_close, snap_to_zero
from slm.summary import Rows, Summarized

LEVELS = 9  # losses at which the slope is taken
ENOUGH_FOR_BCA = 10  # shapes of a family
MIN_POINTS = 3  # runs of a family that no cheaper one beats


@dataclass(frozen=True, repr=False)
class Kappa(Summarized):
    """kappa over the losses that both families reach, from the runs themselves.

    `at_largest`: at the loss of the worse family where the envelopes' common FLOPs end. Above 1 deep needs
    fewer FLOPs: 1 / kappa of those of wide. `slope`: d ln kappa / d ln C, `drift`: the same as M1 predicts
    it for these runs. `by_law`: between the frontiers of M2 at `at_flops`, the largest FLOPs that both
    families were run at, which averages the random effects of shapes; `interval` is its 95% by the
    jackknife over shapes, `bootstrap_interval` by the bootstrap of shapes (`replicates`, of them
    `discarded`), which is a little too narrow for few shapes. Without a law `at_flops` is that of at_largest.
    """

    loss: tuple[float, ...]
    flops: tuple[float, ...]
    values: tuple[float, ...]
    at_largest: float
    at_flops: float
    slope: float
    drift: float | None = None
    by_law: float | None = None
    interval: tuple[float, float] | None = None
    bootstrap_interval: tuple[float, float] | None = None
    replicates: int = 0
    discarded: int = 0

    @property
    def excess_slope(self) -> float:
        """Slope beyond what levels alone explain; positive if deep gains with scale."""
        return self.slope - (self.drift or 0.0)

    @property
    def estimate(self) -> float:
        """By the law if there is one, else from the runs."""
        return self.at_largest if self.by_law is None else self.by_law

    @property
    def text(self) -> str:
        """The estimate with its 95% interval, without a unit."""
        low, high = self.interval or (math.nan, math.nan)
        return format_interval(self.estimate, low, high, signed=False, digits=3)

    def title(self) -> str:
        return (
            f"compute multiplier, FLOPs of wide / FLOPs of deep at equal loss: {self.text} at "
            f"{power_of_ten(self.at_flops)} FLOPs"
        )

    def details(self) -> Iterator[tuple[str, str]]:
        yield "95% interval", "not computed" if self.interval is None else "jackknife over shapes"
        if self.bootstrap_interval is not None:
            low, high = self.bootstrap_interval
            yield (
                "bootstrap interval",
                f"[{low:.3f}, {high:.3f}], {self.replicates} replicates, {self.discarded} discarded",
            )
        yield "from the runs", f"{self.at_largest:.3f} at loss {self.loss[0]:.4f} nats/token"
        drift = format_number(self.drift, signed=True)
        yield (
            "slope per ln FLOPs",
            f"{format_number(self.slope, signed=True)}, of which {drift} by levels alone",
        )

    def rows(self) -> Rows:
        """Return one row per loss."""
        return [
            {
                "loss, nats/token": f"{loss:.4f}",
                "FLOPs": power_of_ten(flops),
                "compute multiplier": f"{value:.3f}",
            }
            for loss, flops, value in zip(self.loss, self.flops, self.values, strict=True)
        ]


@dataclass(frozen=True)
class Envelope:
    """ln C and ln L of the lower convex hull, cheapest first. `runs`: how many no cheaper one beats, of
    `sizes` values of N.
    """

    log_c: Floats
    log_loss: Floats
    runs: int
    sizes: int


def envelope(flops: Floats, loss: Floats, n: Floats) -> Envelope:
    """What a family reaches for its FLOPs.

    Runs that no cheaper run beats, less those that lie above a line between two others: a frontier is
    convex, and a run barely better than a cheaper one would make the inverse nearly vertical.
    """
    flops = merge_close(flops)
    order = np.lexsort((n, merge_close(loss), flops))
    best, kept = math.inf, []
    for row in order:
        if exceeds(best, loss[row]):
            best = float(loss[row])
            kept.append(row)
    log_c, log_loss = np.log(flops[kept]), np.log(loss[kept])
    hull = _lower_hull(log_c, log_loss)
    return Envelope(log_c[hull], log_loss[hull], len(kept), count_distinct(n[kept]))


def _lower_hull(x: Floats, y: Floats) -> list[int]:
    """Indices of the points below which none lies, for x ascending (Andrew's monotone chain); of points on
    one line the ends.
    """
    hull: list[int] = []
    for at in range(len(x)):
        while len(hull) > 1:
            i, j = hull[-2:]
            if exceeds((y[at] - y[i]) * (x[j] - x[i]), (y[j] - y[i]) * (x[at] - x[i])):
                break
            hull.pop()
        hull.append(at)
    return hull


def multiplier(deep: Envelope, wide: Envelope) -> Kappa | None:
    """kappa between two envelopes; None if they share no loss."""
    sides = (deep, wide)
    if min(one.runs for one in sides) < MIN_POINTS:
        return None
    end = min(one.log_c[-1] for one in sides)
    low = max(float(PchipInterpolator(one.log_c, one.log_loss)(end)) for one in sides)
    high = min(one.log_loss[0] for one in sides)
    if not snap_to_zero(high - low) > 0:
        return None
    levels = np.linspace(low, high, LEVELS)
    costs = [PchipInterpolator(one.log_loss[::-1], one.log_c[::-1])(levels) for one in sides]
    log_kappa, log_c = costs[1] - costs[0], (costs[0] + costs[1]) / 2
    slope = float(np.polyfit(log_c, log_kappa, 1)[0])
    return Kappa(
        loss=tuple(np.exp(levels)),
        flops=tuple(np.exp(log_c)),
        values=tuple(np.exp(log_kappa)),
        at_largest=float(np.exp(log_kappa[0])),
        at_flops=float(np.exp(end)),
        slope=slope,
    )


@dataclass(frozen=True)
class Cells:
    """Runs of one family by shape and token count, seeds together. `seeds` (cells, runs) averages."""

    flops: Floats
    n: Floats
    seeds: Floats

    @classmethod
    def of(cls, table: pd.DataFrame, family: str) -> Cells:
        mine = np.flatnonzero(table["family"] == family)
        keys = list(zip(table["shape"], table["tokens"], strict=True))
        cell = codes(np.array([f"{keys[row]}" for row in mine], dtype=object))
        seeds = np.zeros((cell.max() + 1, len(table)))
        seeds[cell, mine] = 1.0
        first = np.array([mine[np.flatnonzero(cell == one)[0]] for one in range(len(seeds))])
        flops, n = (table[column].to_numpy()[first] for column in ("flops", "n"))
        return cls(flops, n, seeds / seeds.sum(axis=1, keepdims=True))

    def envelope(self, loss: Floats) -> Envelope:
        return envelope(self.flops, self.seeds @ loss, self.n)


def _kappa(cells: list[Cells], loss: Floats) -> Kappa | None:
    deep, wide = (side.envelope(loss) for side in cells)
    return multiplier(deep, wide)


def compute_multiplier(known: FittedStudy, bootstrap: int = 999, seed: int = 0) -> Kappa | None:
    """kappa of a study with its interval and the drift that M1 predicts; None if there is no common loss."""
    table = known.study.table
    cells = [Cells.of(table, name) for name in (known.study.deep, known.study.wide)]
    found = _kappa(cells, table["loss_nats_per_token"].to_numpy())
    if found is None:
        return None
    levels_alone = _kappa(cells, _levels_alone(known))
    found = replace(found, drift=0.0 if levels_alone is None else levels_alone.slope)
    deep, wide = (
        Frontier.of(table, known.problem.points, known.study.families[family], family)
        for family in known.families
    )
    frontiers = (deep, wide)
    estimate = float(log_multiplier(frontiers, known.law, known.theta[None])[0])
    deleted = log_multiplier(frontiers, known.law, known.deleted.theta)
    if not math.isfinite(estimate) or not np.isfinite(deleted).all():
        return found
    half = quantile_t(known.df) * float(jackknife_error(deleted))
    found = replace(
        found,
        at_flops=math.exp(largest_common_flops(frontiers)),
        by_law=math.exp(estimate),
        interval=(math.exp(estimate - half), math.exp(estimate + half)),
    )
    if not bootstrap:
        return found
    drawn = cluster_bootstrap(
        known.problem,
        known.theta,
        known.shape,
        known.problem.points.family,
        replicates=bootstrap,
        seed=seed,
    )
    values = log_multiplier(frontiers, known.law, drawn.theta)
    values = values[np.isfinite(values)]
    found = replace(found, replicates=bootstrap, discarded=bootstrap - len(values))
    if not len(values):
        return found
    fewest = min(len(set(known.shape[known.problem.points.family == f])) for f in known.families)
    ends = bootstrap_interval(values, estimate, deleted if fewest >= ENOUGH_FOR_BCA else None)
    return replace(found, bootstrap_interval=(math.exp(ends[0]), math.exp(ends[1])))


def _levels_alone(known: FittedStudy) -> Floats:
    """Losses of the study's runs as the law with one exponent for all families predicts them."""
    law = JointLaw("M1", known.law.families)
    points = known.problem.points
    found = minimise(Problem.of(law, points), law.embed(known.law, known.theta[None])).theta
    return np.exp(log_loss(law, found, points)[0][0])
