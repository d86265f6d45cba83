"""Compute-optimal frontier of a family under a fitted law, within the measured ranges, and kappa from two of them.

At a given C the loss-minimising N has a closed form, so the frontier and kappa are smooth functions of the law's
parameters. The envelope of the losses predicted for single runs is not smooth: two nearly equal losses make its
inverse nearly vertical, and deleting one shape makes kappa jump.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.arrays import Floats
from analysis.fit.law import ALPHA, BETA, A, B, E, JointLaw, Points
from slm.rounding import snap_to_zero

BISECTIONS = 60  # of the range of ln C


@dataclass(frozen=True)
class Frontier:
    """Measured ranges of one family, and its relation between N and FLOPs per token.

    N = e^offset * (FLOPs per token)^slope; exact for N_flop, a least-squares line for other definitions of N.
    `per_token`, `tokens`, `ratio` and `flops` are (low, high) of the logarithms of FLOPs per token, tokens,
    tokens / FLOPs per token, and FLOPs.
    """

    family: int
    offset: float
    slope: float
    per_token: tuple[float, float]
    tokens: tuple[float, float]
    ratio: tuple[float, float]
    flops: tuple[float, float]
    log_d0: float

    @classmethod
    def of(cls, table: pd.DataFrame, points: Points, name: str, family: int) -> Frontier:
        """Build the frontier of the family `name`, whose index in the law is `family`."""
        rows = (table["family"] == name).to_numpy()
        log_c, log_d = (np.log(table[key].to_numpy(float)[rows]) for key in ("flops", "tokens"))
        per_token = log_c - log_d
        slope, offset = np.polyfit(per_token, points.x[rows], 1)
        return cls(
            family,
            float(offset),
            float(slope),
            per_token=_range(per_token),
            tokens=_range(log_d),
            ratio=_range(log_d - per_token),
            flops=_range(log_c),
            log_d0=points.log_d0,
        )

    def log_loss(self, law: JointLaw, theta: Floats, log_c: Floats) -> Floats:
        """Return ln of the minimal loss at FLOPs C, over N within the measured ranges; both of shape (sets,).

        N is a power of the FLOPs per token, so the loss at fixed C is convex in ln(FLOPs per token), and the
        constrained minimum is the unconstrained one clipped to the range.
        """
        e, a, b, alpha, beta = (
            theta[:, law.slots[role][self.family]] for role in (E, A, B, ALPHA, BETA)
        )
        log_d = log_c - self.log_d0
        exponent = alpha * self.slope
        size_part = np.log(exponent) + a - alpha * self.offset
        best = (size_part - np.log(beta) - b + beta * log_d) / (exponent + beta)
        low = np.maximum(self.per_token[0], log_c - self.tokens[1])
        low = np.maximum(low, (log_c - self.ratio[1]) / 2)
        high = np.minimum(self.per_token[1], log_c - self.tokens[0])
        high = np.minimum(high, (log_c - self.ratio[0]) / 2)
        per_token = np.clip(best, low, np.maximum(low, high))
        size_term = a - alpha * (self.offset + self.slope * per_token)
        return np.logaddexp(e, np.logaddexp(size_term, b - beta * (log_d - per_token)))

    def log_flops(self, law: JointLaw, theta: Floats, log_loss: Floats, end: float) -> Floats:
        """Return ln of the FLOPs, at most `end`, that reach a loss; nan if fewer FLOPs than measured would do."""
        low, high = np.full(len(theta), self.flops[0]), np.full(len(theta), end)
        outside = snap_to_zero(log_loss - self.log_loss(law, theta, low)) > 0
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            is_above = self.log_loss(law, theta, middle) > log_loss
            low, high = np.where(is_above, middle, low), np.where(is_above, high, middle)
        return np.where(outside, math.nan, high)


def _range(values: Floats) -> tuple[float, float]:
    return float(values.min()), float(values.max())


def largest_common_flops(frontiers: tuple[Frontier, Frontier]) -> float:
    """Return ln of the largest FLOPs within the ranges of both families."""
    return min(frontier.flops[1] for frontier in frontiers)


def log_multiplier(frontiers: tuple[Frontier, Frontier], law: JointLaw, theta: Floats) -> Floats:
    """Return ln(C_second / C_first) at equal loss, shape (sets,).

    The loss is that of the worse family at the largest common FLOPs.
    """
    end = largest_common_flops(frontiers)
    log_c = np.full(len(theta), end)
    level = np.max([frontier.log_loss(law, theta, log_c) for frontier in frontiers], axis=0)
    first, second = (frontier.log_flops(law, theta, level, end) for frontier in frontiers)
    return second - first
