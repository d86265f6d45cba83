"""The joint law L = E + A_f N^-alpha_f + B_f D^-beta_f, fitted to final losses, with a status.

From many starts with analytic gradients, cross-checked by variable projection; see `analysis.fit.law`,
`analysis.fit.levenberg_marquardt`, `analysis.fit.diagnostics`.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.arrays import Floats
from analysis.design.identifiability import exponent_refusals
from analysis.fit.diagnostics import Evidence, collect_evidence, fit_status, parameter_names
from analysis.fit.joint_result import JointFit, Parameters
from analysis.fit.law import ALPHA, BETA, A, B, E, JointLaw, Model, Points, log_loss
from analysis.fit.levenberg_marquardt import Problem, at_bound, minimise
from analysis.fit.profile_likelihood import (
    Interval,
    naive_covariance,
    profile,
    quantile_t,
    residual_df,
)
from analysis.fit.resampling import Solution, codes, jackknife_error, solve
from analysis.fit.variable_projection import vpnls
from analysis.formatting import count
from analysis.runs.validate import label_column, loss_warnings, positive_columns
from slm.errors import DataError

LossFunction = Literal["lsq", "huber"]
SENSITIVITY = (1e-4, 1e-3, 1e-2, math.inf)
BLOCKS = 100  # of runs that are left out together where there are no clusters
NORMAL_95 = 1.96
ALL = "all"  # the family of runs that name none


def fit_joint(  # noqa: PLR0917 (positions are part of the interface)
    n: ArrayLike,
    d: ArrayLike,
    loss: ArrayLike,
    family: Sequence[Hashable] | None = None,
    model: Model = "M2",
    loss_fn: LossFunction = "lsq",
    delta: float = 1e-3,
    cluster: Sequence[Hashable] | None = None,
    *,
    vocab_size: int | None = None,
    seed: int = 0,
) -> JointFit:
    """Fit L = E + A N^-alpha + B D^-beta (Hoffmann et al. 2203.15556) to one final loss per run.

    Args:
        n: size of each run's model, in any one definition (array or column), above 0.
        d: training tokens of each run.
        loss: final loss in nats per token, after the learning rate has decayed.
        family: label of each run's family; None: all are one.
        model: what a family has for itself: M0 nothing, M1 A, M2 A and alpha, M3 also B and beta,
            M4 also E. Without families all models are M0.
        loss_fn: least squares on ln L, or the sum of Huber's losses with threshold `delta`.
        cluster: label of the runs that are not independent, within a family: their shape. Standard
            errors are then over clusters, and each needs two token budgets.
        vocab_size: if known, losses above its logarithm are refused.

    Raises:
        DataError: if columns differ in length, or hold values that cannot be.
    """
    columns = positive_columns(n=n, d=d, loss=loss)
    threshold = _threshold(loss_fn, delta)
    size, tokens, losses = columns["n"], columns["d"], columns["loss"]
    named = label_column("family", family if family is not None else [ALL] * len(size), len(size))
    groups = None if cluster is None else label_column("cluster", cluster, len(size))
    families = tuple(dict.fromkeys(str(name) for name in named))
    law = JointLaw(model, max(len(families), 1))
    warnings = loss_warnings(losses, vocab_size) if len(losses) else []
    common: dict[str, Any] = {
        "model": model, "loss_fn": loss_fn, "delta": threshold,
        "families": families, "warnings": tuple(warnings), "runs": len(size),
    }  # fmt: skip
    refusals = exponent_refusals(named, groups, size, tokens)
    if len(size) <= law.size:
        few = count(len(size), "run")
        refusals.append(f"{few} for {law.size} parameters; run more sizes and budgets")
    if refusals:
        return JointFit(status="REFUSED", reasons=tuple(refusals), **common)
    index = codes(np.array([str(name) for name in named], dtype=object))
    points = Points.of(size, tokens, losses, index)
    clusters = np.arange(len(size)) % BLOCKS if groups is None else codes(_pairs(named, groups))
    problem = Problem.of(law, points, delta=threshold)
    solved = _diagnosed(solve(problem, clusters, seed), families)
    common |= {
        "n_range": (float(size.min()), float(size.max())),
        "d_range": (float(tokens.min()), float(tokens.max())),
    }
    return _result(
        solved, families, named=family is not None, clustered=groups is not None, common=common
    )


def _threshold(loss_fn: str, delta: float) -> float:
    """Huber's threshold in ln L; infinite for least squares."""
    if loss_fn not in ("lsq", "huber"):
        raise DataError(f"loss_fn={loss_fn!r}: must be 'lsq' or 'huber'")
    if not delta > 0:
        raise DataError(f"delta={delta}: Huber's threshold in ln L must be above 0, such as 1e-3")
    return math.inf if loss_fn == "lsq" else delta


def _pairs(family: NDArray[Any], cluster: NDArray[Any]) -> NDArray[Any]:
    pairs = np.empty(len(family), dtype=object)
    pairs[:] = list(zip(family, cluster, strict=True))
    return pairs


@dataclass(frozen=True)
class _Diagnosed:
    solution: Solution
    least_squares: Floats
    evidence: Evidence
    vpnls: Floats | None
    by_delta: dict[float, Floats]


