"""Estimates of the block model for two families: exponent difference, level, compute multiplier, shape optimum."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import special

from analysis.arrays import Floats
from analysis.block.blocks import Blocks
from analysis.block.model import BlockFit, Columns, columns_of, fit_runs, without_rungs
from analysis.block.pooled_law import PooledLaw, delete_runs
from slm.rounding import ITERATION_TOLERANCE, snap_to_zero

Interval = tuple[float, float]
SIGNIFICANCE = 0.05  # of all tests; intervals are 95%
CONFIDENCE = 1 - SIGNIFICANCE
EQUIVALENT = 0.02  # exponents closer than this are the same for any use
KAPPA_SEARCH = 50.0
SMALL = 1e-30  # variance of a contrast that the model does not have


def is_significant(p: float | None, level: float = SIGNIFICANCE) -> bool:
    """Return whether a p value is below a level by more than the rounding error of the estimates; False for None."""
    return p is not None and bool(p < level * (1 - ITERATION_TOLERANCE))


@dataclass(frozen=True)
class Estimate:
    """A value with standard error, 95% t interval and p of the test against 0."""

    value: float
    se: float
    df: int

    @property
    def interval(self) -> Interval:
        return self.at(CONFIDENCE)

    @property
    def p(self) -> float:
        return float(2 * special.stdtr(self.df, -abs(self.value) / self.se))

    def at(self, confidence: float) -> Interval:
        """Return the t interval of a confidence level."""
        half = float(special.stdtrit(self.df, (1 + confidence) / 2)) * self.se
        return self.value - half, self.value + half

    def equivalence_p(self, margin: float) -> float:
        """Return p of two one-sided tests (Schuirmann 1987) of |value| >= margin."""
        return float(special.stdtr(self.df, -(margin - abs(self.value)) / self.se))


@dataclass(frozen=True)
class Point:
    """Where level and compute multiplier are given: the largest size with both families."""

    n: float
    tokens: float
    flops: float
    rung: int | None


@dataclass(frozen=True)
class Effects:
    """Level, exponent difference and free E of one fit; `p_f`: of the F test of the first two together."""

    fit: BlockFit
    point: Point
    level: Estimate
    d_alpha: Estimate | None
    free_e: Estimate | None  # E_deep - E_wide in nats
    p_f: float | None

    def level_at(self, n: Floats) -> tuple[Floats, Floats]:
        """Return Delta at other N and the half width of its 95% band, without the plug-in term."""
        weights = level_weights(self.fit, n)
        variance = np.einsum("ip,pq,iq->i", weights, self.fit.covariance, weights)
        half = special.stdtrit(self.fit.df, (1 + CONFIDENCE) / 2) * np.sqrt(variance)
        return weights @ self.fit.coef, half

    def estimate(self, value: float, variance: float) -> Estimate:
        return Estimate(float(value), math.sqrt(variance), self.fit.df)

    @property
    def mean_log_aspect(self) -> float:
        return self.fit.blocks.mean_log_aspect

    def log_kappa_interval(self, confidence: float = CONFIDENCE) -> Interval:
        """Return the interval of ln kappa: at the ends of that of the level."""
        low, high = self.level.at(confidence)
        return self.log_kappa(high), self.log_kappa(low)

    def log_kappa(self, delta: float, tokens: float | None = None) -> float:
        """Return ln(C_wide / C_deep) at equal loss along fixed D/N for a loss difference."""
        return log_kappa(self.fit.law, self.point.n, tokens or self.point.tokens, delta)


def effects_of(fit: BlockFit, *, plug_in: bool = True) -> Effects:
    """Compute the effects at the largest common size.

    `plug_in`: add the variance from the uncertainty of s, and over shapes if the runs are unmatched.
    """
    point = point_of(fit)
    weights = _contrasts(fit, point)
    covariance = weights @ fit.covariance @ weights.T
    if plug_in:
        covariance = covariance + _plug_in(fit, point)
    if plug_in and not fit.blocks.is_matched:
        covariance = _at_least_jackknife(covariance, fit)
    level, d_alpha, free_e = (
        Estimate(snap_to_zero(value), math.sqrt(variance), fit.df)
        for value, variance in zip(weights @ fit.coef, np.diag(covariance), strict=True)
    )
    if not fit.identifies_exponents:
        return Effects(fit, point, level, None, None, None)
    both = np.array([level.value, d_alpha.value])
    f = float(both @ np.linalg.solve(covariance[:2, :2], both)) / 2
    p_f = float(special.fdtrc(2, fit.df, f))
    return Effects(fit, point, level, d_alpha, free_e if fit.columns.has_free_e else None, p_f)


def _contrasts(fit: BlockFit, point: Point) -> Floats:
    """Return c of level, d_alpha and E_deep - E_wide, with estimate c' coef; 0 where the model has no such column."""
    gap = fit.blocks.u_deep - fit.blocks.u_wide
    level = level_weights(fit, np.array([point.n]))[0]
    return np.array([level, _unit(fit, "gamma") * gap, _unit(fit, "e") * gap])


