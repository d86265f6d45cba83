"""A family's compute-optimal frontier as a fitted law has it, inside of what was measured, and kappa from it.

At a given C the least loss over N is that of one N in closed form, so the frontier is smooth in the law's
parameters, and so is kappa. An envelope through losses that the law predicts for single runs is not: two
that are nearly equal make its inverse nearly vertical, and leaving out a shape makes kappa jump.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.arrays import Floats
from analysis.fit.law import ALPHA, BETA, A, B, E, JointLaw, Points
from slm.rounding import snap_to_zero

HALVINGS = 60  # of the range of ln C


@dataclass(frozen=True)
class Frontier:
    """One family. N follows FLOPs per token as N = e^offset (FLOPs per token)^slope, exactly for N_flop.

    Ranges, as logarithms: FLOPs per token, tokens, tokens over FLOPs per token, and the FLOPs of the runs.
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
        mine = (table["family"] == name).to_numpy()
        log_c, log_d = (np.log(table[key].to_numpy(float)[mine]) for key in ("flops", "tokens"))
        per_token = log_c - log_d
        slope, offset = np.polyfit(per_token, points.x[mine], 1)
        return cls(
            family, float(offset), float(slope),
            per_token=_range(per_token), tokens=_range(log_d), ratio=_range(log_d - per_token),
            flops=_range(log_c), log_d0=points.log_d0,
        )  # fmt: skip

    def log_loss(self, law: JointLaw, theta: Floats, log_c: Floats) -> Floats:
        """ln of the least loss at FLOPs C, both (sets,), over N within the measured ranges.

        With N a power of the FLOPs per token, the loss at fixed C is convex in their logarithm, so the
        minimum of the range is the free one moved into it.
        """
        e, a, b, alpha, beta = (
            theta[:, law.slots[role][self.family]] for role in (E, A, B, ALPHA, BETA)
        )
        log_d = log_c - self.log_d0
        steep = alpha * self.slope
        size_part = np.log(steep) + a - alpha * self.offset
        best = (size_part - np.log(beta) - b + beta * log_d) / (steep + beta)
        least = np.maximum(self.per_token[0], log_c - self.tokens[1])
        least = np.maximum(least, (log_c - self.ratio[1]) / 2)
        most = np.minimum(self.per_token[1], log_c - self.tokens[0])
        most = np.minimum(most, (log_c - self.ratio[0]) / 2)
        per_token = np.clip(best, least, np.maximum(least, most))
        size_term = a - alpha * (self.offset + self.slope * per_token)
        return np.logaddexp(e, np.logaddexp(size_term, b - beta * (log_d - per_token)))

    def log_flops(self, law: JointLaw, theta: Floats, log_loss: Floats, end: float) -> Floats:
        """ln of the FLOPs up to `end` that reach a loss; nan if the cheapest runs are better already."""
        low, high = np.full(len(theta), self.flops[0]), np.full(len(theta), end)
        outside = snap_to_zero(log_loss - self.log_loss(law, theta, low)) > 0
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            missed = self.log_loss(law, theta, middle) > log_loss
            low, high = np.where(missed, middle, low), np.where(missed, high, middle)
        return np.where(outside, math.nan, high)


def _range(values: Floats) -> tuple[float, float]:
    return float(values.min()), float(values.max())


def largest_common_flops(frontiers: tuple[Frontier, Frontier]) -> float:
    """ln of the largest FLOPs that both families were run at."""
    return min(one.flops[1] for one in frontiers)


def log_multiplier(frontiers: tuple[Frontier, Frontier], law: JointLaw, theta: Floats) -> Floats:
    """ln (C_second / C_first) at the loss that the worse one has at the largest common FLOPs, (sets,)."""
    end = largest_common_flops(frontiers)
    level = np.max(
        [one.log_loss(law, theta, np.full(len(theta), end)) for one in frontiers], axis=0
    )
    first, second = (one.log_flops(law, theta, level, end) for one in frontiers)
    return second - first
