"""The law of all shapes, L = E + A e^q N^-alpha + B D^-beta with q = h1 u + h2 u^2 - gamma u x, by least squares on ln L.

It gives the size s(N) = A N^-alpha of the differences between shapes, and the slopes that correct runs to equal
FLOPs. q keeps differences between shapes from bending alpha; the block model estimates it again, with random effects.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from analysis.arrays import Floats, Mask
from analysis.block.blocks import Blocks
from slm.rounding import first_argmin

EXPONENT_BOUNDS = (0.02, 1.5)
START_EXPONENTS = np.geomspace(0.05, 1.0, 6)
STARTS = 2
ASSUMED_ALPHA = 0.34  # where one token budget per size leaves alpha, E and B D^-beta inseparable
SMALL = 1e-12
NEGLIGIBLE = 1e-4  # of the loss, for a size term
AT_BOUND = 1e-4
MAX_STEP = 1.0  # per parameter, in ln units or as a change of an exponent
NAMES = ("E", "A", "B", "alpha", "beta")
ALPHA = NAMES.index("alpha")


@dataclass(frozen=True)
class PooledLaw:
    """Parameters in nats per token.

    `q`: coefficients of q, used to fit the others only. `at_bound`: the parameter that the runs do not identify, as it
    lies at a bound of the search. `is_assumed`: alpha is ASSUMED_ALPHA, because neither design nor runs identify it.
    """

    E: float
    A: float
    B: float
    alpha: float
    beta: float
    q: tuple[float, ...] = ()
    is_assumed: bool = False
    at_bound: str = ""

    def size_term(self, n: ArrayLike) -> Floats:
        """Return s(N) = A N^-alpha in nats."""
        return self.A * np.asarray(n, float) ** -self.alpha

    def data_term(self, tokens: ArrayLike) -> Floats:
        """Return t(D) = B D^-beta in nats."""
        return self.B * np.asarray(tokens, float) ** -self.beta

    def loss(self, n: ArrayLike, tokens: ArrayLike) -> Floats:
        """Return the loss at u = 0 in nats per token."""
        return self.E + self.size_term(n) + self.data_term(tokens)


def fit_pooled_law(blocks: Blocks) -> PooledLaw:
    """Fit the law to runs whose design identifies it; if alpha is at a bound, fit the others at ASSUMED_ALPHA."""
    problem = _Problem.of(blocks)
    low, high = problem.bounds(blocks.loss)
    theta = _minimise(problem, low, high, blocks.loss)
    near = np.minimum(theta - low, high - theta) < AT_BOUND
    names = [name for name, is_near in zip(NAMES, near, strict=False) if is_near]
    law = problem.law(theta)
    if law.size_term(blocks.n).max() < NEGLIGIBLE * blocks.loss.min():
        names.append("A")
    law = replace(law, at_bound=", ".join(names))
    if not {"A", "alpha"} & set(names):
        return law
    low[ALPHA], high[ALPHA] = ASSUMED_ALPHA - AT_BOUND, ASSUMED_ALPHA + AT_BOUND
    fixed = _minimise(problem, low, high, blocks.loss)
    fixed[ALPHA] = ASSUMED_ALPHA  # the search ends anywhere within the bounds
    return replace(problem.law(fixed), at_bound=law.at_bound, is_assumed=True)


def _minimise(problem: _Problem, low: Floats, high: Floats, loss: Floats) -> Floats:
    from scipy.optimize import least_squares  # late: planning must start fast

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
    return np.asarray(tries[first_argmin([one.cost for one in tries])].x)


def assumed_law(blocks: Blocks) -> PooledLaw:
    """Return a law for a design with one token budget per size.

    Along tokens proportional to N the loss is E + c N^-alpha. Half of c is given to each of the two terms, as at the
    compute optimum of equal exponents.
    """
    from scipy.optimize import nnls

    n, tokens, alpha = blocks.n, blocks.tokens, ASSUMED_ALPHA
    design = np.column_stack([np.ones(len(n)), n**-alpha])
    scale = design.max(axis=0)
    level, slope = nnls(design / scale, blocks.loss)[0] / scale
    half = max(float(slope), SMALL) / 2
    ratio = float(np.exp(np.log(tokens / n).mean()))
    return PooledLaw(float(level), half, half * ratio**alpha, alpha, alpha, is_assumed=True)


def delete_runs(law: PooledLaw, blocks: Blocks, kept: Mask) -> PooledLaw:
    """Return the law refitted to the runs where `kept` is true, by one Gauss-Newton step from the full fit."""
    if law.is_assumed:
        return law
    problem = _Problem.of(blocks)
    theta = problem.theta(law)
    full, residual = problem.jacobian(theta), problem.residual(theta)
    free = np.linalg.norm(full, axis=0) > SMALL
    low, high = problem.bounds(blocks.loss)
    margin = 1e-3 * (high - low)
    free &= (theta > low + margin) & (theta < high - margin)
    step = np.zeros(len(theta))
    step[free] = np.linalg.lstsq(full[kept][:, free], -residual[kept], rcond=1e-9)[0]
    step = np.clip(step, -MAX_STEP, MAX_STEP)  # the kept runs may hardly identify the law
    return replace(problem.law(np.clip(theta + step, low, high)), at_bound=law.at_bound)


@dataclass(frozen=True)
class _Problem:
    """Runs in centred logarithms; theta = (ln E, ln A, ln B, alpha, beta, q...), with A and B at the centre."""

    x: Floats
    z: Floats
    q: Floats  # columns of q, (runs, 2 or 3)
    y: Floats
    centre: tuple[float, float]

    @classmethod
    def of(cls, blocks: Blocks) -> _Problem:
        x, z = np.log(blocks.n), np.log(blocks.tokens)
        centre = float(x.mean()), float(z.mean())
        x, z, u = x - centre[0], z - centre[1], blocks.u
        q = [u, -u * x, u**2] if blocks.is_curved else [u, -u * x]
        return cls(x, z, np.column_stack(q), np.log(blocks.loss), centre)

    def law(self, theta: Floats) -> PooledLaw:
        e, a, b, alpha, beta, *q = (float(value) for value in theta)
        x, z = self.centre
        big_a, big_b = math.exp(a + alpha * x), math.exp(b + beta * z)
        return PooledLaw(math.exp(e), big_a, big_b, alpha, beta, tuple(q))

    def theta(self, law: PooledLaw) -> Floats:
        a = math.log(law.A) - law.alpha * self.centre[0]
        b = math.log(law.B) - law.beta * self.centre[1]
        return np.array([math.log(law.E), a, b, law.alpha, law.beta, *law.q])

    def bounds(self, loss: Floats) -> tuple[Floats, Floats]:
        lowest, (low, high) = math.log(loss.min()), EXPONENT_BOUNDS
        q = np.full(self.q.shape[1], 5.0)
        return (
            np.array([lowest + math.log(0.05), -60, -60, low, low, *-q]),
            np.array([lowest + math.log(0.999), 60, 60, high, high, *q]),
        )

    def terms(self, theta: Floats) -> Floats:
        e, a, b, alpha, beta = theta[:5]
        size = a - alpha * self.x + self.q @ theta[5:]
        return np.exp(np.stack([np.full(len(size), e), size, b - beta * self.z]))

    def residual(self, theta: Floats) -> Floats:
        return np.log(self.terms(theta).sum(axis=0)) - self.y

    def jacobian(self, theta: Floats) -> Floats:
        terms = self.terms(theta)
        e, s, t = terms / terms.sum(axis=0)
        return np.column_stack([e, s, t, -self.x * s, -self.z * t, self.q * s[:, None]])


def _starts(problem: _Problem, loss: Floats) -> list[Floats]:
    """Return the best exponents of a grid; E, A and B are linear given these."""
    from scipy.optimize import nnls

    found = []
    for alpha in START_EXPONENTS:
        for beta in START_EXPONENTS:
            columns = [np.ones(len(loss)), np.exp(-alpha * problem.x), np.exp(-beta * problem.z)]
            linear, error = nnls(np.column_stack(columns) / loss[:, None], np.ones(len(loss)))
            e, a, b = np.log(np.maximum(linear, 1e-9 * loss.min()))
            found.append((error, np.array([e, a, b, alpha, beta, *np.zeros(problem.q.shape[1])])))
    errors = [error for error, _ in found]
    best = np.argsort(errors, kind="stable")[:STARTS]
    return [found[i][1] for i in best]
