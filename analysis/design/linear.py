"""A design (planned or finished runs), and the precision of the joint law M2 linearised at its runs.

With J = d ln L / d theta at a base law, the noise of ln L has the covariance
V = diag((sigma / L)^2) + tau^2 / (L L') [same shape], and the generalised least-squares (GLS) estimate of theta
has the covariance (J' V^-1 J)^-1.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.arrays import Floats
from analysis.design.identifiability import labels
from analysis.formatting import count, power_of_ten, span
from slm.errors import DataError
from slm.rounding import condition_number, exceeds
from slm.summary import Rows, Summarized

# (upper bound of the loss, seed standard deviation), both in nats.
SEED_NOISE = ((4.0, 0.005), (5.0, 0.01), (math.inf, 0.02))
MAX_CONDITION = 1e7  # of the column-scaled J


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
        aspect_ratio: d_model / n_layers of the shape; empty if unknown or equal in all families.
    """

    family: Sequence[str]
    rung: Sequence[Hashable]
    shape: Sequence[str]
    n_flop: Sequence[float]
    tokens: Sequence[float]
    seed: Sequence[int]
    flops: Sequence[float]
    tokens_per_param: Sequence[float]
    aspect_ratio: Sequence[float] = ()

    def __post_init__(self) -> None:
        lengths = {name: len(column) for name, column in self.columns().items()}
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

    def columns(self) -> dict[str, Sequence[Any]]:
        """Return the columns by name, without an unknown aspect ratio."""
        return {
            name: column
            for name, column in vars(self).items()
            if len(column) or name != "aspect_ratio"
        }

    def with_runs(self, rows: Sequence[Mapping[str, Any]]) -> Design:
        """Return the design with further runs."""
        return Design(
            **{
                key: [*column, *(row[key] for row in rows)]
                for key, column in self.columns().items()
            }
        )

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


def joint_law_error(
    design: Design,
    contrast: tuple[str, str],
    law: Law,
    sigma: Floats,
    tau: float,
    *,
    trunk_sigma: float = 0.0,
) -> float | None:
    """Return the standard error of alpha_deep - alpha_wide in the joint law M2, or None if J is singular.

    theta = (ln E, ln A per family, ln B, alpha per family, beta), with ln N and ln D centred. In nats: `sigma` of each
    run, `tau` of a shape, `trunk_sigma` of a seed of a shape.
    """
    n, tokens = np.asarray(design.n_flop, float), np.asarray(design.tokens, float)
    terms = law.terms(n, tokens)
    loss = terms.sum(axis=1)
    e, a, b = (terms / loss[:, None]).T
    family = labels(design.family)
    names = list(dict.fromkeys(family))
    if not set(contrast) <= set(names):
        return None
    membership = np.stack([family == name for name in names], axis=1)
    x, z = np.log(n) - np.log(n).mean(), np.log(tokens) - np.log(tokens).mean()
    level, exponent = membership * a[:, None], membership * (-a * x)[:, None]
    jacobian = np.column_stack([e, level, b, exponent, -b * z])
    norms = np.linalg.norm(jacobian, axis=0)
    if not norms.all() or exceeds(condition_number(jacobian / norms), MAX_CONDITION):
        return None
    codes: dict[Hashable, int] = {}
    shapes = zip(design.family, design.rung, strict=True)
    shape = np.array([codes.setdefault(key, len(codes)) for key in shapes])
    same_shape = shape[:, None] == shape
    same_trunk = same_shape & (labels(design.seed)[:, None] == labels(design.seed))
    shared = tau**2 * same_shape + trunk_sigma**2 * same_trunk
    noise = np.diag((sigma / loss) ** 2) + shared / np.outer(loss, loss)
    covariance = np.linalg.inv(jacobian.T @ np.linalg.solve(noise, jacobian))
    c = np.zeros(len(covariance))
    first = 2 + len(names)  # of the exponents
    c[[first + names.index(name) for name in contrast]] = 1.0, -1.0
    return math.sqrt(c @ covariance @ c)


def check_noise(sigma: float | None, tau: float, trunk_sigma: float = 0.0) -> None:
    """Raise DataError if sigma is not above 0, or tau or trunk_sigma is negative."""
    if sigma is not None and not (math.isfinite(sigma) and sigma > 0):
        raise DataError(
            f"sigma={sigma}: the seed standard deviation in nats must be above 0; pass for example 0.005"
        )
    if not (math.isfinite(tau) and tau >= 0):
        raise DataError(
            f"tau={tau}: the random effect of a shape in nats must be at least 0; pass for example 0.01"
        )
    if not (math.isfinite(trunk_sigma) and trunk_sigma >= 0):
        raise DataError(
            f"trunk_sigma={trunk_sigma}: the random effect of a seed of a shape in nats must be at least 0"
        )
