"""Fit the joint law L = E + A_f N^-alpha_f + B_f D^-beta_f to final losses, and assign a status.

The fit uses many starts and analytic gradients and is checked against variable projection; see
`analysis.fit.law`, `analysis.fit.levenberg_marquardt` and `analysis.fit.diagnostics`.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.arrays import Floats, Ints, codes
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
from analysis.fit.resampling import Solution, cluster_bootstrap, jackknife_error, solve
from analysis.fit.variable_projection import vpnls
from analysis.formatting import count
from analysis.runs.validate import label_column, loss_warnings, positive_columns
from slm.errors import DataError

LossFunction = Literal["lsq", "huber"]
SENSITIVITY = (1e-4, 1e-3, 1e-2, math.inf)  # Huber thresholds in ln L
REPLICATES = 500  # bootstrap resamples of a Huber fit
SINGLE_FAMILY = "all"  # family name of runs without family labels


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
    """Fit L = E + A N^-alpha + B D^-beta (Hoffmann et al., arXiv 2203.15556) to one final loss per run.

    Args:
        n: model size of each run, above 0, in one definition of N for all runs.
        d: training tokens of each run.
        loss: final loss of each run in nats per token, after the learning rate has decayed.
        family: family label of each run; None: all runs are one family.
        model: family-specific parameters: M0 none, M1 A, M2 A and alpha, M3 also B and beta, M4 also E.
            With one family all models are equal.
        loss_fn: "lsq": least squares on ln L; "huber": sum of Huber losses with threshold `delta` in ln L,
            with bootstrap standard errors.
        cluster: cluster label of each run within its family, normally its shape. Runs of a cluster are not
            independent: standard errors are then over clusters, and each cluster needs two token budgets.
        vocab_size: if known, losses above its logarithm are an error.
        seed: seed of the random starts and of the bootstrap.

    Raises:
        DataError: if columns differ in length or have invalid values.
    """
    columns = positive_columns(n=n, d=d, loss=loss)
    threshold = _threshold(loss_fn, delta)
    size, tokens, losses = columns["n"], columns["d"], columns["loss"]
    given = family if family is not None else [SINGLE_FAMILY] * len(size)
    labels = label_column("family", given, len(size))
    groups = None if cluster is None else label_column("cluster", cluster, len(size))
    if math.isfinite(threshold):
        order = _canonical_order(labels, groups, size, tokens, losses)
        size, tokens, losses, labels = size[order], tokens[order], losses[order], labels[order]
        groups = None if groups is None else groups[order]
    families = tuple(dict.fromkeys(str(name) for name in labels))
    law = JointLaw(model, max(len(families), 1))
    warnings = loss_warnings(losses, vocab_size) if len(losses) else []
    common: dict[str, Any] = {
        "model": model,
        "loss_fn": loss_fn,
        "delta": threshold,
        "families": families,
        "warnings": tuple(warnings),
        "runs": len(size),
    }
    refusals = exponent_refusals(labels, groups, size, tokens)
    if len(size) <= law.size:
        runs = count(len(size), "run")
        refusals.append(f"{runs} for {law.size} parameters; run more sizes and token budgets")
    if refusals:
        return JointFit(status="REFUSED", reasons=tuple(refusals), **common)
    index = codes(np.array([str(name) for name in labels], dtype=object))
    points = Points.of(size, tokens, losses, index)
    clusters = np.arange(len(size)) if groups is None else codes(_pairs(labels, groups))
    problem = Problem.of(law, points, delta=threshold)
    diagnosed = _diagnose(solve(problem, clusters, seed), families)
    common |= {
        "n_range": (float(size.min()), float(size.max())),
        "d_range": (float(tokens.min()), float(tokens.max())),
    }
    errors = _errors(diagnosed, clustered=groups is not None, seed=seed)
    return _result(diagnosed, errors, families, named=family is not None, common=common)


def _threshold(loss_fn: str, delta: float) -> float:
    """Return the Huber threshold in ln L; infinite for least squares."""
    if loss_fn not in ("lsq", "huber"):
        raise DataError(f"loss_fn={loss_fn!r}: must be 'lsq' or 'huber'")
    if not delta > 0:
        raise DataError(
            f"delta={delta}: the Huber threshold in ln L must be above 0; pass for example 1e-3"
        )
    return math.inf if loss_fn == "lsq" else delta


def _canonical_order(
    family: NDArray[Any], cluster: NDArray[Any] | None, n: Floats, d: Floats, loss: Floats
) -> Ints:
    """Return the order of the runs in which resamples are drawn, so that they do not depend on the given order."""
    labels = family if cluster is None else cluster

    def key(run: int) -> tuple[Any, ...]:
        return str(family[run]), n[run], d[run], loss[run], str(labels[run])

    return np.array(sorted(range(len(n)), key=key), dtype=np.int64)


def _pairs(family: NDArray[Any], cluster: NDArray[Any]) -> NDArray[Any]:
    pairs = np.empty(len(family), dtype=object)
    pairs[:] = list(zip(family, cluster, strict=True))
    return pairs


@dataclass(frozen=True)
class _Diagnosed:
    """A solution with its diagnostics, the least-squares fit, and fits at other Huber thresholds."""

    solution: Solution
    least_squares: Floats
    evidence: Evidence
    vpnls: Floats | None
    by_delta: dict[float, Floats]


def _diagnose(solution: Solution, families: tuple[str, ...]) -> _Diagnosed:
    problem, law = solution.problem, solution.problem.law
    by_delta = {
        delta: minimise(replace(problem, delta=delta), solution.theta[None]).theta[0]
        for delta in SENSITIVITY
    }
    least_squares = by_delta[math.inf]
    projected = vpnls(law, problem.points)
    gap = None
    if projected is not None:
        exponents = law.roles >= ALPHA
        gap = float(np.abs(projected - least_squares)[exponents].max())
    names = parameter_names(law, families)
    evidence = collect_evidence(problem, solution.minima, solution.starts, names, gap)
    return _Diagnosed(solution, least_squares, evidence, projected, by_delta)


def _result(
    diagnosed: _Diagnosed,
    errors: _Errors,
    families: tuple[str, ...],
    *,
    named: bool,
    common: dict[str, Any],
) -> JointFit:
    solution, problem = diagnosed.solution, diagnosed.solution.problem
    law, points, theta = problem.law, problem.points, solution.theta
    names = parameter_names(law, families)
    squares = replace(problem, delta=math.inf)
    reported = [p for p in range(law.size) if law.roles[p] in (E, ALPHA, BETA)]
    profiles = {
        names[p]: _in_nats(
            names[p], profile(squares, diagnosed.least_squares, p, float(errors.inflation[p]))
        )
        for p in reported
    }
    status, reasons = fit_status(diagnosed.evidence, profiles, errors.discarded_share)
    values = _by_name(law, theta, names)
    sd = {
        names[p]: float(errors.sd[p] * (values[names[p]] if law.roles[p] == E else 1))
        for p in reported
    }
    intervals = {name: (interval.low, interval.high) for name, interval in profiles.items()}
    # The profile belongs to the least-squares estimate; without identification it is the accepted range.
    if math.isfinite(problem.delta) and status != "UNIDENTIFIED":
        intervals = {
            name: (max(value - half, 0.0), value + half)
            for name, value in values.items()
            for half in [quantile_t(errors.df) * sd[name]]
        }
    residual = points.y - log_loss(law, theta[None], points)[0][0]
    return JointFit(
        status=status,
        reasons=reasons,
        params=_parameters(law, theta, points, families, named=named),
        objective=float(solution.minima.objective.min()),
        rss=float(residual @ residual),
        standard_errors=sd,
        error_kind=errors.kind,
        intervals=intervals,
        n0=math.exp(points.log_n0),
        d0=math.exp(points.log_d0),
        reducible={name: math.exp(theta[law.slots[A, f]]) for f, name in enumerate(families)},
        evidence=diagnosed.evidence,
        vpnls={} if diagnosed.vpnls is None else _by_name(law, diagnosed.vpnls, names),
        by_delta={
            delta: _by_name(law, value, names) for delta, value in diagnosed.by_delta.items()
        },
        solution=solution,
        **common,
    )


@dataclass(frozen=True)
class _Errors:
    """Standard errors of the parameters, their degrees of freedom, and the inflation of the profile's cut."""

    sd: Floats
    df: int
    inflation: Floats
    kind: str
    discarded_share: float = 0.0


