"""Minimises the misfit of a joint law from many starts, or for many resamples, at once.

A damped Gauss-Newton method (Levenberg and Marquardt) in a box, vectorised over parameter vectors;
Huber's loss by iteratively reweighted least squares. The objective is the SUM of the losses of the
residuals r = ln L - ln L_predicted, never their mean: with a mean the usual tolerances stop early,
which is what gave a published fit its wrong values (Besiroglu et al. 2404.10102).
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
FIRST_DAMPING = 1e-2
LEAST_DAMPING, MOST_DAMPING = 1e-12, 1e9
LONGEST_STEP = 2.0  # of any parameter, in ln units or in an exponent
TOLERANCE = 1e-13  # of the objective: the decrease that a step still promises
EXACT = 1e-28  # squared residual per point at which the descent ends
NOISE_FREE = ROUNDING_TOLERANCE**2  # squared residual per point below which residuals are rounding
AT_ONCE = 4_000_000  # numbers in a Jacobian: sets are solved in chunks of no more


@dataclass(frozen=True)
class Minima:
    """`theta` (sets, size); `objective` and `converged` (sets,)."""

    theta: Floats
    objective: Floats
    converged: NDArray[np.bool_]

    @property
    def best(self) -> int:
        """The first start that reached the least objective."""
        return first_argmin(self.objective)


@dataclass(frozen=True)
class Problem:
    """Points, the law that is fitted to them, the box, and how misfit is counted.

    `delta`: Huber's threshold in ln L; inf is least squares. `low`, `high` of shape (size,) or
    (sets, size); `weights`, `points.y` and `points.family` (n,) or (sets, n).
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
        return cls(law, points, *bounds(law, points), delta, weights)

    def select(self, sets: Any) -> Problem:
        """The problem of some of the sets, by index or slice."""

        def of(array: NDArray[Any]) -> NDArray[Any]:
            return array[sets] if array.ndim == 2 else array

        return replace(
            self,
            points=self.points.select(sets),
            weights=None if self.weights is None else of(self.weights),
            low=of(self.low),
            high=of(self.high),
        )

    def objective(self, theta: Floats) -> Floats:
        """Sum of losses per parameter vector, (sets,)."""
        predicted, _ = log_loss(self.law, theta, self.points)
        size = np.abs(self.points.y - predicted)
        losses = size**2 / 2
        if math.isfinite(self.delta):
            losses = np.where(size <= self.delta, losses, self.delta * (size - self.delta / 2))
        return (losses if self.weights is None else losses * self.weights).sum(axis=1)

    def derivatives(self, theta: Floats) -> tuple[Floats, Floats]:
        """Gradient (sets, size) and Gauss-Newton matrix (sets, size, size) of the objective."""
        predicted, shares = log_loss(self.law, theta, self.points)
        residual = self.points.y - predicted
        influence = np.ones_like(residual)
        if math.isfinite(self.delta):
            influence = np.minimum(1.0, self.delta / np.maximum(np.abs(residual), 1e-300))
        if self.weights is not None:
            influence = influence * self.weights
        slope = jacobian(self.law, shares, self.points)
        weighted = slope * influence[:, None, :]
        gradient = -np.matmul(weighted, residual[:, :, None])[:, :, 0]
        return gradient, np.matmul(weighted, slope.transpose(0, 2, 1))


def at_bound(problem: Problem, theta: Floats) -> NDArray[np.bool_]:
    """Which parameters of a vector lie at an end of the box, (size,)."""
    return (theta <= problem.low + 1e-9) | (theta >= problem.high - 1e-9)


