"""All that a report tells of a study, worked out once: `answer(...)` -> a frozen `Answer`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from analysis.arrays import Floats
from analysis.compare.aspect_ratio import ShapeCurve
from analysis.compare.exponents import FittedStudy
from analysis.compare.families import Comparison, compare_study
from analysis.design.extensions import Extension, candidates, extensions
from analysis.design.linear import Design, Law
from analysis.design.power import DesignPower, NextRun, design_power, most_valuable_next
from analysis.fit.isoflop import MIN_BUDGETS, MIN_POINTS, IsoFlop, fit_isoflop
from analysis.fit.joint import fit_joint
from analysis.fit.law import log_loss
from analysis.fit.profile_likelihood import quantile_t
from analysis.fit.resampling import jackknife_error
from analysis.learning_rate.audit import Audit, parse_audit
from analysis.runs.load import Runs
from analysis.runs.study import Columns, Study, prepare

TAU = 0.01  # random effect of a shape in nats, where the runs do not identify it
NEXT = 5
IDENTIFIED = ("OK", "WEAK")
NO_LAW = "no law is identified in these runs, so what they can find cannot be told beforehand"
NO_EXPONENT: dict[str, Any] = dict.fromkeys(
    ("se_exponent", "mde80_exponent", "df", "power_t", "power_verdict")
)
KEPT = ("n_layers", "d_model", "tokens_per_second", "peak_lr")  # shown where the table has them
AuditLike = pd.DataFrame | Mapping[str, Mapping[str, Any]] | Audit | None


@dataclass(frozen=True)
class Curve:
    """The fitted law of one family at one token budget, over its sizes; 95% band by the jackknife over
    shapes. Arrays of one length: FLOPs, and loss in nats per token.
    """

    family: str
    tokens_per_param: float
    flops: Floats
    loss: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True)
class Answer:
    """A study's runs, its comparison, and what stands beside it in a report.

    `table`: one row a run, as `analysis.runs.study.prepare` names its columns, with `run_id`, and `residual` of
    ln L from the joint law (nan where that was refused). `curves`: of the joint law. `power`: of a study
    such as this one, with the noise and the law that were found in it. `extensions`: the same of larger
    designs, with their cost; `next_runs`: single runs that lower the standard error of the exponents'
    difference most per FLOP. `isoflop`: by family; empty where no family has 5 sizes at one compute budget.
    """

    question: str
    table: pd.DataFrame
    dropped: Counter[str]
    warnings: tuple[str, ...]
    comparison: Comparison
    curves: tuple[Curve, ...]
    power: DesignPower | None
    extensions: tuple[Extension, ...]
    next_runs: tuple[NextRun, ...]
    isoflop: dict[str, IsoFlop]

    @property
    def families(self) -> list[str]:
        """The two that are compared first, then the others."""
        pair = dict.fromkeys((self.comparison.deep, self.comparison.wide))
        return [*pair, *(name for name in dict.fromkeys(self.table["family"]) if name not in pair)]

    @property
    def shape_curve(self) -> ShapeCurve | None:
        """None below three aspect ratios."""
        return self.comparison.shape_curve

    @property
    def tokens_per_param(self) -> list[float]:
        return sorted(float(value) for value in self.table["tokens_per_param"].unique())


def answer(
    runs: Runs | pd.DataFrame,
    *,
    deep: str | None = None,
    wide: str | None = None,
    audit: AuditLike = None,
    question: str = "",
    bootstrap: int = 999,
    seed: int = 0,
) -> Answer:
    """Work out everything that a report tells.

    Args:
        runs: what `load_runs` gives, or a table with the columns family, shape, n_flop (FLOPs per token /
            6), tokens, loss_nats_per_token, and where known run_id, flops, rung, seed, aspect_ratio,
            params_non_embedding, params_total.
        deep, wide: the families to compare; None: by `aspect_ratio`, or by their names.
        audit: see `analysis.compare.families.compare_families`.
        bootstrap: replicates for the compute multiplier's interval.

    What the design forbids is refused inside of the answer, never guessed.

    Raises:
        DataError: if a column is absent or holds what cannot be, or the families cannot be told apart.
    """
    loaded = runs if isinstance(runs, Runs) else Runs(runs, Counter(), ())
    given = loaded.table
    study = prepare(given, _columns(given), deep, wide)
    found = compare_study(study, parse_audit(audit), bootstrap=bootstrap, seed=seed)
    known = found.exponents.fitted
    table = _shown(study, given, known)
    return Answer(
        question=question,
        table=table,
        dropped=loaded.dropped,
        warnings=tuple(dict.fromkeys((*loaded.warnings, *found.warnings))),
        comparison=found,
        curves=() if known is None else tuple(_curves(known)),
        **_power(study, found),
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


def _shown(study: Study, given: pd.DataFrame, known: FittedStudy | None) -> pd.DataFrame:
    """The prepared table with what identifies a run."""
    table = study.table.copy()
    given = given.iloc[table.index]
    ids = given["run_id"] if "run_id" in given else [f"row {row}" for row in table.index]
    table["run_id"] = [str(one) for one in ids]
    for name in KEPT:
        if name in given:
            table[name] = given[name].to_numpy()
    table["residual"] = math.nan
    if known is not None:
        points = known.problem.points
        table["residual"] = points.y - log_loss(known.law, known.theta[None], points)[0][0]
    return table


def _curves(known: FittedStudy) -> list[Curve]:
    table = known.study.table
    curves = []
    for (family, tokens_per_param), rows in table.groupby(
        ["family", "tokens_per_param"], sort=False
    ):
        if rows["shape"].nunique() < 2:
            continue
        n = np.geomspace(rows["n"].min(), rows["n"].max(), 25)
        tokens = n * float(np.exp(np.log(rows["tokens"] / rows["n"]).mean()))
        flops = n * tokens * float((rows["flops"] / (rows["n"] * rows["tokens"])).mean())
        at = known.problem.points.at(n, tokens, known.study.families.index(str(family)))
        middle = log_loss(known.law, known.theta[None], at)[0][0]
        half = quantile_t(known.df) * jackknife_error(
            log_loss(known.law, known.deleted.theta, at)[0]
        )
        curves.append(
            Curve(
                str(family),
                float(str(tokens_per_param)),
                flops,
                np.exp(middle),
                np.exp(middle - half),
                np.exp(middle + half),
            )
        )
    return curves


def _power(study: Study, found: Comparison) -> dict[str, Any]:
    """Power of a design like this one, and what to add to it."""
    if study.deep == study.wide:
        return {"power": None, "extensions": (), "next_runs": ()}
    design = design_of(study.table)
    law = _law(study, found)
    known: dict[str, Any] = {
        "law": law or Law(), "sigma": found.sigma or None, "tau": found.tau or TAU,
    }  # fmt: skip
    more = tuple(extensions(design, study.deep, study.wide, **known))
    power = design_power(design, study.deep, study.wide, **known)
    if law is None and power.se_exponent is not None:
        power = replace(power, refusals=(NO_LAW,), **NO_EXPONENT)
        more = tuple(replace(one, se_exponent=None, mde80_exponent=None) for one in more)
    after: list[NextRun] = []
    if power.se_exponent is not None:
        single = candidates(design, study.deep, study.wide)
        after = most_valuable_next(design, single, study.deep, study.wide, count=NEXT, **known)
    return {"power": power, "extensions": more, "next_runs": tuple(after)}


def _law(study: Study, found: Comparison) -> Law | None:
    """The one found here, mean of the two families, or one common to all; None if none is identified."""
    fit = found.exponents.fit
    names: list[str | None] = [found.deep, found.wide]
    if fit is None or found.status not in IDENTIFIED:
        table = study.table
        fit = fit_joint(table["n"], table["tokens"], table["loss_nats_per_token"], model="M0")
        names = [None, None]
    if fit.status not in IDENTIFIED:
        return None
    sides = [fit.of_family(name) for name in names]
    mean = {key: math.sqrt(sides[0][key] * sides[1][key]) for key in ("A", "alpha")}
    return Law(E=sides[0]["E"], B=sides[0]["B"], beta=sides[0]["beta"], **mean)


def design_of(table: pd.DataFrame) -> Design:
    """The design of a prepared table's runs."""
    columns = {
        key: list(table[key]) for key in ("family", "rung", "shape", "tokens", "seed", "flops")
    }
    per_token = (table["flops"] / table["tokens"] / 6).tolist()
    return Design(n_flop=per_token, tokens_per_param=list(table["tokens_per_param"]), **columns)


def _isoflop(table: pd.DataFrame) -> dict[str, IsoFlop]:
    """Where some family has enough sizes at enough compute budgets to be meant for it."""
    found = {}
    for family, rows in table.groupby("family", sort=False):
        cells = rows.groupby(["shape", "tokens"]).agg(
            {"n": "mean", "flops": "mean", "loss_nats_per_token": "mean"}
        )
        one = fit_isoflop(cells["n"], cells["flops"], cells["loss_nats_per_token"])
        if sum(parabola.points >= MIN_POINTS for parabola in one.parabolas) >= MIN_BUDGETS:
            found[str(family)] = one
    return found
