"""Inference over shapes for the laws of `width_depth_law`: refits without or with resampled shapes, profiles, simulation.

Runs of one shape share its misfit, so that errors are computed over shapes, and beside them over runs for comparison.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from analysis.arrays import Floats, Ints
from analysis.examples.published.width_depth_law import LossLaw, minimise
from analysis.fit.profile_likelihood import Interval, quantile_t
from analysis.fit.resampling import cluster_weights, jackknife_error

PROFILED = (0.01, 0.05, *np.arange(0.1, 3.05, 0.1), 3.5, 4.0, 5.0, 5.99)  # values of an exponent


def without_each_shape(law: LossLaw, theta: Floats, shape: Ints) -> Floats:
    """Return the parameters of the fits without each shape, shape (shapes, parameters)."""
    kept = [(shape != left_out).astype(float) for left_out in range(int(shape.max()) + 1)]
    return np.array([minimise(law, theta, weights=weights).best for weights in kept])


def shape_bootstrap(
    law: LossLaw, theta: Floats, shape: Ints, replicates: int, seed: int = 0
) -> Floats:
    """Return the parameters of fits to resamples of whole shapes, shape (replicates, parameters)."""
    drawn = cluster_weights(shape, np.zeros_like(shape), replicates, seed)
    return np.array([minimise(law, theta, weights=weights).best for weights in drawn])


def held_out_errors(law: LossLaw, without: Floats, shape: Ints) -> Floats:
    """Return the error of ln L of each run, predicted by the fit without its shape, shape (n,)."""
    errors = np.array([law.residuals(theta) for theta in without])
    return np.asarray(errors[shape, np.arange(len(law.y))])


def profile(law: LossLaw, theta: Floats, name: str, values: Sequence[float] | Floats) -> Floats:
    """Return (RSS(value) / RSS - 1) df of a parameter's values: its square root is a t statistic.

    Each value starts from the fit and from the optimum of the value before it, on the way out from the estimate.
    """
    estimate = float(theta[law.names.index(name)])
    lowest = float((law.residuals(theta) ** 2).sum()) / 2
    excess = np.empty(len(values))
    for is_side in (np.asarray(values) >= estimate, np.asarray(values) < estimate):
        side = np.flatnonzero(is_side)
        path = theta
        for index in side[np.argsort(np.abs(np.asarray(values)[side] - estimate))]:
            found = minimise(law, np.array([theta, path]), fixed={name: float(values[index])})
            path = found.best
            excess[index] = (found.lowest / lowest - 1) * law.df
    return np.maximum(excess, 0.0)


def accepted(
    values: Sequence[float] | Floats,
    excess: Floats,
    estimate: float,
    df: float,
    inflation: float = 1.0,
) -> Interval:
    """Return the 95% interval of a profile: the values with excess <= inflation t(df)^2, by linear interpolation.

    `inflation`: (standard error over shapes / standard error over runs)^2; 1 for independent runs.
    """
    cut = quantile_t(df) * math.sqrt(inflation)
    ends, is_open = [], []
    for sign in (-1, 1):
        side = sorted(
            (abs(value - estimate), math.sqrt(one))
            for value, one in zip(values, excess, strict=True)
            if (value - estimate) * sign > 0
        )
        before, end = (0.0, 0.0), None
        for at, root in side:
            if root > cut:
                end = before[0] + (cut - before[1]) / (root - before[1]) * (at - before[0])
                break
            before = (at, root)
        ends.append(estimate + sign * (before[0] if end is None else end))
        is_open.append(end is None)
    return Interval(ends[0], ends[1], is_open[0], is_open[1])


@dataclass(frozen=True)
class Noise:
    """Standard deviations of ln L: `sigma` of a run, `tau` of the effect of a shape, shared by its runs."""

    sigma: float
    tau: float

    @classmethod
    def of(cls, residual: Floats, shape: Ints) -> Noise:
        """Estimate them from residuals by the one-way analysis of variance; tau is 0 if its estimate is negative."""
        runs, shapes = len(residual), int(shape.max()) + 1
        counts = np.bincount(shape)
        means = np.bincount(shape, residual) / counts
        within = float(((residual - means[shape]) ** 2).sum()) / (runs - shapes)
        between = float((counts * (means - residual.mean()) ** 2).sum()) / (shapes - 1)
        typical = (runs - float((counts**2).sum()) / runs) / (shapes - 1)
        return cls(math.sqrt(within), math.sqrt(max(between - within, 0.0) / typical))


def simulated(
    law: LossLaw, theta: Floats, shape: Ints, noise: Noise, *, replicates: int, seed: int = 0
) -> Floats:
    """Return simulated ln L of the runs, shape (replicates, n), with the law as truth."""
    generator = np.random.default_rng(seed)
    runs = generator.normal(0.0, noise.sigma, (replicates, len(shape)))
    shapes = generator.normal(0.0, noise.tau, (replicates, int(shape.max()) + 1))
    return np.asarray(law.predict(theta)[0] + runs + shapes[:, shape])


def refits(law: LossLaw, theta: Floats, losses: Floats) -> tuple[Floats, Floats]:
    """Refit a law to other ln L, shape (replicates, n); return parameters and residual sums of squares."""
    found = [minimise(replace(law, y=y), theta) for y in losses]
    return np.array([one.best for one in found]), np.array([2 * one.lowest for one in found])


@dataclass(frozen=True)
class ExponentEstimate:
    """One exponent of a least-squares fit, with errors over runs and over shapes.

    Attributes:
        value: estimate.
        starts, agreeing: starts, and those that reached the lowest minimum; `minima`: number of distinct minima.
        condition: condition number of the Jacobian with scaled columns.
        se_runs: standard error if runs were independent; `se_shapes`: jackknife over shapes.
        profile: values at which the profile was computed, and (RSS / lowest RSS - 1) df there.
        by_runs: 95% interval of the profile for independent runs.
        by_shapes: the same, widened to match the jackknife over shapes.
        bootstrap: central 95% of fits to resamples of shapes.
        without: estimate without each shape, in the order of `Runs.shapes`.
    """

    value: float
    starts: int
    agreeing: int
    minima: int
    condition: float
    se_runs: float
    se_shapes: float
    profile: tuple[Floats, Floats]
    by_runs: Interval
    by_shapes: Interval
    bootstrap: tuple[float, float]
    without: Floats


def estimate_exponent(
    law: LossLaw, shape: Ints, name: str, *, starts: int = 60, replicates: int = 400
) -> ExponentEstimate:
    """Fit a law by least squares and estimate one of its exponents with intervals over runs and over shapes."""
    found = minimise(law, law.starts(starts))
    theta, place = found.best, law.names.index(name)
    distinct = found.distinct()
    value = float(theta[place])
    se_runs = float(np.sqrt(law.covariance(theta)[place, place]))
    without = without_each_shape(law, theta, shape)[:, place]
    se_shapes = float(jackknife_error(without))
    values = np.unique([*PROFILED, value])
    excess = profile(law, theta, name, values)
    df = int(shape.max()) + 1 - len(law.names)
    drawn = shape_bootstrap(law, theta, shape, replicates)[:, place]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return ExponentEstimate(
        value=value,
        starts=starts,
        agreeing=distinct[0][0],
        minima=len(distinct),
        condition=law.condition(theta),
        se_runs=se_runs,
        se_shapes=se_shapes,
        profile=(values, excess),
        by_runs=accepted(values, excess, value, law.df),
        by_shapes=accepted(values, excess, value, df, (se_shapes / se_runs) ** 2),
        bootstrap=(float(low), float(high)),
        without=without,
    )


@dataclass(frozen=True)
class LawFit:
    """A law fitted by least squares to all runs, and to all runs but one shape.

    Attributes:
        law: the law at the runs.
        theta: parameters of the fit to all runs.
        without: parameters of the fits without each shape, shape (shapes, parameters).
        errors: error of ln L of each run, predicted from the other shapes.
    """

    law: LossLaw
    theta: Floats
    without: Floats
    errors: Floats

    @classmethod
    def of(cls, law: LossLaw, shape: Ints, starts: int = 30) -> LawFit:
        theta = minimise(law, law.starts(starts)).best
        without = without_each_shape(law, theta, shape)
        return cls(law, theta, without, held_out_errors(law, without, shape))

    @property
    def rss(self) -> float:
        """Sum of squares of the residuals of ln L."""
        return float((self.law.residuals(self.theta) ** 2).sum())

    @property
    def rms_error(self) -> float:
        """Root mean square error of ln L for shapes that were left out."""
        return math.sqrt(float((self.errors**2).mean()))

    def estimate(self, name: str) -> tuple[float, float, float]:
        """Return a parameter and its 95% t interval, with the jackknife over shapes."""
        place = self.law.names.index(name)
        df = len(self.without) - len(self.law.names)
        half = quantile_t(df) * float(jackknife_error(self.without[:, place]))
        value = float(self.theta[place])
        return value, value - half, value + half


def error_difference(one: LawFit, other: LawFit, shape: Ints) -> tuple[float, float]:
    """Return the mean over left-out shapes of the difference of mean squared errors, and its standard error."""
    gap = np.bincount(shape, one.errors**2 - other.errors**2) / np.bincount(shape)
    return float(gap.mean()), float(gap.std(ddof=1)) / math.sqrt(len(gap))


@dataclass(frozen=True)
class DepthFreeControl:
    """The additive law fitted to losses that depend on N and D only.

    Attributes:
        noise: of the simulations, from the residuals of the joint law.
        a, b: exponents fitted to noise-free losses; misfit: their root mean square residual of ln L.
        a_range, b_range: 2.5%, 50% and 97.5% quantiles in simulations with noise.
        ratio: observed RSS of the additive law / RSS of the joint law.
        larger_if_joint, larger_if_additive: simulations with a larger ratio if that law is true, of `replicates`.
    """

    noise: Noise
    a: float
    b: float
    misfit: float
    a_range: tuple[float, float, float]
    b_range: tuple[float, float, float]
    ratio: float
    larger_if_joint: int
    larger_if_additive: int
    replicates: int


def depth_free_control(
    additive: LawFit, joint: LawFit, shape: Ints, replicates: int = 300
) -> DepthFreeControl:
    """Fit the additive law to losses of the joint law, and both laws to simulated losses of each of them."""
    noise = Noise.of(joint.law.residuals(joint.theta), shape)
    exact, exact_rss = refits(additive.law, additive.theta, joint.law.predict(joint.theta)[0][None])
    ratio = additive.rss / joint.rss
    fitted, larger = [], []
    for truth in (joint, additive):
        losses = simulated(truth.law, truth.theta, shape, noise, replicates=replicates)
        parameters, additive_rss = refits(additive.law, additive.theta, losses)
        joint_rss = refits(joint.law, joint.theta, losses)[1]
        fitted.append(parameters)
        larger.append(int((additive_rss / joint_rss > ratio).sum()))

    def exponent(name: str) -> tuple[float, tuple[float, float, float]]:
        place = additive.law.names.index(name)
        low, middle, high = np.percentile(fitted[0][:, place], [2.5, 50, 97.5])
        return float(exact[0, place]), (float(low), float(middle), float(high))

    (a, a_range), (b, b_range) = exponent("a"), exponent("b")
    misfit = math.sqrt(float(exact_rss[0]) / len(shape))
    return DepthFreeControl(
        noise, a, b, misfit, a_range, b_range, ratio, larger[0], larger[1], replicates
    )