def minimise(problem: Problem, starts: Floats) -> Minima:
    """A local minimum from each start, (sets, size)."""
    sets, per_set = len(starts), problem.law.size * len(problem.points)
    chunk = max(1, AT_ONCE // per_set)
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
    damping = np.full(len(theta), FIRST_DAMPING)
    converged = np.zeros(len(theta), dtype=bool)
    active = np.arange(len(theta))
    for _ in range(MAX_STEPS):
        part = problem.select(active)
        here, before = theta[active], objective[active]
        slope, step = _damped_step(part, here, damping[active])
        there = np.clip(here + step, part.low, part.high)
        after = part.objective(there)
        better = after < before
        theta[active[better]], objective[active[better]] = there[better], after[better]
        damping[active] = np.clip(
            damping[active] * np.where(better, 0.2, 4.0), LEAST_DAMPING, MOST_DAMPING
        )
        promised = np.abs((slope * (there - here)).sum(axis=1))
        floor = EXACT * len(problem.points)
        stuck = ~better & (damping[active] >= MOST_DAMPING)
        done = (promised <= TOLERANCE * before) | (objective[active] <= floor) | stuck
        converged[active[done]] = True
        active = active[~done]
        if not len(active):
            break
    return Minima(_polished(problem, theta), objective, converged)


def _polished(problem: Problem, theta: Floats) -> Floats:
    """Take further steps that lower the gradient where the objective is flat up to rounding.

    The objective decides where the descent ends, and fixes parameters to the root of its rounding alone.
    """
    damping = np.full(len(theta), LEAST_DAMPING)
    for _ in range(POLISHING_STEPS):
        slope, step = _damped_step(problem, theta, damping)
        there = np.clip(theta + step, problem.low, problem.high)
        is_flat = ~exceeds(problem.objective(there), problem.objective(theta))
        is_less = np.abs(free_gradient(problem, there)).max(axis=1) < np.abs(slope).max(axis=1)
        theta = np.where((is_flat & is_less)[:, None], there, theta)
    return theta


def free_gradient(problem: Problem, theta: Floats) -> Floats:
    """Derivatives by the parameters of each vector, 0 for those that the gradient holds at a bound."""
    gradient, _ = problem.derivatives(theta)
    return np.where(_held(problem, theta, gradient), 0.0, gradient)


def _held(problem: Problem, theta: Floats, gradient: Floats) -> NDArray[np.bool_]:
    return ((theta <= problem.low) & (gradient > 0)) | ((theta >= problem.high) & (gradient < 0))


def _damped_step(problem: Problem, theta: Floats, damping: Floats) -> tuple[Floats, Floats]:
    """Free gradient and step; a bounded parameter that the gradient holds there does not move."""
    gradient, curvature = problem.derivatives(theta)
    held = _held(problem, theta, gradient)
    free = np.where(held, 0.0, gradient)
    diagonal = np.diagonal(curvature, axis1=1, axis2=2)
    scale = diagonal + 1e-12 * diagonal.max(axis=1, keepdims=True) + 1e-300
    matrix = np.where(held[:, :, None] | held[:, None, :], 0.0, curvature)
    index: Ints = np.arange(theta.shape[1])
    matrix[:, index, index] = np.where(held, 1.0, diagonal + damping[:, None] * scale)
    step = -np.linalg.solve(matrix, free[:, :, None])[:, :, 0]
    return free, np.clip(step, -LONGEST_STEP, LONGEST_STEP)


def start_grid(law: JointLaw, points: Points, random: int = 20, seed: int = 0) -> Floats:
    """Starts scaled by the data: a 3x3x3x2x2 grid over E, A, B, alpha, beta and some random ones."""
    least, typical = math.exp(points.y.min()), math.exp(points.y.mean())
    grid = np.stack(
        np.meshgrid([0.3, 0.6, 0.9], [0.2, 0.5, 0.8], [0.2, 0.5, 0.8], [0.2, 0.6], [0.2, 0.6]), -1
    ).reshape(-1, 5)
    generator = np.random.default_rng(seed)
    drawn = generator.uniform(
        [0.1, 0.05, 0.05, 0.05, 0.05], [0.95, 0.95, 0.95, 1.0, 1.0], (random, 5)
    )
    rows = np.concatenate([grid, drawn])
    irreducible = rows[:, 0] * least
    reducible = typical - irreducible
    rows = np.column_stack(
        [
            np.log(irreducible),
            np.log(rows[:, 1] * reducible),
            np.log(rows[:, 2] * reducible),
            rows[:, 3:],
        ]
    )
    return rows[:, law.roles]
