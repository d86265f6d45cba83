"""Fit a joint law from many starts, or to many resamples, at once.

Levenberg-Marquardt (damped Gauss-Newton) with bounds, vectorised over parameter vectors ("sets"). The objective is the SUM of the losses of the residuals
r = ln L - ln L_predicted, not their mean: with the mean, common tolerances stop too early, which caused the wrong
values of a published fit (Besiroglu et al., arXiv 2404.10102).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.arrays import Floats, Ints
from analysis.fit.law import JointLaw, Points, bounds, jacobian, log_loss
from slm.rounding import ROUNDING_TOLERANCE, exceeds, first_argmin

MAX_STEPS = 400
POLISHING_STEPS = 2
INITIAL_DAMPING = 1e-2
MIN_DAMPING, MAX_DAMPING = 1e-12, 1e9
MAX_STEP = 2.0  # per parameter, in ln units or as a change of an exponent
TOLERANCE = 1e-13  # stop if the predicted decrease is below this share of the objective
EXACT = 1e-28  # stop below this squared residual per point
NOISE_FREE = ROUNDING_TOLERANCE**2  # mean squared residual of a noise-free fit
OUTLIER_CURVATURE = 0.1  # share of the reweighted curvature of residuals in Huber's linear range
CHUNK_ELEMENTS = 4_000_000  # largest size of a Jacobian; more sets are solved in chunks


@dataclass(frozen=True)
class Minima:
    """Local minima: `theta` of shape (sets, size), `objective` and `converged` of shape (sets,)."""

    theta: Floats
    objective: Floats
    converged: NDArray[np.bool_]

    @property
    def best(self) -> int:
        """Index of the first set with the lowest objective."""
        return first_argmin(self.objective)


@dataclass(frozen=True)
class Problem:
    """Fitting problem: points, law, parameter bounds and loss function.

    `delta`: Huber threshold in ln L; inf is least squares. `low`, `high`: bounds of shape (size,) or
    (sets, size). `weights`, `points.y` and `points.family`: shape (n,) or (sets, n).
    """

    law: JointLaw
    points: Points
    low: Floats
    high: Floats
    delta: float = math.inf
    weights: Floats | None = None

    @classmethod
    def of(
        cls,
        law: JointLaw,
        points: Points,
        *,
        delta: float = math.inf,
        weights: Floats | None = None,
    ) -> Problem:
        """Build a problem with the default bounds of `analysis.fit.law.bounds`."""
        return cls(law, points, *bounds(law, points), delta, weights)

    def select(self, sets: Any) -> Problem:
        """Return the problem of some of the sets, by index or slice."""

        def rows(array: NDArray[Any]) -> NDArray[Any]:
            return array[sets] if array.ndim == 2 else array

        return replace(
            self,
            points=self.points.select(sets),
            weights=None if self.weights is None else rows(self.weights),
            low=rows(self.low),
            high=rows(self.high),
        )

    def objective(self, theta: Floats) -> Floats:
        """Return the sum of losses of each parameter vector, shape (sets,)."""
        predicted, _ = log_loss(self.law, theta, self.points)
        residual = np.abs(self.points.y - predicted)
        losses = residual**2 / 2
        if math.isfinite(self.delta):
            linear = self.delta * (residual - self.delta / 2)
            losses = np.where(residual <= self.delta, losses, linear)
        return (losses if self.weights is None else losses * self.weights).sum(axis=1)

    def derivatives(self, theta: Floats) -> tuple[Floats, Floats]:
        """Return the objective's gradient, shape (sets, size), and Gauss-Newton matrix, shape (sets, size, size).

        In Huber's linear range the curvature is 0, but iteratively reweighted least squares uses delta / |r|, which
        converges slowly. A share of it keeps the matrix regular and the convergence fast.
        """
        predicted, shares = log_loss(self.law, theta, self.points)
        residual = self.points.y - predicted
        influence = curvature = np.ones_like(residual) if self.weights is None else self.weights
        if math.isfinite(self.delta):
            ratio = self.delta / np.maximum(np.abs(residual), 1e-300)
            influence = influence * np.minimum(1.0, ratio)
            curvature = curvature * np.where(ratio >= 1, 1.0, OUTLIER_CURVATURE * ratio)
        slope = jacobian(self.law, shares, self.points)
        gradient = -np.matmul(slope, (influence * residual)[:, :, None])[:, :, 0]
        weighted = slope * np.broadcast_to(curvature, residual.shape)[:, None, :]
        return gradient, np.matmul(weighted, slope.transpose(0, 2, 1))


def at_bound(problem: Problem, theta: Floats) -> NDArray[np.bool_]:
    """Return which parameters of a vector lie at a bound, shape (size,)."""
    return (theta <= problem.low + 1e-9) | (theta >= problem.high - 1e-9)


def minimise(problem: Problem, starts: Floats) -> Minima:
    """Return a local minimum from each start; `starts` has shape (sets, size)."""
    sets, per_set = len(starts), problem.law.size * len(problem.points)
    chunk = max(1, CHUNK_ELEMENTS // per_set)
    parts = [
        _minimise(problem.select(slice(at, at + chunk)), starts[at : at + chunk])
        for at in range(0, sets, chunk)
    ]
    return Minima(
        *(np.concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0]))
    )


def _minimise(problem: Problem, starts: Floats) -> Minima:
    theta = np.clip(starts, problem.low, problem.high)
    objective = problem.objective(theta)
    damping = np.full(len(theta), INITIAL_DAMPING)
    converged = np.zeros(len(theta), dtype=bool)
    active = np.arange(len(theta))
    for _ in range(MAX_STEPS):
        part = problem.select(active)
        old, before = theta[active], objective[active]
        gradient, step = _damped_step(part, old, damping[active])
        new = np.clip(old + step, part.low, part.high)
        after = part.objective(new)
        better = after < before
        theta[active[better]], objective[active[better]] = new[better], after[better]
        damping[active] = np.clip(
            damping[active] * np.where(better, 0.2, 4.0), MIN_DAMPING, MAX_DAMPING
        )
        predicted_decrease = np.abs((gradient * (new - old)).sum(axis=1))
        floor = EXACT * len(problem.points)
        stuck = ~better & (damping[active] >= MAX_DAMPING)
        done = (predicted_decrease <= TOLERANCE * before) | (objective[active] <= floor) | stuck
        converged[active[done]] = True
        active = active[~done]
        if not len(active):
            break
    return Minima(_polish(problem, theta), objective, converged)


def _polish(problem: Problem, theta: Floats) -> Floats:
    """Take a few more steps that lower the gradient at an objective equal up to rounding.

    The objective alone fixes the parameters only to the square root of its rounding error.
    """
    damping = np.full(len(theta), MIN_DAMPING)
    for _ in range(POLISHING_STEPS):
        gradient, step = _damped_step(problem, theta, damping)
        candidate = np.clip(theta + step, problem.low, problem.high)
        is_flat = ~exceeds(problem.objective(candidate), problem.objective(theta))
        is_lower = np.abs(free_gradient(problem, candidate)).max(axis=1) < np.abs(gradient).max(
            axis=1
        )
        theta = np.where((is_flat & is_lower)[:, None], candidate, theta)
    return theta


def free_gradient(problem: Problem, theta: Floats) -> Floats:
    """Return the projected gradient: 0 for parameters at a bound that the descent direction would cross."""
    gradient, _ = problem.derivatives(theta)
    return np.where(_is_blocked(problem, theta, gradient), 0.0, gradient)


def _is_blocked(problem: Problem, theta: Floats, gradient: Floats) -> NDArray[np.bool_]:
    return ((theta <= problem.low) & (gradient > 0)) | ((theta >= problem.high) & (gradient < 0))


def _damped_step(problem: Problem, theta: Floats, damping: Floats) -> tuple[Floats, Floats]:
    """Return the projected gradient and the step; parameters blocked at a bound do not move."""
    gradient, curvature = problem.derivatives(theta)
    blocked = _is_blocked(problem, theta, gradient)
    free = np.where(blocked, 0.0, gradient)
    diagonal = np.diagonal(curvature, axis1=1, axis2=2)
    scale = diagonal + 1e-12 * diagonal.max(axis=1, keepdims=True) + 1e-300
    matrix = np.where(blocked[:, :, None] | blocked[:, None, :], 0.0, curvature)
    index: Ints = np.arange(theta.shape[1])
    matrix[:, index, index] = np.where(blocked, 1.0, diagonal + damping[:, None] * scale)
    step = -np.linalg.solve(matrix, free[:, :, None])[:, :, 0]
    return free, np.clip(step, -MAX_STEP, MAX_STEP)


def start_grid(law: JointLaw, points: Points, random: int = 20, seed: int = 0) -> Floats:
    """Return starts scaled by the data, shape (starts, size).

    A 3x3x3x2x2 grid over E, A, B, alpha and beta, and `random` additional random starts.
    """
    lowest, typical = math.exp(points.y.min()), math.exp(points.y.mean())
    grid = np.stack(
        np.meshgrid([0.3, 0.6, 0.9], [0.2, 0.5, 0.8], [0.2, 0.5, 0.8], [0.2, 0.6], [0.2, 0.6]), -1
    ).reshape(-1, 5)
    generator = np.random.default_rng(seed)
    drawn = generator.uniform(
        [0.1, 0.05, 0.05, 0.05, 0.05], [0.95, 0.95, 0.95, 1.0, 1.0], (random, 5)
    )
    rows = np.concatenate([grid, drawn])
    irreducible = rows[:, 0] * lowest
    reducible = typical - irreducible
    levels = [irreducible, rows[:, 1] * reducible, rows[:, 2] * reducible]
    starts = np.column_stack([*(np.log(level) for level in levels), rows[:, 3:]])
    return starts[:, law.roles]
