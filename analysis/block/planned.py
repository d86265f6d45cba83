"""Covariance of the block model's estimates for runs that are planned, at known noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.arrays import Floats
from analysis.block.blocks import Blocks
from analysis.block.effects import level_weights_of
from analysis.block.mixed_model import indicator, rank
from analysis.block.model import columns_of, exponent_reasons, nuisance_of
from analysis.block.pooled_law import PooledLaw


@dataclass(frozen=True)
class PlannedEffects:
    """Precision of (level in nats, d_alpha) of a design; only the level if the exponent is refused.

    Attributes:
        covariance: of the estimates at true values near 0, without the plug-in term.
        df: degrees of freedom of their t tests.
        n, tokens: the largest common size, and the budget there that is nearest to the compute optimum.
    """

    covariance: Floats
    df: int
    n: float
    tokens: float

    @property
    def has_exponent(self) -> bool:
        return len(self.covariance) > 1


def planned_effects(
    blocks: Blocks, law: PooledLaw, sigma: Floats, tau: float, trunk_sigma: float = 0.0
) -> PlannedEffects:
    """Return the precision of a design, by generalised least squares with known standard deviations in nats.

    `sigma`: of each run, shape (runs,); `tau`: of the random effect of a shape, which its seeds share; `trunk_sigma`:
    of the random effect of a seed of a shape, which its budgets share.
    """
    columns = columns_of(blocks, law)
    x, nuisance = columns.design(blocks.u), nuisance_of(blocks, law)
    shapes = indicator(blocks.shape)
    every = np.hstack([nuisance, x, shapes, indicator(blocks.trunk)]) / sigma[:, None]
    known = nuisance.shape[1] + x.shape[1]
    every = _decorrelated(every, every[:, known + shapes.shape[1] :], trunk_sigma)
    white = _decorrelated(every[:, :known], every[:, known : known + shapes.shape[1]], tau)
    q = np.linalg.qr(white[:, : nuisance.shape[1]])[0]
    rest = white[:, nuisance.shape[1] :]
    rest = rest - q @ (q.T @ rest)
    information = rest.T @ rest
    rung = blocks.common_rungs[-1]
    n = float(np.exp(blocks.log_n_rung[rung]))
    weights = [level_weights_of(columns, law, blocks, np.array([n]))[0]]
    if not exponent_reasons(blocks):
        gamma = np.zeros(x.shape[1])
        gamma[-1] = blocks.u_deep - blocks.u_wide
        weights.append(gamma)
    tokens = blocks.tokens[blocks.rung == rung]
    slope = np.log(law.alpha * law.size_term(n) / (law.beta * law.data_term(tokens)))
    return PlannedEffects(
        covariance=np.array(weights) @ np.linalg.inv(information) @ np.array(weights).T,
        df=rank(np.hstack([nuisance, shapes])) - rank(np.hstack([nuisance, x])),
        n=n,
        tokens=float(tokens[int(np.argmin(np.abs(slope)))]),
    )


def _decorrelated(columns: Floats, groups: Floats, deviation: float) -> Floats:
    """Return V^(-1/2) times columns, V = I + deviation^2 times the sum of g g^T over the columns g of `groups`.

    No run may be in two groups: in each row one column of `groups` at most is not 0.
    """
    weight = (groups**2).sum(axis=0)
    shrink = (1 - 1 / np.sqrt(1 + deviation**2 * weight)) / weight
    return np.asarray(columns - groups @ (shrink[:, None] * (groups.T @ columns)))
