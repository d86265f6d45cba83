"""A design (planned or finished runs), and the joint law linearised at its runs.

With J = d ln L / d theta at a base law, the noise of ln L has the covariance
V = diag((sigma / L)^2) + tau^2 / (L L') [same shape], and the generalised least-squares (GLS) estimate of theta
has the covariance (J' V^-1 J)^-1.
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
from analysis.formatting import count, power_of_ten, span
from slm.errors import DataError
from slm.rounding import condition_number, merge_close
from slm.summary import Rows, Summarized

# (upper bound of the loss, seed standard deviation), both in nats.
SEED_NOISE = ((4.0, 0.005), (5.0, 0.01), (math.inf, 0.02))


@dataclass(frozen=True, repr=False)
class Design(Summarized):
    """A set of finished or planned runs, one entry per run in every column.

    Attributes:
        family: family label.
        rung: label of the size, equal for the paired shapes of all families.
        shape: label that is unique per family and rung.
        n_flop: N = f / 6, with f the training FLOPs per token.
        tokens: training tokens D.
        seed: seed of the run.
        flops: training FLOPs f * D.
        tokens_per_param: label of the token budget, equal for all families of a rung.
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
            raise DataError(
                f"a design needs one entry per run in every column; lengths are {lengths}"
            )
        if not len(self):
            raise DataError("the design has no runs; plan two families at several sizes")
        for name in ("n_flop", "tokens", "flops", "tokens_per_param"):
            column = np.asarray(getattr(self, name), float)
            bad = column[~(np.isfinite(column) & (column > 0))]
            if len(bad):
                raise DataError(f"{name}={bad[0]}: must be finite and above 0")

    def __len__(self) -> int:
        return len(self.family)

    def title(self) -> str:
        families = count(len(set(self.family)), "family", "families")
        total = power_of_ten(float(sum(self.flops)))
        return f"design of {count(len(self), 'run')}, {families}, {total} FLOPs"

    def rows(self) -> Rows:
        """Return one row per family."""
        rows = []
        for family in dict.fromkeys(self.family):
            runs = [row for row, name in enumerate(self.family) if name == family]
            rows.append(
                {
                    "family": family,
                    "runs": str(len(runs)),
                    "shapes": str(len({self.shape[row] for row in runs})),
                    "N_flop": span(self.n_flop[row] for row in runs),
                    "tokens": span(self.tokens[row] for row in runs),
                    "seeds": str(len({self.seed[row] for row in runs})),
                }
            )
        return rows


@dataclass(frozen=True)
class Law:
    """L = E + A N^-alpha + B D^-beta in nats per token; defaults from Besiroglu et al. (arXiv 2404.10102)."""

    E: float = 1.8172
    A: float = 482.01
    B: float = 2085.43
    alpha: float = 0.3478
    beta: float = 0.3658

    def terms(self, n: Floats, tokens: Floats) -> Floats:
        """Return the three terms of the loss in nats, shape (runs, 3)."""
        return np.stack(
            [np.full(len(n), self.E), self.A * n**-self.alpha, self.B * tokens**-self.beta], axis=1
        )


def seed_noise(loss: Floats) -> Floats:
    """Return the default seed standard deviation of the final loss in nats: .005 below 4 nats, .01 from 4 to 5
    nats, .02 above. Observed: .001 to .005 for models of about 100M parameters, .01 to .02 for tiny models.
    """
    return np.select(
        [loss < bound for bound, _ in SEED_NOISE], [sd for _, sd in SEED_NOISE], SEED_NOISE[-1][1]
    )


class LinearDesign:
    """The joint law M2 linearised at the runs of a design.

    `jacobian` is J, shape (runs, parameters), for theta = (ln E, ln A per family, ln B, alpha per family, beta)
    with ln N and ln D centred; `contrast @ theta` = alpha_deep - alpha_wide; `noise` is the covariance V.
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
        membership = np.stack([family == name for name in names], axis=1)
        x, z = np.log(n) - np.log(n).mean(), np.log(tokens) - np.log(tokens).mean()
        level = membership * weights[:, 1:2]
        exponent = membership * (-weights[:, 1] * x)[:, None]
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
        codes: dict[Hashable, int] = {}
        shapes = zip(design.family, design.rung, strict=True)
        self.shape = np.array([codes.setdefault(key, len(codes)) for key in shapes])
        self.sigma = seed_noise(self.loss) if sigma is None else np.full(len(n), sigma)
        self.tau = tau

    @cached_property
    def noise(self) -> Floats:
        """Covariance of ln L, shape (runs, runs)."""
        same_shape = self.shape[:, None] == self.shape[None, :]
        shared = self.tau**2 / np.outer(self.loss, self.loss) * same_shape
        return np.diag((self.sigma / self.loss) ** 2) + shared

    @property
    def condition(self) -> float:
        """Condition number of the column-scaled Jacobian; inf if it is singular."""
        norms = np.linalg.norm(self.jacobian, axis=0)
        if not (norms > 0).all():
            return math.inf
        return condition_number(self.jacobian / norms)

    @property
    def degrees_of_freedom(self) -> int:
        """Runs - parameters if tau = 0, else shapes - 1 - 2 * families (G - 5 with two families)."""
        if self.tau == 0:
            return len(self.loss) - self.jacobian.shape[1]
        return int(self.shape.max()) + 1 - (1 + 2 * self.families)

    def information(self, runs: NDArray[np.int64]) -> Floats:
        """Return the information matrix J' V^-1 J of the given runs."""
        jacobian = self.jacobian[runs]
        return jacobian.T @ np.linalg.solve(self.noise[np.ix_(runs, runs)], jacobian)

    def innovation(self, run: int, present: list[int]) -> tuple[Floats, float]:
        """Return a run's row of J and its variance, both conditional on the present runs of the same shape."""
        same = [other for other in present if self.shape[other] == self.shape[run]]
        row, variance = self.jacobian[run], float(self.noise[run, run])
        if not same:
            return row, variance
        shared = self.noise[run, same]
        weights = np.linalg.solve(self.noise[np.ix_(same, same)], shared)
        return row - weights @ self.jacobian[same], variance - float(weights @ shared)


def check_noise(sigma: float | None, tau: float) -> None:
    """Raise DataError if sigma is not above 0 or tau is negative."""
    if sigma is not None and not (math.isfinite(sigma) and sigma > 0):
        raise DataError(
            f"sigma={sigma}: the seed standard deviation in nats must be above 0; pass for example 0.005"
        )
    if not (math.isfinite(tau) and tau >= 0):
        raise DataError(
            f"tau={tau}: the random effect of a shape in nats must be at least 0; pass for example 0.01"
        )
