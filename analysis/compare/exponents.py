"""The secondary analysis: exponents of the joint law M2, with inference over shapes.

Shapes (family x size) are the units: runs of a shape share its random effect, so budgets and seeds of one are not
independent. Delete-one-shape jackknife (Efron and Stein 1981) with t(G - 5), and profile likelihood with a cut
widened to the jackknife. The primary analysis is the block model (`analysis.compare.fit_block`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy import special

from analysis.arrays import Floats, Ints
from analysis.block.effects import EQUIVALENT
from analysis.design.identifiability import (
    comparison_refusals,
    exponent_refusals,
    family_refusals,
    labels,
)
from analysis.fit.diagnostics import Status
from analysis.fit.joint import fit_joint
from analysis.fit.joint_result import JointFit
from analysis.fit.law import ALPHA, EXPONENT_BOUNDS, JointLaw, Points, log_loss
from analysis.fit.levenberg_marquardt import Minima, Problem, at_bound
from analysis.fit.profile_likelihood import naive_covariance, profile_contrast, quantile_t
from analysis.fit.resampling import Solution, jackknife_error, solve
from analysis.formatting import (
    count,
    format_interval,
    format_number,
    format_range,
    p_text,
)
from analysis.runs.study import Study
from slm.rounding import ITERATION_TOLERANCE, exceeds, first_argmin, snap_to_zero
from slm.summary import Rows, Summarized

POWER = 0.8


@dataclass(frozen=True, repr=False)
class ExponentDifference(Summarized):
    """alpha_deep - alpha_wide of the joint law M2, loss in nats. Numbers are None where refused.

    `alpha`, `alpha_intervals`: per family; intervals are jackknife, 95%, t with `df` = G - 1 - 2 families.
    `without`: the most influential shape, and the difference without it. `equivalence_p`: of the test that
    |difference| >= .02, small if the exponents are the same. `mde80`: a true difference that this study
    would have found with a probability of 80%. `fitted`: the fit that all of this was computed from; left
    out of `to_dict`.
    """

    n_name: str
    deep: str
    wide: str
    status: Status
    reasons: tuple[str, ...]
    runs: int
    shapes: int
    alpha: dict[str, float] = field(default_factory=dict)
    alpha_intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    difference: float | None = None
    standard_error: float | None = None
    interval: tuple[float, float] | None = None
    df: int | None = None
    p: float | None = None
    profile: tuple[float, float] | None = None
    without: tuple[str, float] | None = None
    equivalence_p: float | None = None
    mde80: float | None = None
    fit: JointFit | None = None
    fitted: FittedStudy | None = field(default=None, repr=False, compare=False)

    @property
    def refused(self) -> bool:
        return self.difference is None

    def accepted_alpha(self, family: str) -> tuple[float, float]:
        """Return the range of a family's exponent that the profile likelihood accepts."""
        if self.fit is None:
            return EXPONENT_BOUNDS
        return self.fit.intervals.get(f"alpha[{family}]", EXPONENT_BOUNDS)

    @property
    def accepted_difference(self) -> tuple[float, float]:
        """Return the range of differences that the accepted ranges of both exponents allow."""
        deep, wide = self.accepted_alpha(self.deep), self.accepted_alpha(self.wide)
        return deep[0] - wide[1], deep[1] - wide[0]

    @property
    def difference_text(self) -> str:
        """Return the difference with its interval, or why it has no value; only the accepted range if UNIDENTIFIED."""
        if self.difference is None or self.interval is None:
            return f"refused: {'; '.join(self.reasons)}"
        if self.status == "UNIDENTIFIED":
            ends = format_range(self.accepted_difference, signed=True)
            return f"not identified: any value from {ends} is accepted"
        return format_interval(self.difference, *self.interval)

    def alpha_text(self, family: str) -> str:
        """Format the exponent of one family, in the same way as `difference_text`."""
        if family not in self.alpha:
            return "refused"
        if self.status == "UNIDENTIFIED":
            return f"not identified: {format_range(self.accepted_alpha(family))} is accepted"
        return format_interval(self.alpha[family], *self.alpha_intervals[family], signed=False)

    def title(self) -> str:
        runs, shapes = count(self.runs, "run"), count(self.shapes, "shape")
        return (
            f"exponent difference, {self.deep} minus {self.wide}, loss in nats against {self.n_name}, "
            f"{runs}, {shapes}: {self.status}"
        )

    def details(self) -> Iterator[tuple[str, str]]:
        yield "difference [95% CI]", self.difference_text
        if self.refused:
            return
        for family in self.alpha:
            yield f"alpha {family} [95% CI]", self.alpha_text(family)
        if self.status != "UNIDENTIFIED":
            yield "jackknife over shapes", f"{p_text(self.p)}, t({self.df})"
            yield "MDE (80% power)", format_number(self.mde80)
        for reason in self.reasons:
            yield "reason", reason

    def row(self) -> dict[str, str]:
        """Return one row of the table of exponents; without a value if refused or not identified."""
        identified = self.status != "UNIDENTIFIED"
        return {
            "N": self.n_name,
            "status": self.status,
            **{
                f"alpha {family} [95% CI]": self.alpha_text(family)
                for family in dict.fromkeys((self.deep, self.wide))
            },
            "difference [95% CI]": "refused" if self.refused else self.difference_text,
            "p": p_text(self.p if identified else None),
        }

    def rows(self) -> Rows:
        return [self.row()]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        content = asdict(replace(self, fit=None, fitted=None))
        del content["fitted"]
        content["fit"] = None if self.fit is None else self.fit.to_dict()
        return content


