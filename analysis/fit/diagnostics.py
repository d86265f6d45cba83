"""Diagnose a fit and assign its status.

OK: the estimate can be used. WEAK: report it only with its interval, and base no conclusion on it. UNIDENTIFIED:
the data accept a range up to a bound of the search; report the range, never the estimate alone. REFUSED: the
design cannot identify the parameters, so there is no estimate.
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

AGREEMENT = 1e-6  # relative difference of the objectives of two minima that count as equal
EXPONENT_AGREEMENT = 1e-3
MIN_AGREEING_SHARE = 0.20
MIN_AGREEING = 3
MAX_GRADIENT = 1e-6
GRADIENT_FLOOR = 1e-7  # residual sd in ln L: below it a gradient consists of rounding errors
MAX_CONDITION = 1e4
VPNLS_TOLERANCE = 0.005
VPNLS_RESIDUAL = 0.03  # residual sd in ln L below which variable projection must agree
MAX_ALPHA_WIDTH = 0.2
MAX_DISCARDED = 0.05  # share of the bootstrap replicates


@dataclass(frozen=True)
class Evidence:
    """Convergence diagnostics of a fit.

    `agreeing`: number of the `starts` that reached the minimum; `exponent_spread`: largest range of an exponent
    over them. `unmoved`, `at_bound`: names of parameters that did not leave their start, or lie at a bound.
    `gradient`: largest component, over the square root of the objective (at least that of residuals of
    GRADIENT_FLOOR). `condition`: condition number of the column-scaled Jacobian. `vpnls_gap`: largest difference of an exponent from the fit by variable projection.
    `residual_sd`: root mean square residual in ln L.
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
    """Return names such as `E` and `alpha[deep]`, in the order of the parameter vector."""
    names = []
    for parameter, role in enumerate(law.roles):
        users = np.flatnonzero(law.slots[role] == parameter)
        symbol = {"e": "E", "a": "A", "b": "B"}.get(ROLES[role], ROLES[role])
        is_shared = len(users) == law.families
        names.append(symbol if is_shared else f"{symbol}[{families[users[0]]}]")
    return names


def collect_evidence(
    problem: Problem, minima: Minima, starts: Floats, names: list[str], vpnls_gap: float | None
) -> Evidence:
    """Compute the convergence diagnostics of the best of several minima."""
    best = minima.best
    theta, lowest = minima.theta[best], float(minima.objective[best])
    runs = len(problem.points)
    agreeing = minima.objective <= lowest * (1 + AGREEMENT) + NOISE_FREE * runs
    exponents = minima.theta[agreeing][:, problem.law.roles >= ALPHA]
    moved = np.abs(theta - starts[best]) > 1e-10
    predicted, shares = log_loss(problem.law, theta[None], problem.points)
    slope = jacobian(problem.law, shares, problem.points)[0]
    norms = np.linalg.norm(slope, axis=1, keepdims=True)
    condition = condition_number(slope / norms) if (norms > 0).all() else math.inf
    steepest = float(np.abs(free_gradient(problem, theta[None])).max())
    return Evidence(
        starts=len(starts),
        agreeing=int(agreeing.sum()),
        exponent_spread=float(np.ptp(exponents, axis=0).max()),
        unmoved=tuple(np.array(names)[~moved]),
        at_bound=tuple(np.array(names)[at_bound(problem, theta)]),
        gradient=steepest / math.sqrt(max(lowest, GRADIENT_FLOOR**2 * runs)),
        condition=condition,
        vpnls_gap=vpnls_gap,
        residual_sd=float(np.sqrt(np.mean((problem.points.y - predicted[0]) ** 2))),
    )


def fit_status(
    evidence: Evidence, profiles: Mapping[str, Interval], discarded_share: float = 0.0
) -> tuple[Status, tuple[str, ...]]:
    """Return the status and, unless it is OK, its reasons.

    `profiles`: profile-likelihood intervals by parameter name, E in nats. `discarded_share`: share of the
    bootstrap replicates that did not converge.
    """
    flat = list(_flat_profiles(profiles))
    weak = [*_weak_intervals(profiles, discarded_share), *_convergence_problems(evidence)]
    if flat:
        return "UNIDENTIFIED", tuple(flat + weak)
    return ("WEAK" if weak else "OK"), tuple(weak)


def _flat_profiles(profiles: Mapping[str, Interval]) -> Iterator[str]:
    for name, interval in profiles.items():
        ends = [interval.open_low, interval.open_high]
        if name.startswith("E"):
            if interval.open_high:
                low = 0.0 if interval.open_low else interval.low
                yield f"{name} is not identified: the data accept {low:.3g} to {interval.high:.3f} (the lowest loss)"
        elif any(ends):
            yield (
                f"{name} is not identified: the data accept {interval.low:.3f} to {interval.high:.3f}, up to a bound "
                "of the search"
            )


def _weak_intervals(profiles: Mapping[str, Interval], discarded_share: float) -> Iterator[str]:
    for name, interval in profiles.items():
        if name.startswith("alpha") and interval.width > MAX_ALPHA_WIDTH:
            yield f"the profile interval of {name} is {interval.width:.2f} wide, above {MAX_ALPHA_WIDTH}"
        if name.startswith("E") and interval.open_low and not interval.open_high:
            yield f"the profile interval of {name} reaches its lower bound"
    if discarded_share > MAX_DISCARDED:
        yield f"{discarded_share:.0%} of the bootstrap replicates were discarded: no convergence, or too few shapes"


def _convergence_problems(evidence: Evidence) -> Iterator[str]:
    if evidence.agreeing_share < MIN_AGREEING_SHARE or evidence.agreeing < MIN_AGREEING:
        yield f"{evidence.agreeing} of {evidence.starts} starts reached the best objective"
    if evidence.exponent_spread > EXPONENT_AGREEMENT:
        yield f"equally good fits differ by {evidence.exponent_spread:.3f} in an exponent"
    if evidence.unmoved:
        yield f"{', '.join(evidence.unmoved)} did not move from the starting value"
    if evidence.at_bound:
        yield f"parameters at a bound of the search: {', '.join(evidence.at_bound)}"
    if not evidence.gradient < MAX_GRADIENT:
        yield f"the largest relative gradient component is {evidence.gradient:.1g}, above {MAX_GRADIENT:g}"
    if not evidence.condition < MAX_CONDITION:
        yield f"parameters are collinear (condition number {evidence.condition:.1g}, limit {MAX_CONDITION:.0g})"
    gap = evidence.vpnls_gap
    if evidence.residual_sd < VPNLS_RESIDUAL and gap is not None and gap > VPNLS_TOLERANCE:
        yield f"the fit by variable projection differs by {gap:.3f} in an exponent"