def level_weights(fit: BlockFit, n: Floats) -> Floats:
    """Return c with Delta(N) = c' coef, shape (len(n), p)."""
    return level_weights_of(fit.columns, fit.law, fit.blocks, n)


def level_weights_of(columns: Columns, law: PooledLaw, blocks: Blocks, n: Floats) -> Floats:
    """Return c with Delta(N) = c' coef for the columns of a design, shape (len(n), p)."""
    deep, wide = blocks.u_deep, blocks.u_wide
    scale, x = law.size_term(n), np.log(n) - columns.x_mean
    return columns.contrast(scale, x, deep - wide, deep**2 - wide**2, deep - wide)


def _unit(fit: BlockFit, name: str) -> Floats:
    return np.array([float(one == name) for one in fit.names])


def _plug_in(fit: BlockFit, point: Point) -> Floats:
    """Return the covariance of the contrasts from the uncertainty of s."""
    return jackknife_covariance([_contrasts(one, point) @ one.coef for one in plug_in_fits(fit)])


def plug_in_fits(fit: BlockFit) -> list[BlockFit]:
    """Return the fit with the pooled law without each rung: the fitted values without gamma, analysed with its s."""
    blocks = fit.blocks
    fitted = replace(fit.columns, has_gamma=False, has_free_e=False).design(blocks.u)
    values = fitted @ fit.coef[: fitted.shape[1]]
    found = []
    for law in without_rungs(fit):
        columns = columns_of(blocks, law, free_e=fit.columns.has_free_e)
        coef = fit.model.coefficients(values, fit.ratio, columns.design(blocks.u))
        found.append(replace(fit, law=law, columns=columns, coef=coef))
    return found


def jackknife_covariance(estimates: Sequence[Floats]) -> Floats:
    """Return the delete-one covariance of estimates, each without one group."""
    deviations = np.array(estimates) - np.mean(estimates, axis=0)
    return np.asarray((len(deviations) - 1) / len(deviations) * deviations.T @ deviations)


def _at_least_jackknife(covariance: Floats, fit: BlockFit) -> Floats:
    """Return the covariance with standard errors of at least the delete-one-shape jackknife's.

    Without blocks the misfit of the law within a shape, along its budgets, is no independent noise, so the cells of a
    shape would count as replicates.
    """
    found = []
    for code in range(len(fit.blocks.families)):
        kept = fit.blocks.shape != code
        rest = fit.blocks.select(kept)
        if {fit.blocks.deep, fit.blocks.wide} <= set(rest.families):
            law = delete_runs(fit.law, fit.blocks, kept)
            one = fit_runs(rest, law=law, free_e=fit.columns.has_free_e)
            if one.names == fit.names:
                found.append(_contrasts(one, point_of(one)) @ one.coef)
    if len(found) < 2:
        return covariance
    deviations = np.array(found) - np.mean(found, axis=0)
    variance = (len(found) - 1) / len(found) * (deviations**2).sum(axis=0)
    scale = np.sqrt(np.maximum(variance / np.maximum(np.diag(covariance), SMALL), 1.0))
    return covariance * np.outer(scale, scale)


def point_of(fit: BlockFit) -> Point:
    """Return the largest size of both families, with the budget nearest to the compute optimum."""
    blocks, law = fit.blocks, fit.law
    if not blocks.is_matched:
        return _corner(fit)
    rung = blocks.common_rungs[-1]
    n = float(np.exp(blocks.log_n_rung[rung]))
    rows = blocks.rung == rung
    slope = np.log(law.alpha * law.size_term(n) / (law.beta * law.data_term(blocks.tokens[rows])))
    nearest = np.flatnonzero(rows)[int(np.argmin(np.abs(slope)))]
    same = rows & (blocks.block == blocks.block[nearest])
    tokens, flops = (float(np.exp(np.log(v[same]).mean())) for v in (blocks.tokens, blocks.flops))
    return Point(n, tokens, flops, rung)