@dataclass(frozen=True)
class FittedStudy:
    """A study with its law M2 at its minimum: what resampling starts from."""

    study: Study
    solution: Solution
    shape_names: tuple[str, ...]

    @property
    def problem(self) -> Problem:
        return self.solution.problem

    @property
    def theta(self) -> Floats:
        return self.solution.theta

    @property
    def shape(self) -> Ints:
        """Return the code of the shape of each run."""
        return self.solution.cluster

    @property
    def deleted(self) -> Minima:
        """Return the fits without each shape in turn."""
        return self.solution.jackknife

    @property
    def law(self) -> JointLaw:
        return self.problem.law

    @property
    def families(self) -> tuple[int, int]:
        names = self.study.families
        return names.index(self.study.deep), names.index(self.study.wide)

    def contrast(self, theta: Floats) -> Floats:
        """Return alpha_deep - alpha_wide of parameter vectors (..., size)."""
        deep, wide = self.law.slots[ALPHA][list(self.families)]
        return theta[..., deep] - theta[..., wide]

    @property
    def df(self) -> int:
        """Return the degrees of freedom of estimates whose unit of replication is the shape."""
        return len(self.shape_names) - 1 - 2 * self.law.families


def refusals_of(study: Study) -> list[str]:
    """Return why the exponents of the study cannot be compared; empty if they can."""
    table = study.table
    family = labels(list(table["family"]))
    per_token = table["flops"] / table["tokens"]
    found = comparison_refusals(family, per_token, study.deep, study.wide)
    found += exponent_refusals(family, labels(list(table["rung"])), table["n"], table["tokens"])
    shapes = table.groupby(["family", "shape"]).ngroups
    needed = 2 + 2 * len(study.families)
    if not found and shapes < needed:
        found.append(f"{count(shapes, 'shape')}, at least {needed} are needed; run more sizes")
    return found


def without_small_families(study: Study) -> tuple[Study, list[str]]:
    """Leave out families that are not compared and have too few sizes or budgets for an exponent; also return why."""
    table, found = study.table, dict[str, str]()
    for name, rows in table.groupby("family", sort=False):
        if name not in (study.deep, study.wide):
            n, tokens = rows["n"].to_numpy(), rows["tokens"].to_numpy()
            reasons = family_refusals(list(rows["rung"]), n, tokens)
            if reasons:
                found[str(name)] = f"{name}: {reasons[0]}"
    kept = table[~table["family"].isin(list(found))].reset_index(drop=True)
    return replace(study, table=kept), list(found.values())


def fitted(study: Study) -> FittedStudy:
    """Fit M2 to a study that is not refused."""
    table = study.table
    index = np.array([study.families.index(name) for name in table["family"]])
    points = Points.of(table["n"], table["tokens"], table["loss_nats_per_token"], index)
    problem = Problem.of(JointLaw("M2", len(study.families)), points)
    shape = np.asarray(table.groupby(["family", "shape"], sort=False).ngroup(), dtype=np.int64)
    return _fitted(study, solve(problem, shape))


def _fitted(study: Study, solution: Solution) -> FittedStudy:
    table = study.table
    shapes = table[["family", "shape"]].drop_duplicates()
    names = tuple(f"{f} {s}" for f, s in zip(shapes["family"], shapes["shape"], strict=True))
    return FittedStudy(study, solution, names)


