"""Analysis of a study: `analyze_study(...)` returns a `StudyReport` with the content of all report files."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from analysis.arrays import Floats
from analysis.compare.aspect_ratio import ShapeCurve
from analysis.compare.exponents import FittedStudy
from analysis.compare.families import Comparison, compare_study
from analysis.design.linear import Design, Law
from analysis.fit.isoflop import MIN_BUDGETS, MIN_POINTS, IsoFlop, fit_isoflop
from analysis.fit.joint import fit_joint
from analysis.fit.law import log_loss
from analysis.fit.profile_likelihood import quantile_t
from analysis.fit.resampling import jackknife_error
from analysis.formatting import count, format_dropped, power_of_ten
from analysis.learning_rate.audit import Audit, parse_audit
from analysis.planning.extensions import Extension, NextRuns, extensions, most_valuable_next
from analysis.planning.power import DesignPower, design_power
from analysis.report import text
from analysis.runs.load import Runs
from analysis.runs.study import Columns, Study, prepare
from slm.summary import Summarized

DEFAULT_TAU = 0.01  # random effect of a shape in nats, if the runs do not identify it
NEXT_RUNS = 5
IDENTIFIED = ("OK", "WEAK")
NO_LAW = (
    "no joint law is identified in these runs, so the power for the exponents cannot be computed"
)
NO_EXPONENT: dict[str, Any] = dict.fromkeys(
    ("se_exponent", "mde80_exponent", "power_exponent", "equivalence_margin", "se_joint_law")
)
OPTIONAL_COLUMNS = ("n_layers", "d_model", "tokens_per_second", "peak_lr")
AuditLike = pd.DataFrame | Mapping[str, Mapping[str, Any]] | Audit | None


@dataclass(frozen=True, repr=False)
class Curve(Summarized):
    """Joint law of one family at one token budget, on a grid of its sizes.

    `flops`, `loss` and the 95% confidence band `low` to `high` have one length; losses are in nats per token.
    The band is from the delete-one-shape jackknife.
    """

    family: str
    tokens_per_param: float
    flops: Floats
    loss: Floats
    low: Floats
    high: Floats

    def title(self) -> str:
        ends = " to ".join(power_of_ten(float(end)) for end in self.flops[[0, -1]])
        return f"joint law of {self.family} at tokens_per_param {self.tokens_per_param:g}, {ends} FLOPs"


@dataclass(frozen=True, repr=False)
class StudyReport(Summarized):
    """Results of a study: its runs, the comparison of two families, and the power of its design.

    Attributes:
        table: one row per run with the columns of `analysis.runs.study.prepare`, `run_id`, and `residual`, the
            residual of ln(loss) from the joint law (nan if the fit was refused).
        curves: the joint law per family and token budget; empty if the fit was refused.
        power: power of this design under the noise and the joint law estimated from its runs; None if there
            is one family only.
        extensions: power and cost of larger designs.
        next_runs: additions that decrease the standard error of the exponent difference most per FLOP.
        isoflop: IsoFLOP fits by family; without the families that have too few sizes per compute budget.
    """

    question: str
    table: pd.DataFrame
    dropped: Counter[str]
    warnings: tuple[str, ...]
    comparison: Comparison
    curves: tuple[Curve, ...]
    power: DesignPower | None
    extensions: tuple[Extension, ...]
    next_runs: tuple[NextRuns, ...]
    isoflop: dict[str, IsoFlop]

    def title(self) -> str:
        return f"{text.headline(self)}: {text.uncertainty(self)}"

    def details(self) -> Iterator[tuple[str, str]]:
        found = self.comparison
        yield "verdict", found.verdict.word
        yield "exponent difference", f"{found.exponents.difference_text} ({found.status})"
        if found.kappa is not None:
            yield "compute multiplier", text.kappa_sentence(found.kappa, found.deep, found.wide)
        if self.shape_curve is not None:
            yield "shape curve", f"{self.shape_curve.status}: {self.shape_curve.sentence}"
        yield "hold-out", text.hold_out_sentence(self)
        yield "learning-rate audit", text.audit_sentence(self)
        if self.power is not None and self.power.mde80_exponent is not None:
            yield "MDE (80% power), exponents", f"{self.power.mde80_exponent:.4f}"
        total = power_of_ten(float(self.table["flops"].sum()))
        runs, families = len(self.table), count(len(self.families), "family", "families")
        yield (
            "runs",
            f"{runs} of {families}, {total} FLOPs; left out: {format_dropped(self.dropped)}",
        )
        for reason in text.reasons(self):
            yield "reason", reason
        for warning in self.warnings:
            yield "note", warning

    @property
    def families(self) -> list[str]:
        """Return all family names, the two compared ones first."""
        pair = dict.fromkeys((self.comparison.deep, self.comparison.wide))
        return [*pair, *(name for name in dict.fromkeys(self.table["family"]) if name not in pair)]

    @property
    def shape_curve(self) -> ShapeCurve | None:
        """Return the shape curve, or None if the study has fewer than three aspect ratios."""
        return self.comparison.shape_curve

    @property
    def tokens_per_param(self) -> list[float]:
        """Return the token budgets of the study in ascending order, as tokens per parameter."""
        return sorted(float(value) for value in self.table["tokens_per_param"].unique())


def analyze_study(
    runs: Runs | pd.DataFrame,
    *,
    deep: str | None = None,
    wide: str | None = None,
    audit: AuditLike = None,
    question: str = "",
    bootstrap: int = 999,
    seed: int = 0,
) -> StudyReport:
    """Analyze finished runs: comparison of two families, joint law, power and extensions of the design.

    An estimate that the design cannot identify has status REFUSED and no value; this is not an error.

    Args:
        runs: the result of `load_runs`, or a table with the columns family, shape, n_flop (FLOPs per token /
            6), tokens, loss_nats_per_token, and optionally run_id, flops, rung, seed, aspect_ratio,
            params_non_embedding, params_total.
        deep, wide: families to compare; None: chosen by `aspect_ratio`, or by name without that column.
        audit: learning-rate audit, see `analysis.compare.families.compare_families`.
        question: research question, printed at the top of the report.
        bootstrap: number of bootstrap replicates for the interval of the compute multiplier.
        seed: seed of the resampling.

    Raises:
        DataError: if a column is missing, a value is invalid, or `deep` and `wide` cannot be determined.
    """
    loaded = runs if isinstance(runs, Runs) else Runs(runs, Counter(), ())
    study = prepare(loaded.table, _columns(loaded.table), deep, wide)
    comparison = compare_study(study, parse_audit(audit), bootstrap=bootstrap, seed=seed)
    fitted = comparison.exponents.fitted
    table = _run_table(study, loaded.table, fitted)
    return StudyReport(
        question=question,
        table=table,
        dropped=loaded.dropped,
        warnings=tuple(dict.fromkeys((*loaded.warnings, *comparison.warnings))),
        comparison=comparison,
        curves=() if fitted is None else tuple(_curves(fitted)),
        **_power(study, comparison),
        isoflop=_isoflop(table),
    )


def _columns(table: pd.DataFrame) -> Columns:
    def present(name: str) -> str | None:
        return name if name in table else None

    return Columns(
        flops=present("flops"),
        rung=present("rung"),
        seed=present("seed"),
        aspect=present("aspect_ratio"),
    )


def _run_table(study: Study, source: pd.DataFrame, fitted: FittedStudy | None) -> pd.DataFrame:
    """Return the prepared table with run ids, optional columns of `source`, and residuals of ln(loss)."""
    table = study.table.copy()
    source = source.iloc[table.index]
    ids = source["run_id"] if "run_id" in source else [f"row {row}" for row in table.index]
    table["run_id"] = [str(run_id) for run_id in ids]
    for name in OPTIONAL_COLUMNS:
        if name in source:
            table[name] = source[name].to_numpy()
    table["residual"] = math.nan
    if fitted is not None:
        points = fitted.problem.points
        table["residual"] = points.y - log_loss(fitted.law, fitted.theta[None], points)[0][0]
    return table


def _curves(fitted: FittedStudy) -> list[Curve]:
    table = fitted.study.table
    curves = []
    for (family, tokens_per_param), rows in table.groupby(
        ["family", "tokens_per_param"], sort=False
    ):
        if rows["shape"].nunique() < 2:
            continue
        n = np.geomspace(rows["n"].min(), rows["n"].max(), 25)
        tokens = n * float(np.exp(np.log(rows["tokens"] / rows["n"]).mean()))
        flops = n * tokens * float((rows["flops"] / (rows["n"] * rows["tokens"])).mean())
        points = fitted.problem.points.at(n, tokens, fitted.study.families.index(str(family)))
        middle = log_loss(fitted.law, fitted.theta[None], points)[0][0]
        deleted = log_loss(fitted.law, fitted.deleted.theta, points)[0]
        half_width = quantile_t(fitted.df) * jackknife_error(deleted)
        curves.append(
            Curve(
                str(family),
                float(str(tokens_per_param)),
                flops,
                np.exp(middle),
                np.exp(middle - half_width),
                np.exp(middle + half_width),
            )
        )
    return curves


def _power(study: Study, comparison: Comparison) -> dict[str, Any]:
    """Return the power of this design, of larger designs, and the most informative additional runs."""
    if study.deep == study.wide:
        return {"power": None, "extensions": (), "next_runs": ()}
    design = design_of(study.table)
    law = _law(study, comparison)
    assumed: dict[str, Any] = {"law": law or Law(), "sigma": comparison.sigma or None}
    assumed["tau"] = comparison.tau or DEFAULT_TAU
    extended = tuple(extensions(design, study.deep, study.wide, **assumed))
    power = design_power(design, study.deep, study.wide, **assumed)
    if law is None and power.se_exponent is not None:
        power = replace(power, refusals=(NO_LAW,), **NO_EXPONENT)
        extended = tuple(replace(one, se_exponent=None, mde80_exponent=None) for one in extended)
    next_runs: list[NextRuns] = []
    if power.se_exponent is not None:
        next_runs = most_valuable_next(
            design, power, law=assumed["law"], sigma=assumed["sigma"], count=NEXT_RUNS
        )
    return {"power": power, "extensions": extended, "next_runs": tuple(next_runs)}


def _law(study: Study, comparison: Comparison) -> Law | None:
    """Return the law for power calculations, or None if no law is identified in these runs.

    It is the geometric mean of the two families' laws; without those, the law M0 common to all families.
    """
    fit = comparison.exponents.fit
    names: list[str | None] = [comparison.deep, comparison.wide]
    if fit is None or comparison.status not in IDENTIFIED:
        table = study.table
        fit = fit_joint(table["n"], table["tokens"], table["loss_nats_per_token"], model="M0")
        names = [None, None]
    if fit.status not in IDENTIFIED:
        return None
    sides = [fit.of_family(name) for name in names]
    mean = {key: math.sqrt(sides[0][key] * sides[1][key]) for key in ("A", "alpha")}
    return Law(E=sides[0]["E"], B=sides[0]["B"], beta=sides[0]["beta"], **mean)


def design_of(table: pd.DataFrame) -> Design:
    """Return the design of the runs in a prepared table."""
    columns = {
        key: list(table[key]) for key in ("family", "rung", "shape", "tokens", "seed", "flops")
    }
    per_token = (table["flops"] / table["tokens"] / 6).tolist()
    aspects = list(table["aspect_ratio"]) if "aspect_ratio" in table else []
    return Design(
        n_flop=per_token,
        tokens_per_param=list(table["tokens_per_param"]),
        aspect_ratio=aspects,
        **columns,
    )


def _isoflop(table: pd.DataFrame) -> dict[str, IsoFlop]:
    """Fit IsoFLOP parabolas for each family that has enough sizes at enough compute budgets."""
    fits = {}
    for family, rows in table.groupby("family", sort=False):
        cells = rows.groupby(["shape", "tokens"]).agg(
            {"n": "mean", "flops": "mean", "loss_nats_per_token": "mean"}
        )
        fit = fit_isoflop(cells["n"], cells["flops"], cells["loss_nats_per_token"])
        if sum(parabola.points >= MIN_POINTS for parabola in fit.parabolas) >= MIN_BUDGETS:
            fits[str(family)] = fit
    return fits
