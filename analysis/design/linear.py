"""A design, and the joint law linearised at it.

With J = d ln L / d theta at a base law, V = diag((sigma / L)^2) + tau^2 / (L L') [same shape] is the
covariance of the noise of ln L, and (J' V^-1 J)^-1 that of the generalised least-squares estimate.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from analysis.arrays import Floats
from analysis.design.identifiability import labels
from slm.errors import DataError
from slm.rounding import condition_number, merge_close

SEED_NOISE = (
    (4.0, 0.005),
    (5.0, 0.01),
    (math.inf, 0.02),
)  # nats, for losses below the first number


@dataclass(frozen=True)
class Design:
    """A set of runs, one entry a run, trained or only planned.

    `shape` is unique per family and rung. `n_flop` = FLOPs per token / 6; `flops` = f * D;
    `tokens_per_param` labels the token budget: the same number for all families of a rung.
    """

    family: Sequence[str]
    rung: Sequence[Hashable]
    shape: Sequence[str]
    n_flop: Sequence[float]
    tokens: Sequence[float]
    seed: Sequence[int]
    flops: Sequence[float]
    tokens_per_param: Sequence[float]

    def __post_init__(self) -> None:
        lengths = {name: len(column) for name, column in vars(self).items()}
        if len(set(lengths.values())) > 1:
            raise DataError(f"a design needs one entry a run in every column; there are {lengths}")
        if not len(self):
            raise DataError(
                "the design has no runs; a comparison needs two families at several sizes"
            )
        for name in ("n_flop", "tokens", "flops", "tokens_per_param"):
            column = np.asarray(getattr(self, name), float)
            bad = column[~(np.isfinite(column) & (column > 0))]
            if len(bad):
                raise DataError(f"{name}={bad[0]}: must be finite and above 0")

    def __len__(self) -> int:
        return len(self.family)


@dataclass(frozen=True)
class Law:
    """L = E + A N^-alpha + B D^-beta in nats per token; default: Besiroglu et al. 2404.10102."""

    E: float = 1.8172
    A: float = 482.01
    B: float = 2085.43
    alpha: float = 0.3478
    beta: float = 0.3658

    def terms(self, n: Floats, tokens: Floats) -> Floats:
        """The three terms of the loss, (runs, 3)."""
        return np.stack(
            [np.full(len(n), self.E), self.A * n**-self.alpha, self.B * tokens**-self.beta], axis=1
        )


def seed_noise(loss: Floats) -> Floats:
    """Seed standard deviation of the final loss in nats: .005 below 4 nats, .01 from 4 to 5,
    .02 above. Models of 100M parameters vary by .001 to .005, tiny ones by .01 to .02.
    """
    return np.select(
        [loss < bound for bound, _ in SEED_NOISE], [sd for _, sd in SEED_NOISE], SEED_NOISE[-1][1]
    )


class LinearDesign:
    """The linearised law of a design: J (runs, parameters), noise, and the contrast of exponents.

    theta = (lnE, lnA of each family, lnB, alpha of each family, beta), ln N and ln D centred.
    """

    def __init__(
        self, design: Design, contrast: tuple[str, str], law: Law, sigma: float | None, tau: float
    ):
        check_noise(sigma, tau)
        n, tokens = np.asarray(design.n_flop, float), np.asarray(design.tokens, float)
        terms = law.terms(n, tokens)
        self.loss = terms.sum(axis=1)
        weights = terms / self.loss[:, None]
        family = labels(design.family)
        names = list(dict.fromkeys(family))
        own = np.stack([family == name for name in names], axis=1)
        x, z = np.log(n) - np.log(n).mean(), np.log(tokens) - np.log(tokens).mean()
        level, exponent = own * weights[:, 1:2], own * (-weights[:, 1] * x)[:, None]
        self.jacobian = np.column_stack(
            [weights[:, 0], level, weights[:, 2], exponent, -weights[:, 2] * z]
        )
        count = len(names)
        self.contrast = np.zeros(3 + 2 * count)
        for name, sign in zip(contrast, (1.0, -1.0), strict=True):
            if name in names:
                self.contrast[2 + count + names.index(name)] = sign
        self.families = count
        self.is_deep, self.is_wide = family == contrast[0], family == contrast[1]
        rung = labels(design.rung)
        self.common_rungs = sorted(set(rung[self.is_deep]) & set(rung[self.is_wide]), key=str)
        self.rung, self.tokens_per_param = rung, merge_close(design.tokens_per_param)
        keys: dict[Hashable, int] = {}
        self.shape = np.array(
            [
                keys.setdefault(key, len(keys))
                for key in zip(design.family, design.rung, strict=True)
            ]
        )
        self.sigma = seed_noise(self.loss) if sigma is None else np.full(len(n), sigma)
        self.tau = tau

    @cached_property
    def noise(self) -> Floats:
        """Covariance of ln L, (runs, runs)."""
        same = self.shape[:, None] == self.shape[None, :]
        shared = self.tau**2 / np.outer(self.loss, self.loss) * same
        return np.diag((self.sigma / self.loss) ** 2) + shared

    @property
    def condition(self) -> float:
        norms = np.linalg.norm(self.jacobian, axis=0)
        if not (norms > 0).all():
            return math.inf
        return condition_number(self.jacobian / norms)

    @property
    def degrees_of_freedom(self) -> int:
        """Of the runs without a random effect of a shape, else of the shapes: G - 5 with two families."""
        if self.tau == 0:
            return len(self.loss) - self.jacobian.shape[1]
        return int(self.shape.max()) + 1 - (1 + 2 * self.families)

    def information(self, runs: NDArray[np.int64]) -> Floats:
        """J' V^-1 J of some of the runs."""
        jacobian = self.jacobian[runs]
        return jacobian.T @ np.linalg.solve(self.noise[np.ix_(runs, runs)], jacobian)

    def innovation(self, run: int, have: list[int]) -> tuple[Floats, float]:
        """What a run adds to those of its shape: its row of J and variance, given them."""
        mates = [other for other in have if self.shape[other] == self.shape[run]]
        row, variance = self.jacobian[run], float(self.noise[run, run])
        if not mates:
            return row, variance
        shared = self.noise[run, mates]
        weights = np.linalg.solve(self.noise[np.ix_(mates, mates)], shared)
        return row - weights @ self.jacobian[mates], variance - float(weights @ shared)


def check_noise(sigma: float | None, tau: float) -> None:
    if sigma is not None and not (math.isfinite(sigma) and sigma > 0):
        raise DataError(
            f"sigma={sigma}: the seed standard deviation in nats must be above 0, such as 0.005"
        )
    if not (math.isfinite(tau) and tau >= 0):
        raise DataError(
            f"tau={tau}: the random effect of a shape in nats must be at least 0, such as 0.01"
        )
