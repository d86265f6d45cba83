"""Loss difference of two families at equal time per token, and the time multiplier at equal loss.

**Times.** ln(seconds per token) of a family is linear in ln N between its measured shapes (geometric mean over rounds).
Nothing is extrapolated: estimates stay within the measured sizes of each family. A larger shape that is faster counts:
N_f(t) is the largest N of family f whose time is at most t, and t_f(N) the least time of a size of at least N.

**Losses.** By the block model the loss of family f at equal tokens D is mu(D) + g_f(N) with g_f(N) = s(N) (1 + q_f(N)),
q_f = h1 u_f + h2 u_f^2 - gamma u_f x(N) and the mean u_f of the family (plus E u_f in the model with E free). mu cancels.

**Level at equal time**, at the largest time T that both families reach, the smaller one of the times of their largest
shapes, and at smaller times t:

    g_deep(N_deep(t)) - g_wide(N_wide(t)) = [s(N_deep) - s(N_wide)] + [s(N_deep) q_deep - s(N_wide) q_wide].

With N_deep = N_wide = N it is Delta(N), the loss difference at equal FLOPs, exactly. If the largest shape of one family
is faster than the smallest shape of the other, there is no such time: refused. The loss of the slower family at its
smallest size minus that of the faster one at its largest size is then a bound (`bound_without_common_time`).

**Time multiplier** rho = t_wide(N_wide) / t_deep(N_deep) at equal loss and equal tokens, g_deep(N_deep) = g_wide(N_wide);
above 1, deep needs less time. It is the analog of kappa and needs no common time. It is given at the lowest loss that
both families reach, where the family with the higher loss is at its largest size, and at higher losses. Exchanging the
families gives 1 / rho.

**Variance**, of level and of ln rho, is the sum of three parts that are independent to first order:

1. the coefficients c = (h1, h2, gamma, E) of the block model: gradient' Cov(c) gradient;
2. the pooled law (A and alpha of s), which the block model holds fixed: delete-one-rung jackknife, (k - 1)/k times the sum
   of squared deviations, of the estimate with the law fitted without rung r and c estimated again with it
   (`analysis.block.effects.plug_in_fits`). At equal N this is the plug-in term of Delta; at different N it has the error
   of the slope s(N_deep) - s(N_wide) too;
3. the measured times: sum over shapes of (d estimate / d ln seconds)^2 SE^2, with SE = sd of ln(seconds) / sqrt(rounds).

Derivatives are central differences over one standard error; for them alone the curves are extended beyond their ends.
Where runs share no blocks, parts 1 and 2 are scaled up to the jackknife over shapes, as for Delta. Intervals are 95%, from
t with the degrees of freedom of Welch and Satterthwaite, (sum of v)^2 / sum of v^2/df over the parts v, rounded down: those
of the block model for part 1, k - 1 for part 2, rounds - 1 for each shape of part 3. They cover neither the error of the
interpolation between shapes nor another device. Simulated coverage: `tests/benchmarks/simulated_latency.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from analysis.arrays import Floats
from analysis.block.effects import Effects, Estimate, jackknife_covariance, plug_in_fits
from analysis.block.model import BlockFit
from slm.rounding import ROUNDING_TOLERANCE, exceeds, snap_to_zero

MIN_SHAPES = 2
GRID = 5  # rows of a table over times or losses
BEYOND = 5.0  # ln N beyond the measured sizes, for derivatives


@dataclass(frozen=True)
class MeasuredTimes:
    """Mean ln(seconds per token) of each measured shape over rounds, and its standard error (0 for one round)."""

    log_seconds: Floats
    se: Floats
    rounds: NDArray[np.int64]


@dataclass(frozen=True)
class TimeCurve:
    """Measured shapes of one family: ascending `log_n`, and `index`, their places in `MeasuredTimes`.

    The time at an ln N that several shapes share is the mean of their ln(seconds).
    """

    log_n: Floats
    index: NDArray[np.int64]

    @cached_property
    def sizes(self) -> Floats:
        """Return the distinct ln N in ascending order."""
        return self.log_n[self._starts]

    def times(self, log_seconds: Floats) -> Floats:
        """Return ln(seconds) at each of `sizes`."""
        numbers = np.diff(np.append(self._starts, len(self.log_n)))
        return np.add.reduceat(log_seconds[self.index], self._starts) / numbers

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        is_new = np.ones(len(self.log_n), dtype=bool)
        is_new[1:] = exceeds(np.diff(self.log_n), ROUNDING_TOLERANCE)
        return np.flatnonzero(is_new)

    def largest(self, log_t: float, log_seconds: Floats) -> float:
        """Return ln N of the largest size whose time is at most t."""
        x, y = self.sizes, self.times(log_seconds)
        below = np.flatnonzero(y <= log_t + ROUNDING_TOLERANCE)
        left = int(below[-1]) if len(below) else len(y) - 1 - int(np.argmin(y[::-1]))
        if left == len(y) - 1:
            if not y[left] > y[left - 1]:
                return float(x[left])
            left -= 1
        slope = (y[left + 1] - y[left]) / (x[left + 1] - x[left])
        return float(x[left] + (log_t - y[left]) / slope)

    def least(self, log_n: float, log_seconds: Floats) -> float:
        """Return the least ln(seconds) of a size of at least N."""
        x, y = self.sizes, self.times(log_seconds)
        left = int(np.clip(np.searchsorted(x, log_n) - 1, 0, len(x) - 2))
        slope = (y[left + 1] - y[left]) / (x[left + 1] - x[left])
        return float(min(y[left] + slope * (log_n - x[left]), y[x >= log_n].min(initial=math.inf)))

    def fastest(self, log_n: float, log_seconds: Floats) -> float:
        """Return ln N of the size with the time `least`: N, or a measured larger size that is faster."""
        y, x = log_seconds[self.index], self.log_n
        larger = np.flatnonzero(x > log_n + ROUNDING_TOLERANCE)
        if not len(larger):
            return log_n
        size = larger[int(np.argmin(y[larger]))]
        is_faster = y[size] <= self.least(log_n, log_seconds) + ROUNDING_TOLERANCE
        is_faster &= y[size] < np.interp(log_n, x, y) - ROUNDING_TOLERANCE
        return float(x[size]) if is_faster else log_n


@dataclass(frozen=True)
class EqualTime:
    """Level at one time per token."""

    seconds: float
    n_deep: float
    n_wide: float
    level: Estimate


@dataclass(frozen=True)
class EqualLoss:
    """Time multiplier at sizes of equal loss; seconds per token.

    The seconds are those of the sizes `n_run_deep` and `n_run_wide`: larger than n_deep and n_wide if a larger one is faster.
    """

    n_deep: float
    n_wide: float
    n_run_deep: float
    n_run_wide: float
    seconds_deep: float
    seconds_wide: float
    log_multiplier: Estimate


@dataclass(frozen=True)
class EqualTimeModel:
    """Block model and measured times of two families, (deep, wide)."""

    effects: Effects
    curves: tuple[TimeCurve, TimeCurve]
    times: MeasuredTimes

    @property
    def time_range(self) -> tuple[float, float]:
        """Smallest and largest ln(seconds per token) at which both families have a size; reversed if there is none."""
        times = [curve.times(self.times.log_seconds) for curve in self.curves]
        return float(max(y.min() for y in times)), float(min(y[-1] for y in times))

    @property
    def has_common_time(self) -> bool:
        low, high = self.time_range
        return not exceeds(low, high)

    @cached_property
    def fits(self) -> list[BlockFit]:
        """Return the fits with the pooled law without each rung."""
        return plug_in_fits(self.effects.fit)

    def levels(self, count: int = GRID) -> list[EqualTime]:
        """Return the level at the largest common time and at smaller ones, equally spaced in ln(seconds)."""
        low, high = self.time_range
        if not exceeds(high - low, ROUNDING_TOLERANCE):
            count = 1
        return [self.level_at(float(log_t)) for log_t in np.linspace(high, low, count)]

    def multipliers(self, count: int = GRID) -> list[EqualLoss]:
        """Return the multiplier at the lowest common loss and at higher ones; empty if there is no common loss."""
        fit = self.effects.fit
        ends = [(float(curve.log_n[0]), float(curve.log_n[-1])) for curve in self.curves]
        worse = int(self._loss(fit, 1, ends[1][1]) > self._loss(fit, 0, ends[0][1]))
        better = 1 - worse
        low, high = ends[worse]
        if self._loss(fit, better, ends[better][0]) <= self._loss(fit, worse, high):
            return []
        low = max(low, self._size_of_equal_loss(fit, better, ends[better][0]))
        return [self._multiplier(worse, float(log_n)) for log_n in np.linspace(high, low, count)]

    def bound_without_common_time(self) -> Estimate:
        """Return the loss of the slower family at its smallest size minus that of the faster one at its largest size."""
        slow = self.slower
        sizes = float(self.curves[slow].log_n[0]), float(self.curves[1 - slow].log_n[-1])

        def estimate(fit: BlockFit, _: Floats) -> float:
            return self._loss(fit, slow, sizes[0]) - self._loss(fit, 1 - slow, sizes[1])

        return self._estimate(estimate)

    @property
    def slower(self) -> int:
        """Return the family with the larger least time: 0 deep, 1 wide."""
        least = [float(curve.times(self.times.log_seconds).min()) for curve in self.curves]
        return int(least[1] > least[0])

    def level_at(self, log_t: float) -> EqualTime:
        """Return the level at a ln(seconds per token)."""

        def estimate(fit: BlockFit, log_seconds: Floats) -> float:
            deep, wide = (curve.largest(log_t, log_seconds) for curve in self.curves)
            return self._loss(fit, 0, deep) - self._loss(fit, 1, wide)

        deep, wide = (math.exp(one.largest(log_t, self.times.log_seconds)) for one in self.curves)
        return EqualTime(math.exp(log_t), deep, wide, self._estimate(estimate))

    def _multiplier(self, family: int, log_n: float) -> EqualLoss:
        """Return the multiplier where one family has a given size."""

        def logs(fit: BlockFit, log_seconds: Floats) -> list[tuple[float, float]]:
            sizes = [log_n, self._size_of_equal_loss(fit, family, log_n)]
            sizes = sizes if family == 0 else sizes[::-1]
            return [(x, c.least(x, log_seconds)) for x, c in zip(sizes, self.curves, strict=True)]

        def estimate(fit: BlockFit, log_seconds: Floats) -> float:
            (_, deep), (_, wide) = logs(fit, log_seconds)
            return wide - deep

        deep, wide = logs(self.effects.fit, self.times.log_seconds)
        runs = [
            math.exp(curve.fastest(x, self.times.log_seconds))
            for curve, (x, _) in zip(self.curves, (deep, wide), strict=True)
        ]
        return EqualLoss(
            n_deep=math.exp(deep[0]),
            n_wide=math.exp(wide[0]),
            n_run_deep=runs[0],
            n_run_wide=runs[1],
            seconds_deep=math.exp(deep[1]),
            seconds_wide=math.exp(wide[1]),
            log_multiplier=self._estimate(estimate),
        )

    def _loss(self, fit: BlockFit, family: int, log_n: float) -> float:
        """Return g_f, the loss of a family in nats up to a term of the tokens."""
        u = fit.blocks.u_wide if family else fit.blocks.u_deep
        scale = fit.law.size_term(math.exp(log_n))
        weights = fit.columns.contrast(scale, log_n - fit.columns.x_mean, u, u**2, u)
        return float(scale + weights @ fit.coef)

    def _size_of_equal_loss(self, fit: BlockFit, family: int, log_n: float) -> float:
        """Return ln N at which the other family has the loss of `family` at N; at most BEYOND its measured sizes."""
        from scipy.optimize import brentq  # late: planning must start fast

        loss, other = self._loss(fit, family, log_n), 1 - family
        low, high = (float(self.curves[other].log_n[end]) for end in (0, -1))

        def excess(x: float) -> float:
            return self._loss(fit, other, x) - loss

        low, high = low - BEYOND, high + BEYOND
        if excess(low) <= 0:
            return low
        return high if excess(high) >= 0 else float(brentq(excess, low, high, xtol=1e-12))

    def _estimate(self, function: Callable[[BlockFit, Floats], float]) -> Estimate:
        """Return a function of the fit and of the mean ln(seconds), with its standard error and degrees of freedom."""
        fit, y = self.effects.fit, self.times.log_seconds
        parts = [
            (self._inflation * variance, df)
            for variance, df in self._model_parts(lambda one: function(one, y))
        ]
        for index in np.flatnonzero(self.times.se > 0):
            step = np.zeros_like(y)
            step[index] = self.times.se[index]
            half = (function(fit, y + step) - function(fit, y - step)) / 2
            parts.append((half**2, int(self.times.rounds[index]) - 1))
        total = sum(variance for variance, _ in parts)
        if total == 0:  # times of one round, at a size where they do not change
            return Estimate(snap_to_zero(function(fit, y)), 0.0, fit.df)
        df = int(total**2 / sum(variance**2 / df for variance, df in parts) + ROUNDING_TOLERANCE)
        return Estimate(snap_to_zero(function(fit, y)), math.sqrt(total), max(df, 1))

    def _model_parts(self, function: Callable[[BlockFit], float]) -> list[tuple[float, int]]:
        """Return variance and degrees of freedom of two parts: of the coefficients and of the pooled law."""
        fit, gradient = self.effects.fit, []
        for index, step in enumerate(np.sqrt(np.diag(fit.covariance))):
            ends = [function(_moved(fit, index, sign * step)) for sign in (1, -1)]
            gradient.append((ends[0] - ends[1]) / (2 * step))
        coefficients = float(np.array(gradient) @ fit.covariance @ np.array(gradient))
        law = jackknife_covariance([np.array([function(one)]) for one in self.fits])
        return [(coefficients, fit.df), (float(law[0, 0]), max(len(self.fits) - 1, 1))]

    @cached_property
    def _inflation(self) -> float:
        """Factor on the variance of the model for unmatched runs: that of the level at equal FLOPs."""
        if self.effects.fit.blocks.is_matched:
            return 1.0
        at = math.log(self.effects.point.n)
        parts = self._model_parts(lambda fit: self._loss(fit, 0, at) - self._loss(fit, 1, at))
        return max(self.effects.level.se**2 / sum(variance for variance, _ in parts), 1.0)


def _moved(fit: BlockFit, index: int, step: float) -> BlockFit:
    coef = fit.coef.copy()
    coef[index] += step
    return replace(fit, coef=coef)
