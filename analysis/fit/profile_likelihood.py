"""Profile-likelihood intervals: fix a parameter, refit all others, and compare the residual sum of squares.

A value is accepted if RSS(value) <= RSS_min (1 + t^2 / df), with df = n - p and t the 97.5% quantile. The cut t^2
can be multiplied by an inflation factor for runs that are not independent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy import special

from analysis.arrays import Floats
from analysis.fit.law import ALPHA, BETA, jacobian, log_loss
from analysis.fit.levenberg_marquardt import NOISE_FREE, Problem, minimise
from slm.rounding import pseudoinverse

# Distances of the profiled values from the estimate, in half widths of the naive interval.
STEPS = (0.5, 0.8, 1.0, 1.2, 1.5, 2.0, 3.0, 5.0, 10.0)


@dataclass(frozen=True)
class Interval:
    """An accepted range; `open_low`, `open_high`: the end is a bound of the search, not a rejected value."""

    low: float
    high: float
    open_low: bool = False
    open_high: bool = False

    @property
    def width(self) -> float:
        return self.high - self.low


def quantile_t(df: float, level: float = 0.95) -> float:
    """Return the two-sided t quantile of a confidence level."""
    return float(special.stdtrit(df, (1 + level) / 2))


def naive_covariance(problem: Problem, theta: Floats) -> Floats:
    """Return the least-squares covariance s^2 (J'J)^-1 for independent runs, shape (size, size)."""
    predicted, shares = log_loss(problem.law, theta[None], problem.points)
    slope = jacobian(problem.law, shares, problem.points)[0]
    residual = problem.points.y - predicted[0]
    variance = float(residual @ residual) / residual_df(problem)
    norms = np.linalg.norm(slope, axis=1)
    norms[norms == 0] = 1.0
    inverse = pseudoinverse(slope.T / norms) / norms[:, None]
    return variance * inverse @ inverse.T


def profile(problem: Problem, theta: Floats, parameter: int, inflation: float = 1.0) -> Interval:
    """Return the 95% interval of one parameter, by index, of a least-squares fit.

    `inflation`: factor of the cut, for example (jackknife SE / naive SE)^2.
    """
    variance = float(naive_covariance(problem, theta)[parameter, parameter])
    half = math.sqrt(max(variance * inflation, 0.0))
    values = _values(theta[parameter], half * quantile_t(residual_df(problem)), problem, parameter)
    sets = len(values)
    low, high = (np.repeat(box[None], sets, 0) for box in (problem.low, problem.high))
    low[:, parameter] = high[:, parameter] = values
    starts = np.repeat(theta[None], sets, 0)
    starts[:, parameter] = values
    lowest = max(float(problem.objective(theta[None])[0]), NOISE_FREE * len(problem.points))
    objective = minimise(replace(problem, low=low, high=high), starts).objective
    return _accepted(problem, float(theta[parameter]), values, objective / lowest, inflation)


def profile_contrast(
    problem: Problem,
    theta: Floats,
    pair: tuple[int, int],
    inflation: float = 1.0,
) -> Interval:
    """Return the 95% interval of alpha[pair[0]] - alpha[pair[1]], for two family indices with separate alphas.

    Both exponents stay within their bounds, so the profiled differences cover the range that the bounds allow.
    """
    law = problem.law
    first, second = law.slots[ALPHA][list(pair)]
    estimate = float(theta[first] - theta[second])
    contrast = np.zeros(law.size)
    contrast[first], contrast[second] = 1.0, -1.0
    variance = float(contrast @ naive_covariance(problem, theta) @ contrast)
    half = math.sqrt(max(variance * inflation, 0.0))
    steps = np.array([0.0, *STEPS]) * half * quantile_t(residual_df(problem))
    box = problem.low[first] - problem.high[second], problem.high[first] - problem.low[second]
    values = np.concatenate([estimate - steps, estimate + steps, np.linspace(*box, 13)])
    values = np.unique(np.clip(values, *box))
    tied = replace(law, tied=pair)
    is_first = problem.points.family == pair[0]
    points = replace(problem.points, tilt=-values[:, None] * (problem.points.x * is_first))
    null = Problem.of(tied, points, weights=problem.weights)
    shared = int(tied.slots[ALPHA][pair[0]])
    low, high = (np.repeat(side[None], len(values), 0) for side in (null.low, null.high))
    low[:, shared] = np.maximum(problem.low[second], problem.low[first] - values)
    high[:, shared] = np.minimum(problem.high[second], problem.high[first] - values)
    null = replace(null, low=low, high=high)
    starts = np.repeat(tied.embed(law, theta[None]), len(values), 0)
    starts[:, shared] = theta[second]
    lowest = max(float(problem.objective(theta[None])[0]), NOISE_FREE * len(problem.points))
    objective = minimise(null, starts).objective
    return _accepted(problem, estimate, values, objective / lowest, inflation)


def residual_df(problem: Problem) -> int:
    """Return the degrees of freedom of the residuals, at least 1; a parameter with equal bounds is not estimated."""
    free = int(np.count_nonzero(problem.high > problem.low))
    return max(len(problem.points) - free, 1)


def _values(estimate: float, half: float, problem: Problem, parameter: int) -> Floats:
    """Return the values to profile, on both sides up to the bounds; evenly spaced if the naive width is large."""
    low, high = float(problem.low[parameter]), float(problem.high[parameter])
    if problem.law.roles[parameter] not in (ALPHA, BETA) and high > 50:  # ln A, ln B: no real bound
        low, high = estimate - 20.0, estimate + 20.0
    near = np.array(STEPS) * half
    far = np.linspace(0, 1, 9)[1:] if half > (high - low) / 10 else np.array([1.0])
    below = np.concatenate([estimate - near, estimate + (low - estimate) * far])
    above = np.concatenate([estimate + near, estimate + (high - estimate) * far])
    return np.unique(np.clip(np.concatenate([below, [estimate], above]), low, high))


def _accepted(
    problem: Problem, estimate: float, values: Floats, ratio: Floats, inflation: float
) -> Interval:
    df = residual_df(problem)
    return _interval(estimate, values, (ratio - 1) * df / inflation, quantile_t(df))


def _interval(estimate: float, values: Floats, excess: Floats, cut: float) -> Interval:
    """Return where the root of the excess crosses the cut, by linear interpolation on each side.

    The root is nearly linear in the parameter, the excess itself is nearly quadratic.
    """
    root = np.sqrt(np.maximum(excess, 0.0))
    ends: list[float] = []
    is_open: list[bool] = []
    for sign in (-1, 1):
        side = values[(values - estimate) * sign > 0]
        roots = root[(values - estimate) * sign > 0]
        order = np.argsort(np.abs(side - estimate), kind="stable")
        xs, ys = np.concatenate([[estimate], side[order]]), np.concatenate([[0.0], roots[order]])
        beyond = np.flatnonzero(ys > cut)
        if not len(beyond):
            ends.append(float(xs[-1]))
            is_open.append(True)
            continue
        j = int(beyond[0])
        share = (cut - ys[j - 1]) / (ys[j] - ys[j - 1])
        ends.append(float(xs[j - 1] + share * (xs[j] - xs[j - 1])))
        is_open.append(False)
    return Interval(ends[0], ends[1], is_open[0], is_open[1])