def _corner(fit: BlockFit) -> Point:
    """Return the point of largest FLOPs in the box that both families share, of ln N, ln D and ln D/N."""
    blocks = fit.blocks
    sides = blocks.sides
    x, z = np.log(blocks.n), np.log(blocks.tokens)
    n_high, d_high, r_high = (min(v[s].max() for s in sides) for v in (x, z, z - x))
    r_low = max((z - x)[s].min() for s in sides)
    log_n, log_d = n_high, d_high
    log_d = min(log_d, log_n + r_high)
    log_n = min(log_n, log_d - r_low)
    n, tokens = math.exp(log_n), math.exp(log_d)
    return Point(n, tokens, 6 * n * tokens, None)


def common_box_is_empty(fit: BlockFit) -> bool:
    """Return whether two unmatched families share no range of N, D and D/N."""
    blocks = fit.blocks
    sides = blocks.sides
    x, z = np.log(blocks.n), np.log(blocks.tokens)
    return any(
        max(v[s].min() for s in sides) > min(v[s].max() for s in sides) for v in (x, z, z - x)
    )


def log_kappa(law: PooledLaw, n: float, tokens: float, delta: float) -> float:
    """Return ln(C_wide / C_deep) at equal loss along fixed D/N, given the loss difference at the size (N, D).

    Deep at C / sqrt(kappa) and wide at C sqrt(kappa) have one loss: with s and t of the pooled law at (N, D),
    2 s sinh(alpha ln kappa / 4) + 2 t sinh(beta ln kappa / 4) = -delta. To first order this is
    -2 delta / (alpha s + beta t). It changes sign with delta, so no family is the reference.
    """
    from scipy.optimize import brentq  # late: planning must start fast

    s, t = float(law.size_term(np.array(n))), float(law.data_term(np.array(tokens)))

    def gap(log_k: float) -> float:
        return (
            2 * (s * math.sinh(law.alpha * log_k / 4) + t * math.sinh(law.beta * log_k / 4)) + delta
        )

    if not gap(-KAPPA_SEARCH) * gap(KAPPA_SEARCH) <= 0:  # the loss does not depend on compute
        return math.copysign(math.inf, -delta)
    return float(brentq(gap, -KAPPA_SEARCH, KAPPA_SEARCH, xtol=1e-12))


@dataclass(frozen=True)
class ShapeOptimum:
    """Best aspect ratio of a rung; `interval` is None unless the curvature is significant and positive.

    `interval` is Fieller's, in u. `u` is None without a minimum inside the measured aspect ratios.
    """

    rung: int
    u: float | None
    interval: Interval | None
    cost_of_two: float | None  # nats that an aspect twice or half the best costs


def shape_optimum(fit: BlockFit, rung: int) -> ShapeOptimum:
    """Return the best u of a rung with Fieller's interval; intervals are cut to the measured u."""
    blocks = fit.blocks
    rows = blocks.rung == rung
    low, high = float(blocks.u[rows].min()), float(blocks.u[rows].max())
    x = float(fit.columns.x[rows][0])
    scale = float(fit.columns.scale[rows][0])
    b = 2 * float(_unit(fit, "h2") @ fit.coef)
    if b <= 0:
        return ShapeOptimum(rung, None, None, None)
    cost = scale * b / 2 * math.log(2) ** 2
    best, ends = _by_curvature(fit, _unit(fit, "gamma") * x - _unit(fit, "h1"))
    if ends is None or not low < best < high:
        return ShapeOptimum(rung, None, None, cost)
    return ShapeOptimum(rung, best, (max(ends[0], low), min(ends[1], high)), cost)


def optimum_trend(fit: BlockFit) -> tuple[float, Interval] | None:
    """Return d u* / d ln N = gamma / (2 h2), by which the best u moves, with Fieller's interval.

    None unless the curvature is significant and positive. The interval is not cut: the trend can be small although no
    best aspect ratio lies inside the measured ones.
    """
    trend, interval = _by_curvature(fit, _unit(fit, "gamma"))
    return None if interval is None else (trend, interval)


def _by_curvature(fit: BlockFit, numerator: Floats) -> tuple[float, Interval | None]:
    """Return a contrast divided by 2 h2 with Fieller's interval, None unless h2 is significant and positive."""
    denominator = 2 * _unit(fit, "h2")
    a, b = float(numerator @ fit.coef), float(denominator @ fit.coef)
    v = np.array([numerator, denominator]) @ fit.covariance @ np.array([numerator, denominator]).T
    t = float(special.stdtrit(fit.df, (1 + CONFIDENCE) / 2))
    leading = b**2 - t**2 * v[1, 1]
    if b <= 0 or leading <= 0:
        return math.nan, None
    middle, constant = a * b - t**2 * v[0, 1], a**2 - t**2 * v[0, 0]
    root = math.sqrt(max(middle**2 - leading * constant, 0.0))
    return a / b, ((middle - root) / leading, (middle + root) / leading)
