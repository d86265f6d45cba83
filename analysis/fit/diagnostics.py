"""What may be read from a fit.

OK: use it. WEAK: print it with its interval, lean on nothing. UNIDENTIFIED: the data accept a whole
range up to a bound, never print the estimate without it. REFUSED: the design forbids a number.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from analysis.arrays import Floats
from analysis.fit.law import ALPHA, ROLES, JointLaw, jacobian, log_loss
from analysis.fit.levenberg_marquardt import NOISE_FREE, Minima, Problem, at_bound, free_gradient
from analysis.fit.profile_likelihood import Interval
from slm.rounding import condition_number

Status = Literal["OK", "WEAK", "UNIDENTIFIED", "REFUSED"]

AGREE = 1e-6  # relative difference of objectives
AGREE_EXPONENT = 1e-3
MIN_AGREEING_SHARE = 0.20
MIN_AGREEING = 3
MAX_GRADIENT = 1e-6
MAX_CONDITION = 1e4
VPNLS_TOLERANCE = 0.005
VPNLS_RESIDUAL = 0.03
MAX_ALPHA_WIDTH = 0.2
MAX_DISCARDED = 0.05


@dataclass(frozen=True)
class Evidence:
    """How the minimum was found. `agreeing` starts of `starts` reached it; `condition` is of the
    column-scaled Jacobian; `vpnls_gap` the largest difference of an exponent from variable projection.
    """

    starts: int
    agreeing: int
    exponent_spread: float
    unmoved: tuple[str, ...]
    at_bound: tuple[str, ...]
    gradient: float
    condition: float
    vpnls_gap: float | None
    residual_sd: float

    @property
    def agreeing_share(self) -> float:
        return self.agreeing / self.starts


def parameter_names(law: JointLaw, families: tuple[str, ...]) -> list[str]:
    """Such as `E`, `alpha[deep]`; in the order of the parameter vector."""
    names = []
    for parameter, role in enumerate(law.roles):
        users = np.flatnonzero(law.slots[role] == parameter)
        word = {"e": "E", "a": "A", "b": "B"}.get(ROLES[role], ROLES[role])
        own = len(users) < law.families
        names.append(f"{word}[{families[users[0]]}]" if own else word)
    return names


def collect_evidence(
    problem: Problem, minima: Minima, starts: Floats, names: list[str], vpnls_gap: float | None
) -> Evidence:
    best = minima.best
    theta, least = minima.theta[best], float(minima.objective[best])
    noise_free = NOISE_FREE * len(problem.points)
    near = minima.objective <= least * (1 + AGREE) + noise_free
    exponents = minima.theta[near][:, problem.law.roles >= ALPHA]
    moved = np.abs(theta - starts[best]) > 1e-10
    predicted, shares = log_loss(problem.law, theta[None], problem.points)
    slope = jacobian(problem.law, shares, problem.points)[0]
    norms = np.linalg.norm(slope, axis=1, keepdims=True)
    condition = condition_number(slope / norms) if (norms > 0).all() else math.inf
    steepest = float(np.abs(free_gradient(problem, theta[None])).max())
    return Evidence(
        starts=len(starts),
        agreeing=int(near.sum()),
        exponent_spread=float(np.ptp(exponents, axis=0).max()),
        unmoved=tuple(np.array(names)[~moved]),
        at_bound=tuple(np.array(names)[at_bound(problem, theta)]),
        gradient=0.0 if least <= noise_free else steepest / math.sqrt(least),
        condition=condition,
        vpnls_gap=vpnls_gap,
        residual_sd=float(np.sqrt(np.mean((problem.points.y - predicted[0]) ** 2))),
    )


def fit_status(
    found: Evidence, profiles: Mapping[str, Interval], discarded_share: float = 0.0
) -> tuple[Status, tuple[str, ...]]:
    """The status and the reasons for anything below OK. `profiles` by parameter name, E in nats."""
    flat = list(_flat(profiles))
    weak = [*_weak(profiles, discarded_share), *_doubts(found)]
    if flat:
        return "UNIDENTIFIED", tuple(flat + weak)
    return ("WEAK" if weak else "OK"), tuple(weak)


def _flat(profiles: Mapping[str, Interval]) -> Iterator[str]:
    for name, interval in profiles.items():
        ends = [interval.open_low, interval.open_high]
        if name.startswith("E"):
            if interval.open_high:
                low = 0.0 if interval.open_low else interval.low
                yield f"every {name} from {low:.3g} to {interval.high:.3f}, the least loss, is accepted"
        elif any(ends):
            yield (
                f"every {name} from {interval.low:.3f} to {interval.high:.3f} is accepted, up to a bound "
                "of the search"
            )


def _weak(profiles: Mapping[str, Interval], discarded_share: float) -> Iterator[str]:
    for name, interval in profiles.items():
        if name.startswith("alpha") and interval.width > MAX_ALPHA_WIDTH:
            yield f"the interval of {name} is {interval.width:.2f} wide, more than {MAX_ALPHA_WIDTH}"
        if name.startswith("E") and interval.open_low and not interval.open_high:
            yield f"the interval of {name} reaches 0"
    if discarded_share > MAX_DISCARDED:
        yield f"{discarded_share:.0%} of the bootstrap replicates did not converge"


def _doubts(found: Evidence) -> Iterator[str]:
    if found.agreeing_share < MIN_AGREEING_SHARE or found.agreeing < MIN_AGREEING:
        yield f"{found.agreeing} of {found.starts} starts reached the best objective"
    if found.exponent_spread > AGREE_EXPONENT:
        yield f"equally good fits differ by {found.exponent_spread:.3f} in an exponent"
    if found.unmoved:
        yield f"{', '.join(found.unmoved)} did not move from the start"
    if found.at_bound:
        yield f"{', '.join(found.at_bound)} at a bound of the search"
    if not found.gradient < MAX_GRADIENT:
        yield f"the gradient is {found.gradient:.1g} of the objective's scale"
    if not found.condition < MAX_CONDITION:
        yield f"parameters are collinear (condition {found.condition:.1g})"
    gap = found.vpnls_gap
    if found.residual_sd < VPNLS_RESIDUAL and gap is not None and gap > VPNLS_TOLERANCE:
        yield f"variable projection differs by {gap:.3f} in an exponent"