def _errors(diagnosed: _Diagnosed, *, clustered: bool, seed: int) -> _Errors:
    solution = diagnosed.solution
    problem, units = solution.problem, int(solution.cluster.max()) + 1
    squares = replace(problem, delta=math.inf)
    naive = np.sqrt(np.diag(naive_covariance(squares, diagnosed.least_squares)))
    df, discarded_share = residual_df(squares), 0.0
    is_huber = math.isfinite(problem.delta)
    if not clustered and not is_huber:
        kind = "profile likelihood, runs assumed independent"
        return _Errors(naive, df, np.ones(len(naive)), kind)
    if clustered:
        df = max(units - 1 - 2 * problem.law.families, 1)
    if is_huber:
        drawn = cluster_bootstrap(
            problem,
            solution.theta,
            solution.cluster,
            problem.points.family,
            replicates=REPLICATES,
            seed=seed,
        )
        sd, discarded_share = drawn.theta.std(axis=0), drawn.discarded_share
        kind = f"bootstrap of {units} {'shapes' if clustered else 'runs'}"
    else:
        sd = jackknife_error(solution.jackknife.theta)
        kind = f"jackknife over {units} shapes"
    wider = quantile_t(df) / quantile_t(residual_df(squares)) * sd / np.maximum(naive, 1e-300)
    inflation = _inflation(squares, diagnosed.least_squares, np.maximum(wider**2, 1e-12))
    return _Errors(sd, df, inflation, kind, discarded_share)


def _inflation(squares: Problem, theta: Floats, squared: Floats) -> Floats:
    """Return the inflation of the profile's cut per parameter.

    Jackknife refits leave a parameter at its bound, so its jackknife error of 0 is not informative: it gets the
    median inflation of the free parameters, but at least 1, the value for independent runs.
    """
    is_bound = at_bound(squares, theta)
    free = ~is_bound & np.isin(squares.law.roles, (E, ALPHA, BETA))
    typical = float(np.median(squared[free])) if free.any() else 1.0
    return np.where(is_bound, max(typical, 1.0), squared)


def _in_nats(name: str, interval: Interval) -> Interval:
    if not name.startswith("E"):
        return interval
    return replace(interval, low=math.exp(interval.low), high=math.exp(interval.high))


def _by_name(law: JointLaw, theta: Floats, names: list[str]) -> dict[str, float]:
    """Return E (in nats) and the exponents by name."""
    return {
        names[p]: float(math.exp(theta[p]) if law.roles[p] == E else theta[p])
        for p in range(law.size)
        if law.roles[p] in (E, ALPHA, BETA)
    }


def _parameters(
    law: JointLaw, theta: Floats, points: Points, families: tuple[str, ...], *, named: bool
) -> Parameters:
    """Return the parameters in raw units: A = exp(a + alpha ln N0), and B likewise."""
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