def exponent_difference_of(study: Study) -> ExponentDifference:
    """Return the exponents of the compared families by the joint law, or why they are refused."""
    study, _ = without_small_families(study)
    table = study.table
    refusals = refusals_of(study)
    shapes = table.groupby(["family", "shape"]).ngroups
    head: dict[str, Any] = {
        "n_name": study.n_name,
        "deep": study.deep,
        "wide": study.wide,
        "runs": len(table),
        "shapes": shapes,
    }
    if refusals:
        return ExponentDifference(status="REFUSED", reasons=tuple(refusals), **head)
    fit = fit_joint(
        table["n"],
        table["tokens"],
        table["loss_nats_per_token"],
        list(table["family"]),
        cluster=list(table["shape"]),
    )
    if fit.solution is None:
        return ExponentDifference(status="REFUSED", reasons=fit.reasons, **head)
    known = _fitted(study, fit.solution)
    return ExponentDifference(
        status=fit.status,
        reasons=fit.reasons,
        fit=fit,
        fitted=known,
        **_jackknife(known),
        **head,
    )


def _jackknife(known: FittedStudy) -> dict[str, Any]:
    difference = snap_to_zero(known.contrast(known.theta))
    without = known.contrast(known.deleted.theta)
    error, df = snap_to_zero(jackknife_error(without)), known.df
    half = quantile_t(df) * error
    farthest = first_argmin(-np.abs(snap_to_zero(without - difference)), ITERATION_TOLERANCE)
    covariance = naive_covariance(known.problem, known.theta)
    deep, wide = known.law.slots[ALPHA][list(known.families)]
    naive = math.sqrt(
        max(covariance[deep, deep] + covariance[wide, wide] - 2 * covariance[deep, wide], 1e-300)
    )
    # A refit leaves an exponent that lies at its bound there, which does not make it certain.
    held = bool(at_bound(known.problem, known.theta)[[deep, wide]].any())
    inflation = max((error / naive) ** 2, 1.0 if held else 1e-12)
    accepted = profile_contrast(known.problem, known.theta, known.families, inflation)
    return {
        **_alphas(known),
        "difference": difference,
        "standard_error": error,
        "interval": (difference - half, difference + half),
        "df": df,
        "p": two_sided(difference, error, df),
        "profile": (accepted.low, accepted.high),
        "without": (known.shape_names[farthest], float(without[farthest])),
        "equivalence_p": equivalence_p(difference, error, df, EQUIVALENT),
        "mde80": (quantile_t(df) + float(special.stdtrit(df, POWER))) * error,
    }


def _alphas(known: FittedStudy) -> dict[str, Any]:
    slots = known.law.slots[ALPHA]
    errors = jackknife_error(known.deleted.theta)
    half = quantile_t(known.df) * errors
    names = known.study.families
    alpha = {name: float(known.theta[slots[f]]) for f, name in enumerate(names)}
    intervals = {
        name: (float(alpha[name] - half[slots[f]]), float(alpha[name] + half[slots[f]]))
        for f, name in enumerate(names)
    }
    return {"alpha": alpha, "alpha_intervals": intervals}


def two_sided(estimate: float, error: float, df: float) -> float:
    """Return the p value of a two-sided t test of 0."""
    if error <= 0:
        return 0.0 if estimate else 1.0
    return float(2 * special.stdtr(df, -abs(estimate) / error))


def equivalence_p(estimate: float, error: float, df: float, margin: float) -> float:
    """Two one-sided t tests: the larger p of estimate > -margin and estimate < margin."""
    if error <= 0:
        return 0.0 if exceeds(margin, abs(estimate)) else 1.0
    return float(special.stdtr(df, -(margin - abs(estimate)) / error))


def shape_misfit(known: FittedStudy) -> float:
    """Random effect of a shape in ln L: sd over shapes of the mean residual (seeds, learning rate, rounding)."""
    predicted = log_loss(known.law, known.theta[None], known.problem.points)[0][0]
    means = pd.Series(known.problem.points.y - predicted).groupby(known.shape).mean()
    return snap_to_zero(np.sqrt((means**2).sum() / max(known.df, 1)))


def noise_beside_mean(known: FittedStudy) -> float:
    """Variance of a run around its shape in ln L, minus the part that the mean residual of a shape has already."""
    predicted = log_loss(known.law, known.theta[None], known.problem.points)[0][0]
    groups = pd.Series(known.problem.points.y - predicted).groupby(known.shape)
    squares, runs = (
        groups.apply(lambda rows: float(((rows - rows.mean()) ** 2).sum())),
        groups.size(),
    )
    free = int((runs - 1).sum())
    if not free:
        return 0.0
    return float(squares.sum()) / free * (1 - float((1 / runs).mean()))