def _diagnosed(solution: Solution, families: tuple[str, ...]) -> _Diagnosed:
    problem, law = solution.problem, solution.problem.law
    by_delta = {
        other: minimise(replace(problem, delta=other), solution.theta[None]).theta[0]
        for other in SENSITIVITY
    }
    squares = by_delta[math.inf]
    projected = vpnls(law, problem.points)
    gap = None
    if projected is not None:
        exponents = law.roles >= ALPHA
        gap = float(np.abs(projected - squares)[exponents].max())
    names = parameter_names(law, families)
    found = collect_evidence(problem, solution.minima, solution.starts, names, gap)
    return _Diagnosed(solution, squares, found, projected, by_delta)


def _result(
    solved: _Diagnosed,
    families: tuple[str, ...],
    *,
    named: bool,
    clustered: bool,
    common: dict[str, Any],
) -> JointFit:
    solution, problem = solved.solution, solved.solution.problem
    law, points, theta = problem.law, problem.points, solution.theta
    names = parameter_names(law, families)
    squares = replace(problem, delta=math.inf)
    errors, inflation, kind = _errors(solved, squares, len(families), clustered=clustered)
    told = [p for p in range(law.size) if law.roles[p] in (E, ALPHA, BETA)]
    profiles = {
        names[p]: _in_nats(names[p], profile(squares, solved.least_squares, p, float(inflation[p])))
        for p in told
    }
    status, reasons = fit_status(solved.evidence, profiles)
    values = _named(law, theta, names)
    sd = {names[p]: float(errors[p] * (values[names[p]] if law.roles[p] == E else 1)) for p in told}
    intervals = {name: (interval.low, interval.high) for name, interval in profiles.items()}
    if math.isfinite(problem.delta):  # the profile is that of least squares, another estimate
        intervals = {
            name: (max(value - NORMAL_95 * sd[name], 0.0), value + NORMAL_95 * sd[name])
            for name, value in values.items()
        }
    residual = points.y - log_loss(law, theta[None], points)[0][0]
    return JointFit(
        status=status,
        reasons=reasons,
        params=_parameters(law, theta, points, families, named=named),
        objective=float(solution.minima.objective.min()),
        rss=float(residual @ residual),
        standard_errors=sd,
        error_kind=kind,
        intervals=intervals,
        n0=math.exp(points.log_n0),
        d0=math.exp(points.log_d0),
        reducible={name: math.exp(theta[law.slots[A, f]]) for f, name in enumerate(families)},
        evidence=solved.evidence,
        vpnls={} if solved.vpnls is None else _named(law, solved.vpnls, names),
        by_delta={key: _named(law, value, names) for key, value in solved.by_delta.items()},
        solution=solution,
        **common,
    )


def _errors(
    solved: _Diagnosed, squares: Problem, families: int, *, clustered: bool
) -> tuple[Floats, Floats, str]:
    """Standard errors, by how much they widen the profile of least squares (squared), and their kind."""
    naive = np.sqrt(np.diag(naive_covariance(squares, solved.least_squares)))
    solution, df = solved.solution, residual_df(squares)
    if not clustered and math.isinf(solution.problem.delta):
        return naive, np.ones(len(naive)), "profile likelihood, runs taken as independent"
    kind = "jackknife, runs taken as independent"
    if clustered:
        kind = f"jackknife over {solution.cluster.max() + 1} shapes"
        df = max(int(solution.cluster.max()) - 2 * families, 1)
    errors = jackknife_error(solution.jackknife.theta)
    wider = quantile_t(df) / quantile_t(residual_df(squares)) * errors / np.maximum(naive, 1e-300)
    return errors, _inflation(squares, solved.least_squares, np.maximum(wider**2, 1e-12)), kind


def _inflation(squares: Problem, theta: Floats, squared: Floats) -> Floats:
    """Of cuts. Refits leave a parameter that lies at its bound there, which does not make it certain: it
    takes what the free ones have, and no less than independent runs would.
    """
    held = at_bound(squares, theta)
    told = ~held & np.isin(squares.law.roles, (E, ALPHA, BETA))
    typical = float(np.median(squared[told])) if told.any() else 1.0
    return np.where(held, max(typical, 1.0), squared)


def _in_nats(name: str, interval: Interval) -> Interval:
    if not name.startswith("E"):
        return interval
    return replace(interval, low=math.exp(interval.low), high=math.exp(interval.high))


def _named(law: JointLaw, theta: Floats, names: list[str]) -> dict[str, float]:
    """E and the exponents by name."""
    return {
        names[p]: float(math.exp(theta[p]) if law.roles[p] == E else theta[p])
        for p in range(law.size)
        if law.roles[p] in (E, ALPHA, BETA)
    }


def _parameters(
    law: JointLaw, theta: Floats, points: Points, families: tuple[str, ...], *, named: bool
) -> Parameters:
    """Raw units: A = exp(a + alpha ln N0)."""
    rows: dict[str, dict[str, float]] = {}
    for f, name in enumerate(families):
        a, b, alpha, beta = (float(theta[law.slots[role, f]]) for role in (A, B, ALPHA, BETA))
        rows[name] = {
            "A": math.exp(a + alpha * points.log_n0),
            "alpha": alpha,
            "B": math.exp(b + beta * points.log_d0),
            "beta": beta,
        }
    levels = {name: math.exp(theta[law.slots[E, f]]) for f, name in enumerate(families)}
    shared = levels[families[0]]
    if not named:
        return Parameters(E=shared, **rows[families[0]])
    return Parameters(E=shared if law.model != "M4" else levels, **rows)
