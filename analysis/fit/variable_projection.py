"""The joint law by variable projection: an independent check of the descent.

For given exponents L is linear in E, A_f and B, so these follow from non-negative least squares on the
columns 1, X^-alpha, Z^-beta with weights 1 / L; a grid, then a simplex, moves the exponents (2603.22339).
It minimises the squared relative error, and so agrees closely with least squares on ln L where
residuals are a few percent.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.optimize import minimize, nnls

from analysis.arrays import Floats
from analysis.fit.law import ALPHA, BETA, A, B, E, JointLaw, Points
from slm.rounding import first_argmin, snap_to_zero

GRID = 7


def vpnls(law: JointLaw, points: Points) -> Floats | None:
    """Parameters (size,) in the joint law's order; a coefficient of 0 becomes -inf. None if it fails."""
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
        found = np.empty((len(points), len(levels)))
        for column, parameter in enumerate(levels):
            role = int(law.roles[parameter])
            found[:, column] = bases[role] * (law.slots[role][points.family] == parameter)
        return found * np.exp(-points.y)[:, None]

    def misfit(values: Floats) -> float:
        if values.min() < 0.01 or values.max() > 2:
            return math.inf
        return snap_to_zero(nnls(columns(values), np.ones(len(points)))[1])

    is_alpha = law.roles[exponents] == ALPHA
    tried = np.linspace(0.08, 1.0, GRID)
    grid = [np.where(is_alpha, alpha, beta) for alpha in tried for beta in tried]
    start = grid[first_argmin([misfit(values) for values in grid])]
    options = {"xatol": 1e-6, "fatol": 1e-10, "maxiter": 400 * len(start)}
    found = minimize(misfit, start, method="Nelder-Mead", options=options)
    if not math.isfinite(found.fun):
        return None
    theta = np.empty(law.size)
    theta[exponents] = found.x
    with np.errstate(divide="ignore"):
        theta[levels] = np.log(nnls(columns(found.x), np.ones(len(points)))[0])
    return theta
