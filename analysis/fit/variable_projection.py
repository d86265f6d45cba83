"""Fit the joint law by variable projection, as an independent check of the gradient-based fit.

For given exponents L is linear in E, A_f and B, so these follow from non-negative least squares (NNLS) on the
columns 1, X^-alpha, Z^-beta with weights 1 / L. The exponents are found by a grid search and Nelder-Mead
(arXiv 2603.22339). The objective is the squared relative error, so the result is close to that of least squares on
ln L if residuals are a few percent.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.optimize import minimize, nnls

from analysis.arrays import Floats
from analysis.fit.law import ALPHA, BETA, A, B, E, JointLaw, Points
from slm.rounding import first_argmin, snap_to_zero

GRID_POINTS = 7  # per exponent


def vpnls(law: JointLaw, points: Points) -> Floats | None:
    """Return the parameters in the law's order, shape (size,), or None if the search fails.

    A coefficient of 0 becomes -inf, since levels are stored as logarithms.
    """
    exponents = np.flatnonzero(law.roles >= ALPHA)
    levels = np.flatnonzero(law.roles < ALPHA)

    def columns(values: Floats) -> Floats:
        theta = np.zeros(law.size)
        theta[exponents] = values
        alpha, beta = (theta[law.slots[role][points.family]] for role in (ALPHA, BETA))
        bases = {
            E: np.ones(len(points)),
            A: np.exp(-alpha * points.x),
            B: np.exp(-beta * points.z),
        }
        matrix = np.empty((len(points), len(levels)))
        for column, parameter in enumerate(levels):
            role = int(law.roles[parameter])
            matrix[:, column] = bases[role] * (law.slots[role][points.family] == parameter)
        return matrix * np.exp(-points.y)[:, None]

    def misfit(values: Floats) -> float:
        if values.min() < 0.01 or values.max() > 2:
            return math.inf
        return snap_to_zero(nnls(columns(values), np.ones(len(points)))[1])

    is_alpha = law.roles[exponents] == ALPHA
    axis = np.linspace(0.08, 1.0, GRID_POINTS)
    grid = [np.where(is_alpha, alpha, beta) for alpha in axis for beta in axis]
    start = grid[first_argmin([misfit(values) for values in grid])]
    options = {"xatol": 1e-6, "fatol": 1e-10, "maxiter": 400 * len(start)}
    optimum = minimize(misfit, start, method="Nelder-Mead", options=options)
    if not math.isfinite(optimum.fun):
        return None
    theta = np.empty(law.size)
    theta[exponents] = optimum.x
    with np.errstate(divide="ignore"):
        theta[levels] = np.log(nnls(columns(optimum.x), np.ones(len(points)))[0])
    return theta
