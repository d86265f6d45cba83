"""The joint law of loss in size and data, with any number of families, and its derivatives.

    ln L = LSE(e_f, a_f - alpha_f x, b_f - beta_f z),   x = ln(N / N0), z = ln(D / D0)

(Hoffmann et al. 2203.15556, section 3.3, with family-specific parameters.) N0 and D0 are geometric
means: without centring, ln A and alpha are correlated at .999. exp(a_f) is then the loss that size
could still reduce at N0. All functions take many parameter vectors at once.
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
EXPONENT_BOUNDS = (0.02, 1.5)  # of the search
FAMILY_ROLES: dict[str, tuple[int, ...]] = {  # what each family has for itself; the rest is shared
    "M0": (),
    "M1": (A,),
    "M2": (A, ALPHA),
    "M3": (A, ALPHA, B, BETA),
    "M4": (A, ALPHA, B, BETA, E),
}


@dataclass(frozen=True)
class JointLaw:
    """Which parameter plays which role for which family."""

    model: str
    families: int
    tied: tuple[int, int] | None = None
    """Two families with one exponent alpha all the same: the null hypothesis of their contrast."""

    def __post_init__(self) -> None:
        if self.model not in FAMILY_ROLES:
            raise DataError(f"model={self.model!r}: must be one of {', '.join(FAMILY_ROLES)}")

    @cached_property
    def slots(self) -> Ints:
        """Index of the parameter per role and family, (5, families)."""
        slots, following = np.zeros((5, self.families), dtype=np.int64), 0
        for role in range(5):
            own = np.arange(self.families) if role in FAMILY_ROLES[self.model] else slots[role] * 0
            if role == ALPHA and self.tied is not None and own.any():
                own[max(self.tied)] = own[min(self.tied)]
                own = np.unique(own, return_inverse=True)[1]
            slots[role] = following + own
            following += int(own.max()) + 1
        return slots

    @property
    def size(self) -> int:
        return int(self.slots.max()) + 1

    @cached_property
    def roles(self) -> Ints:
        """Role of each parameter, (size,)."""
        roles = np.zeros(self.size, dtype=np.int64)
        for role in range(5):
            roles[self.slots[role]] = role
        return roles

    def embed(self, other: JointLaw, theta: Floats) -> Floats:
        """Parameters of another law as those of this one, (..., size): the same predictions where that law
        is nested in this one; where this one shares a parameter, it takes that of the last family.
        """
        own = np.empty((*theta.shape[:-1], self.size))
        for role in range(5):
            own[..., self.slots[role]] = theta[..., other.slots[role]]
        return own


@dataclass(frozen=True)
class Points:
    """Observed runs, centred: x, z, y = ln L of shape (n,), `family` an index (n,) or (sets, n).

    With (sets, n) each parameter vector has labels of its own, as in a permutation. `tilt` is a part
    of the exponent of the A term that is given, not fitted: (n,) or (sets, n), to add to -alpha x.
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
        log_n, log_d = np.log(np.asarray(n, float)), np.log(np.asarray(d, float))
        n0, d0 = float(log_n.mean()), float(log_d.mean())
        y = np.log(np.asarray(loss, float))
        return cls(log_n - n0, log_d - d0, y, np.asarray(family, np.int64), n0, d0)

    def __len__(self) -> int:
        return len(self.x)

    def at(self, n: ArrayLike, d: ArrayLike, family: ArrayLike) -> Points:
        """Other sizes, tokens and families in the same units, for predictions: their y is not that of runs."""
        x, z = (
            np.log(np.asarray(n, float)) - self.log_n0,
            np.log(np.asarray(d, float)) - self.log_d0,
        )
        return replace(
            self, x=x, z=z, family=np.broadcast_to(np.asarray(family, np.int64), x.shape)
        )

    def select(self, sets: Any) -> Points:
        """What some of the parameter vectors, by index or slice, are compared with."""
        per_set = {
            name: column[sets]
            for name in ("y", "family", "tilt")
            if (column := getattr(self, name)) is not None and column.ndim == 2
        }
        return replace(self, **per_set)


def log_terms(law: JointLaw, theta: Floats, points: Points) -> Floats:
    """The three exponents of the LSE, (3, sets, n), for theta (sets, size)."""
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
    """ln L (sets, n) and the share of each term in L (3, sets, n)."""
    terms = log_terms(law, theta, points)
    top = terms.max(axis=0)
    terms = np.exp(terms - top)
    total = terms.sum(axis=0)
    return top + np.log(total), terms / total


def jacobian(law: JointLaw, shares: Floats, points: Points) -> Floats:
    """d ln L / d theta, (sets, size, n)."""
    by_role = np.stack(
        [shares[0], shares[1], shares[2], -shares[1] * points.x, -shares[2] * points.z]
    )
    result = np.empty((shares.shape[1], law.size, shares.shape[2]))
    for parameter, role in enumerate(law.roles):
        users = np.flatnonzero(law.slots[role] == parameter)
        column = by_role[role]
        if len(users) < law.families:
            column = column * np.isin(points.family, users)
        result[:, parameter] = column
    return result


def bounds(law: JointLaw, points: Points) -> tuple[Floats, Floats]:
    """The box of the parameters: alpha, beta in [.02, 1.5], E in [.05, .999] of the least loss."""
    low, high = np.full(law.size, -60.0), np.full(law.size, 60.0)
    exponent = law.roles >= ALPHA
    low[exponent], high[exponent] = EXPONENT_BOUNDS
    for parameter in np.flatnonzero(law.roles == E):
        users = np.flatnonzero(law.slots[E] == parameter)
        mine = np.isin(points.family, users)
        least = points.y[mine].min() if points.family.ndim == 1 and mine.any() else points.y.min()
        low[parameter], high[parameter] = least + np.log(0.05), least + np.log(0.999)
    return low, high
