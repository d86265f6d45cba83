"""A cheap check of exponents with one number a shape, so that runs of a shape are not counted twice.

First L = u_shape + B D^-beta over all runs, then u = E + A_f N^-alpha_f over shapes, with one alpha or
one a family; F of the difference with 1 and G - 1 - 2 families degrees of freedom.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import special
from scipy.optimize import minimize_scalar

from analysis.arrays import Floats, Ints
from analysis.fit.law import BETA, B, JointLaw, Points
from analysis.fit.levenberg_marquardt import Problem, minimise, start_grid
from analysis.formatting import format_p_value
from slm.rounding import ITERATION_TOLERANCE, ROUNDING_TOLERANCE
from slm.summary import Summarized

ABSENT = -60.0  # ln of a term that is left out
LEAST = ITERATION_TOLERANCE**2  # sums of squares up to this are the error of the iteration for beta


@dataclass(frozen=True, repr=False)
class CollapsedF(Summarized):
    """F of one exponent against two, on shapes."""

    f: float
    p: float
    df: int

    def title(self) -> str:
        return f"F test of one exponent against two: F(1, {self.df}) = {self.f:.3g}, {format_p_value(self.p)}"


def shape_losses(log_d: Floats, loss: Floats, shape: Ints) -> tuple[Floats, float]:
    """Loss of each shape at infinite data, (shapes,), and beta, by least squares on the loss."""
    member = (shape[:, None] == np.arange(shape.max() + 1)).astype(float)
    centred = log_d - log_d.mean()

    def solve(beta: float) -> tuple[float, Floats]:
        design = np.column_stack([member, np.exp(-beta * centred)])
        coefficients, *_ = np.linalg.lstsq(design, loss, rcond=ROUNDING_TOLERANCE)
        residual = loss - design @ coefficients
        return float(residual @ residual), coefficients[:-1]

    options = {"xatol": ROUNDING_TOLERANCE}
    found = minimize_scalar(
        lambda beta: solve(beta)[0], bounds=(0.02, 1.5), method="bounded", options=options
    )
    return solve(float(found.x))[1], float(found.x)


def collapsed_f(
    points: Points, shape: Ints, law: JointLaw, families: tuple[int, int]
) -> CollapsedF | None:
    """None where a shape's loss at infinite data is not positive, or too few shapes are there."""
    u, _ = shape_losses(points.z, np.exp(points.y), shape)
    first = np.array([np.flatnonzero(shape == g)[0] for g in range(len(u))])
    df = len(u) - 1 - 2 * law.families
    if (u <= 0).any() or df < 1:
        return None
    collapsed = Points(points.x[first], np.zeros(len(u)), np.log(u), points.family[first], 0.0, 0.0)
    squares = []
    for one in (replace(law, tied=families), law):
        problem = Problem.of(one, collapsed)
        starts = start_grid(one, collapsed)
        for role, value in ((B, ABSENT), (BETA, 0.5)):
            problem.low[one.roles == role] = problem.high[one.roles == role] = value
        squares.append(2 * float(minimise(problem, starts).objective.min()))
    gain = squares[0] - squares[1]
    f = gain / max(squares[1] / df, LEAST) if gain > LEAST else 0.0
    return CollapsedF(f, float(special.fdtrc(1, df, f)), df)
