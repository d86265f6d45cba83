"""The joint law of loss in size and data, for any number of families, and its derivatives.

    ln L = LSE(e_f, a_f - alpha_f x, b_f - beta_f z),   x = ln(N / N0), z = ln(D / D0)

Hoffmann et al. (arXiv 2203.15556), section 3.3, with family-specific parameters; LSE is log-sum-exp. N0 and D0
are geometric means over the runs: without this centring, ln A and alpha have a correlation of .999. exp(a_f) is
the reducible loss at N0 in nats. All functions are vectorised over parameter vectors ("sets").
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from analysis.arrays import Floats, Ints
from slm.errors import DataError

Model = Literal["M0", "M1", "M2", "M3", "M4"]
ROLES = ("e", "a", "b", "alpha", "beta")
E, A, B, ALPHA, BETA = range(5)
EXPONENT_BOUNDS = (0.02, 1.5)  # bounds of the search
FAMILY_ROLES: dict[str, tuple[int, ...]] = {  # family-specific parameters; the others are shared
    "M0": (),
    "M1": (A,),
    "M2": (A, ALPHA),
    "M3": (A, ALPHA, B, BETA),
    "M4": (A, ALPHA, B, BETA, E),
}


@dataclass(frozen=True)
class JointLaw:
    """Assignment of parameters to roles (E, A, B, alpha, beta) and families, for one of the models M0 to M4."""

    model: str
    families: int
    tied: tuple[int, int] | None = None
    """Two families that share alpha although the model separates it: the null hypothesis of their contrast."""

    def __post_init__(self) -> None:
        if self.model not in FAMILY_ROLES:
            raise DataError(f"model={self.model!r}: must be one of {', '.join(FAMILY_ROLES)}")

    @cached_property
    def slots(self) -> Ints:
        """Index of the parameter of each role and family, shape (5, families)."""
        slots, used = np.zeros((5, self.families), dtype=np.int64), 0
        for role in range(5):
            is_specific = role in FAMILY_ROLES[self.model]
            index = np.arange(self.families) if is_specific else slots[role] * 0
            if role == ALPHA and self.tied is not None and index.any():
                index[max(self.tied)] = index[min(self.tied)]
                index = np.unique(index, return_inverse=True)[1]
            slots[role] = used + index
            used += int(index.max()) + 1
        return slots

    @property
    def size(self) -> int:
        """Number of parameters."""
        return int(self.slots.max()) + 1

    @cached_property
    def roles(self) -> Ints:
        """Role of each parameter, shape (size,)."""
        roles = np.zeros(self.size, dtype=np.int64)
        for role in range(5):
            roles[self.slots[role]] = role
        return roles

    def embed(self, other: JointLaw, theta: Floats) -> Floats:
        """Convert parameters of another law to parameters of this law, shape (..., size).

        The predictions are equal if the other law is nested in this one. If this law shares a parameter that the
        other separates, the value of the last family is used.
        """
        converted = np.empty((*theta.shape[:-1], self.size))
        for role in range(5):
            converted[..., self.slots[role]] = theta[..., other.slots[role]]
        return converted


@dataclass(frozen=True)
class Points:
    """Observed runs in centred logarithms: x, z and y = ln L of shape (n,), `family` an index of shape (n,).

    `y` and `family` of shape (sets, n) give each parameter vector its own data or labels, as in a permutation.
    `tilt`, shape (n,) or (sets, n), is a fixed offset that is added to a_f - alpha_f x in the law.
    """

    x: Floats
    z: Floats
    y: Floats
    family: Ints
    log_n0: float
    log_d0: float
    tilt: Floats | None = None

    @classmethod
    def of(cls, n: ArrayLike, d: ArrayLike, loss: ArrayLike, family: ArrayLike) -> Points:
        """Build points from N, D, losses in nats, and family indices, all of shape (n,)."""
        log_n, log_d = np.log(np.asarray(n, float)), np.log(np.asarray(d, float))
        n0, d0 = float(log_n.mean()), float(log_d.mean())
        y = np.log(np.asarray(loss, float))
        return cls(log_n - n0, log_d - d0, y, np.asarray(family, np.int64), n0, d0)

    def __len__(self) -> int:
        return len(self.x)

    def at(self, n: ArrayLike, d: ArrayLike, family: ArrayLike) -> Points:
        """Return points at other N, D and families with the same N0 and D0, for predictions; their y is unused."""
        x = np.log(np.asarray(n, float)) - self.log_n0
        z = np.log(np.asarray(d, float)) - self.log_d0
        index = np.broadcast_to(np.asarray(family, np.int64), x.shape)
        return replace(self, x=x, z=z, family=index)

    def select(self, sets: Any) -> Points:
        """Return the points of some parameter vectors, by index or slice."""
        per_set = {
            name: column[sets]
            for name in ("y", "family", "tilt")
            if (column := getattr(self, name)) is not None and column.ndim == 2
        }
        return replace(self, **per_set)


def log_terms(law: JointLaw, theta: Floats, points: Points) -> Floats:
    """Return the three arguments of the log-sum-exp, shape (3, sets, n), for theta of shape (sets, size)."""
    if law.model == "M0" or law.families == 1:
        role = [theta[:, law.slots[r, 0], None] for r in range(5)]
    elif points.family.ndim == 1:
        role = [theta[:, law.slots[r][points.family]] for r in range(5)]
    else:
        role = [np.take_along_axis(theta, law.slots[r][points.family], axis=1) for r in range(5)]
    shape = (len(theta), len(points.x))
    size_term = role[A] - role[ALPHA] * points.x
    if points.tilt is not None:
        size_term = size_term + points.tilt
    return np.stack(
        [
            np.broadcast_to(role[E], shape),
            np.broadcast_to(size_term, shape),
            np.broadcast_to(role[B] - role[BETA] * points.z, shape),
        ]
    )


def log_loss(law: JointLaw, theta: Floats, points: Points) -> tuple[Floats, Floats]:
    """Return ln L, shape (sets, n), and the share of each term in L, shape (3, sets, n)."""
    terms = log_terms(law, theta, points)
    top = terms.max(axis=0)
    terms = np.exp(terms - top)
    total = terms.sum(axis=0)
    return top + np.log(total), terms / total


def jacobian(law: JointLaw, shares: Floats, points: Points) -> Floats:
    """Return d ln L / d theta, shape (sets, size, n)."""
    by_role = np.stack(
        [shares[0], shares[1], shares[2], -shares[1] * points.x, -shares[2] * points.z]
    )
    result = np.empty((shares.shape[1], law.size, shares.shape[2]))
    for parameter, role in enumerate(law.roles):
        users = np.flatnonzero(law.slots[role] == parameter)
        column = by_role[role]
        if len(users) < law.families:
            column = column * (law.slots[role][points.family] == parameter)
        result[:, parameter] = column
    return result


def bounds(law: JointLaw, points: Points) -> tuple[Floats, Floats]:
    """Return the lower and upper bounds of the parameters.

    alpha and beta lie in [.02, 1.5]; E in [.05, .999] times the lowest loss of its families.
    """
    low, high = np.full(law.size, -60.0), np.full(law.size, 60.0)
    exponent = law.roles >= ALPHA
    low[exponent], high[exponent] = EXPONENT_BOUNDS
    for parameter in np.flatnonzero(law.roles == E):
        users = np.flatnonzero(law.slots[E] == parameter)
        rows = np.isin(points.family, users)
        lowest = points.y[rows].min() if points.family.ndim == 1 and rows.any() else points.y.min()
        low[parameter], high[parameter] = lowest + np.log(0.05), lowest + np.log(0.999)
    return low, high
