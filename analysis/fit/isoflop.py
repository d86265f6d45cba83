"""IsoFLOP parabolas (Hoffmann et al., arXiv 2203.15556, approach 2): a secondary estimate with known bias.

At each compute budget, a parabola of the loss in ln N near its minimum gives the optimal N; the exponent is the
slope of ln N_optimal in ln C over budgets. Even without noise the optimal N is biased: by a factor of 1.009 with
points within half a decade of the minimum and 1.037 within one decade (arXiv 2603.22339). A grid of N whose centre
drifts with the budget biases the exponent.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from analysis.arrays import Floats
from analysis.design.identifiability import count_distinct
from analysis.fit.diagnostics import Status
from analysis.fit.profile_likelihood import quantile_t
from analysis.formatting import count, format_interval, format_number, power_of_ten
from analysis.runs.validate import positive_columns
from slm.formatting import short_count
from slm.parabola import parabola_minimum
from slm.rounding import exceeds, first_argmin, merge_close, snap_to_zero
from slm.summary import Rows, Summarized

HALF_DECADE = 0.5 * math.log(10)
MIN_POINTS = 5
MIN_EACH_SIDE = 2
MIN_BUDGETS = 5
SAME_BUDGET = math.log(1.2)  # gap in ln C below which sorted runs belong to one budget


@dataclass(frozen=True)
class Parabola:
    """Parabola of one compute budget. `n_best` is None if the parabola is refused; `reason` says why."""

    flops: float
    points: int
    n_best: float | None = None
    loss_best: float | None = None
    curvature: float | None = None
    reason: str = ""


@dataclass(frozen=True, repr=False)
class IsoFlop(Summarized):
    """Fit of N_best = k C^exponent over budgets by ordinary least squares, with its 95% t interval.

    `exponent` and `interval` are None if the fit is refused.
    """

    status: Status
    reasons: tuple[str, ...]
    parabolas: tuple[Parabola, ...]
    exponent: float | None = None
    interval: tuple[float, float] | None = None

    def title(self) -> str:
        budgets = count(len(self.parabolas), "compute budget")
        return f"IsoFLOP, exponent of the best N in FLOPs, {budgets}: {self.status}"

    def details(self) -> Iterator[tuple[str, str]]:
        if self.exponent is not None:
            low, high = self.interval or (math.nan, math.nan)
            yield "exponent [95% CI]", format_interval(self.exponent, low, high, signed=False)
        for reason in self.reasons:
            yield "reason", reason

    def rows(self) -> Rows:
        """Return one row per compute budget."""
        return [
            {
                "FLOPs": power_of_ten(one.flops),
                "sizes": str(one.points),
                "best N": "-" if one.n_best is None else short_count(one.n_best),
                "loss there, nats/token": format_number(one.loss_best),
                "reason": one.reason,
            }
            for one in self.parabolas
        ]


def fit_isoflop(n: ArrayLike, flops: ArrayLike, loss: ArrayLike) -> IsoFlop:
    """Fit the optimal N per compute budget and its exponent in C; runs within 20% in FLOPs share a budget.

    Raises:
        DataError: if columns differ in length or have values that are not finite and above 0.
    """
    columns = positive_columns(n=n, flops=flops, loss=loss)
    log_n, log_c = np.log(columns["n"]), np.log(columns["flops"])
    order = np.lexsort((log_n, merge_close(columns["flops"])))
    group = np.concatenate([[0], np.cumsum(exceeds(np.diff(log_c[order]), SAME_BUDGET))])
    parabolas = tuple(
        _parabola(
            log_n[order][group == g], columns["loss"][order][group == g], log_c[order][group == g]
        )
        for g in range(int(group[-1]) + 1)
    )
    accepted = [parabola for parabola in parabolas if parabola.n_best is not None]
    if len(accepted) < MIN_BUDGETS:
        reason = (
            f"{len(accepted)} of {len(parabolas)} budgets have an interior minimum over at least {MIN_POINTS} sizes; "
            f"{MIN_BUDGETS} are needed"
        )
        return IsoFlop("REFUSED", (reason,), parabolas)
    x = np.log([parabola.flops for parabola in accepted])
    y = np.log(np.array([parabola.n_best for parabola in accepted], dtype=float))
    line = stats.linregress(x, y)
    half = quantile_t(len(accepted) - 2) * float(line.stderr)
    slope = float(line.slope)
    bias = "isoFLOP parabolas are biased; the bias grows with the distance of the points from the minimum"
    return IsoFlop("WEAK", (bias,), parabolas, slope, (slope - half, slope + half))


def _parabola(log_n: Floats, loss: Floats, log_c: Floats) -> Parabola:
    flops = float(np.exp(log_c.mean()))
    centre = log_n[first_argmin(loss)]
    near = ~exceeds(np.abs(log_n - centre), HALF_DECADE)
    x, y = log_n[near] - centre, loss[near]
    n_sizes = count_distinct(np.exp(x))
    if n_sizes < MIN_POINTS:
        reason = (
            f"{count(n_sizes, 'size')} within half a decade of the minimum, {MIN_POINTS} are needed"
        )
        return Parabola(flops, n_sizes, reason=reason)
    best = parabola_minimum(x, y)
    if best is None:
        return Parabola(flops, n_sizes, reason="no minimum: the parabola does not open upwards")
    offset = snap_to_zero(x - best.x)
    sides = (count_distinct(np.exp(x[side])) for side in (offset < 0, offset > 0))
    if min(sides) < MIN_EACH_SIDE:
        reason = f"fewer than {MIN_EACH_SIDE} sizes on one side of the minimum"
        return Parabola(flops, n_sizes, reason=reason)
    return Parabola(flops, n_sizes, math.exp(centre + best.x), best.y, best.curvature)
