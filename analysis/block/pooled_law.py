"""The law common to all shapes, L = E + A e^(h u) N^-alpha + B D^-beta, by least squares on ln L.

It gives the size s(N) = A N^-alpha of the differences between shapes, and the slopes that correct runs to equal
FLOPs. The term h u keeps a level difference between shapes from bending alpha.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from analysis.arrays import Floats
from analysis.block.blocks import Blocks, Mask
from slm.rounding import first_argmin

EXPONENT_BOUNDS = (0.02, 1.5)
START_EXPONENTS = np.geomspace(0.05, 1.0, 6)
STARTS = 2
ASSUMED_ALPHA = 0.34  # where one token budget per size leaves alpha, E and B D^-beta inseparable
SMALL = 1e-12


@dataclass(frozen=True)
class PooledLaw:
    """Parameters in nats per token; `is_assumed`: alpha = beta was assumed, as the design does not identify them."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float
    h: float = 0.0
    is_assumed: bool = False

    def size_term(self, n: ArrayLike) -> Floats:
        """Return s(N) = A N^-alpha in nats."""
        return self.A * np.asarray(n, float) ** -self.alpha

    def data_term(self, tokens: ArrayLike) -> Floats:
        """Return t(D) = B D^-beta in nats."""
        return self.B * np.asarray(tokens, float) ** -self.beta

    def loss(self, n: Floats, tokens: Floats, u: Floats | float = 0.0) -> Floats:
        """Return the loss in nats per token."""
        return self.E + self.size_term(n) * np.exp(self.h * u) + self.data_term(tokens)


def fit_pooled_law(blocks: Blocks) -> PooledLaw:
    """Fit the law to runs whose sizes and budgets identify it."""
    from scipy.optimize import least_squares  # late: planning must start fast

    problem, loss = _Problem.of(blocks), blocks.loss
    low, high = problem.bounds(loss)
    tries = [
        least_squares(
            problem.residual,
            np.clip(start, low + 1e-9, high - 1e-9),
            problem.jacobian,
            bounds=(low, high),
            xtol=1e-14,
            ftol=1e-14,
            gtol=1e-14,
            max_nfev=300,
        )
        for start in _starts(problem, loss)
    ]
    return problem.law(tries[first_argmin([one.cost for one in tries])].x)


def assumed_law(blocks: Blocks, alpha: float = ASSUMED_ALPHA) -> PooledLaw:
    """Return a law for a design with one token budget per size.

    Along tokens proportional to N the loss is E + c N^-alpha. Half of c is given to each of the two terms, as at the
    compute optimum of equal exponents.
    """
    from scipy.optimize import nnls

    n, tokens = blocks.n, blocks.tokens
    design = np.column_stack([np.ones(len(n)), n**-alpha])
    scale = design.max(axis=0)
    level, slope = nnls(design / scale, blocks.loss)[0] / scale
    half = max(float(slope), SMALL) / 2
    ratio = float(np.exp(np.log(tokens / n).mean()))
    return PooledLaw(float(level), half, half * ratio**alpha, alpha, alpha, is_assumed=True)


def delete_runs(law: PooledLaw, blocks: Blocks, kept: Mask) -> PooledLaw:
    """Return the law refitted to the runs where `kept` is true, by one Gauss-Newton step from the full fit."""
    if law.is_assumed:
        return assumed_law(blocks.select(kept), law.alpha)
    problem = _Problem.of(blocks)
    theta = problem.theta(law)
    full, residual = problem.jacobian(theta), problem.residual(theta)
    free = np.linalg.norm(full, axis=0) > SMALL
    low, high = problem.bounds(blocks.loss)
    margin = 1e-3 * (high - low)
    free &= (theta > low + margin) & (theta < high - margin)
    step = np.zeros(len(theta))
    step[free] = np.linalg.lstsq(full[kept][:, free], -residual[kept], rcond=1e-9)[0]
    return problem.law(np.clip(theta + step, low, high))


@dataclass(frozen=True)
class _Problem:
    """Runs in centred logarithms; theta = (ln E, ln A, ln B, alpha, beta, h), with A and B at the centre."""

    x: Floats
    z: Floats
    u: Floats
    y: Floats
    centre: tuple[float, float]

    @classmethod
    def of(cls, blocks: Blocks) -> _Problem:
        x, z = np.log(blocks.n), np.log(blocks.tokens)
        centre = float(x.mean()), float(z.mean())
        return cls(x - centre[0], z - centre[1], blocks.u, np.log(blocks.loss), centre)

    def law(self, theta: Floats) -> PooledLaw:
        e, a, b, alpha, beta, h = (float(value) for value in theta)
        x, z = self.centre
        return PooledLaw(
            math.exp(e), math.exp(a + alpha * x), math.exp(b + beta * z), alpha, beta, h
        )

    def theta(self, law: PooledLaw) -> Floats:
        a = math.log(law.A) - law.alpha * self.centre[0]
        b = math.log(law.B) - law.beta * self.centre[1]
        return np.array([math.log(law.E), a, b, law.alpha, law.beta, law.h])

    def bounds(self, loss: Floats) -> tuple[Floats, Floats]:
        lowest, (low, high) = math.log(loss.min()), EXPONENT_BOUNDS
        return (
            np.array([lowest + math.log(0.05), -60, -60, low, low, -5]),
            np.array([lowest + math.log(0.999), 60, 60, high, high, 5]),
        )

    def terms(self, theta: Floats) -> Floats:
        e, a, b, alpha, beta, h = theta
        ones = np.ones(len(self.x))
        return np.exp(np.stack([e * ones, a - alpha * self.x + h * self.u, b - beta * self.z]))

    def residual(self, theta: Floats) -> Floats:
        return np.log(self.terms(theta).sum(axis=0)) - self.y

    def jacobian(self, theta: Floats) -> Floats:
        terms = self.terms(theta)
        e, s, t = terms / terms.sum(axis=0)
        return np.column_stack([e, s, t, -self.x * s, -self.z * t, self.u * s])


def _starts(problem: _Problem, loss: Floats) -> list[Floats]:
    """Return the best exponents of a grid; E, A and B are linear given these."""
    from scipy.optimize import nnls

    found = []
    for alpha in START_EXPONENTS:
        for beta in START_EXPONENTS:
            columns = [np.ones(len(loss)), np.exp(-alpha * problem.x), np.exp(-beta * problem.z)]
            linear, error = nnls(np.column_stack(columns) / loss[:, None], np.ones(len(loss)))
            e, a, b = np.log(np.maximum(linear, 1e-9 * loss.min()))
            found.append((error, np.array([e, a, b, alpha, beta, 0.0])))
    errors = [error for error, _ in found]
    best = np.argsort(errors, kind="stable")[:STARTS]
    return [found[i][1] for i in best]
