"""IsoFLOP parabolas (Hoffmann et al. 2203.15556, approach 2): a secondary estimate, with known bias.

Per compute budget, a parabola of the loss in ln N near its minimum gives the best N; over budgets, its
slope in ln C. Even without noise the parabola is off: by a factor 1.009 with points within half a decade
of the minimum and 1.037 within one (2603.22339), and a grid that drifts with the budget biases the slope.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from analysis.arrays import Floats
from analysis.design.identifiability import count_distinct
from analysis.fit.diagnostics import Status
from analysis.fit.profile_likelihood import quantile_t
from analysis.formatting import count as told
from analysis.runs.validate import positive_columns
from slm.parabola import parabola_minimum
from slm.rounding import exceeds, first_argmin, merge_close, snap_to_zero

HALF_DECADE = 0.5 * math.log(10)
MIN_POINTS = 5
MIN_EACH_SIDE = 2
MIN_BUDGETS = 5
SAME_BUDGET = math.log(1.2)


@dataclass(frozen=True)
class Parabola:
    """One budget. `n_best` is None where the parabola is refused, with the reason."""

    flops: float
    points: int
    n_best: float | None = None
    loss_best: float | None = None
    curvature: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class IsoFlop:
    """N_best = k C^exponent over budgets, t interval of ordinary least squares. None where refused."""

    status: Status
    reasons: tuple[str, ...]
    parabolas: tuple[Parabola, ...]
    exponent: float | None = None
    interval: tuple[float, float] | None = None


def fit_isoflop(n: ArrayLike, flops: ArrayLike, loss: ArrayLike) -> IsoFlop:
    """Best N per compute budget and its exponent; budgets within 20% are one.

    Raises:
        DataError: if columns differ in length or hold values that cannot be.
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
    good = [one for one in parabolas if one.n_best is not None]
    if len(good) < MIN_BUDGETS:
        reason = (
            f"{len(good)} of {len(parabolas)} budgets have a minimum inside {MIN_POINTS} sizes or more; "
            f"{MIN_BUDGETS} are needed"
        )
        return IsoFlop("REFUSED", (reason,), parabolas)
    x = np.log([one.flops for one in good])
    line = stats.linregress(x, np.log(np.array([one.n_best for one in good], dtype=float)))
    half = quantile_t(len(good) - 2) * float(line.stderr)
    slope = float(line.slope)
    bias = "parabolas are biased, and the more so the farther their points lie from the minimum"
    return IsoFlop("WEAK", (bias,), parabolas, slope, (slope - half, slope + half))


def _parabola(log_n: Floats, loss: Floats, log_c: Floats) -> Parabola:
    flops = float(np.exp(log_c.mean()))
    centre = log_n[first_argmin(loss)]
    near = ~exceeds(np.abs(log_n - centre), HALF_DECADE)
    x, y = log_n[near] - centre, loss[near]
    count = count_distinct(np.exp(x))
    if count < MIN_POINTS:
        reason = (
            f"{told(count, 'size')} within half a decade of the minimum, {MIN_POINTS} are needed"
        )
        return Parabola(flops, count, reason=reason)
    best = parabola_minimum(x, y)
    if best is None:
        return Parabola(flops, count, reason="no minimum: the parabola opens downwards")
    beside = snap_to_zero(x - best.x)
    if min((beside < 0).sum(), (beside > 0).sum()) < MIN_EACH_SIDE:
        return Parabola(flops, count, reason="fewer than 2 sizes on one side of the minimum")
    return Parabola(flops, count, math.exp(centre + best.x), best.y, best.curvature)
