"""Analysis of a study: `analyze_study(...)` returns a `StudyReport` with the content of all report files."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.arrays import Floats
from analysis.compare.block_result import BlockResult
from analysis.compare.exponents import FittedStudy
from analysis.compare.families import Comparison, compare_study
from analysis.compare.fit_block import fit_block_model
from analysis.compare.latency_result import Latency, compare_at_equal_time
from analysis.compare.measured_speeds import load_settings
from analysis.compare.seed_noise import SeedNoise, SeedNoiseRatio, seed_noise, seed_noise_ratio
from analysis.fit.isoflop import MIN_BUDGETS, MIN_POINTS, IsoFlop, fit_isoflop
from analysis.fit.law import log_loss
from analysis.fit.profile_likelihood import quantile_t
from analysis.fit.resampling import jackknife_error
from analysis.formatting import count, format_dropped, power_of_ten
from analysis.learning_rate.audit import Audit, parse_audit
from analysis.report.partial import Partial
from analysis.report.power_of_study import StudyPower, power_of_study
from analysis.runs.columns import COLUMNS, SIZES
from analysis.runs.load import Runs
from analysis.runs.study import Columns, Study, prepare
from slm.charts import LossCurve
from slm.rounding import round_to_three_digits, stable_argsort
from slm.summary import Summarized

IDENTIFIED = ("OK", "WEAK")
OPTIONAL_COLUMNS = ("n_layers", "d_model", "tokens_per_second", "peak_lr", "model_shape")
MAX_PAIRED = 4  # families of which all pairs are listed; of more, neighbours in aspect ratio
MAX_FAMILIES = 6  # with a table of other contrasts
CURVE_POINTS = 25
AuditLike = pd.DataFrame | Mapping[str, Mapping[str, Any]] | Audit | None


@dataclass(frozen=True, repr=False)
class Curve(Summarized):
    """A law at one token budget on a grid of sizes: the joint law of a family, or the pooled law.

    `flops`, `loss` and the 95% confidence band `low` to `high` have one length; losses are in nats per token. The
    pooled law has no family and no band; the band of a joint law is from the delete-one-shape jackknife.
    """

    family: str | None
    tokens_per_param: float
    flops: Floats
    loss: Floats
    low: Floats | None = None
    high: Floats | None = None

    def title(self) -> str:
        ends = " to ".join(power_of_ten(float(end)) for end in self.flops[[0, -1]])
        law = "pooled law" if self.family is None else f"joint law of {self.family}"
        return f"{law} at tokens_per_param {self.tokens_per_param:g}, {ends} FLOPs"


@dataclass(frozen=True, repr=False)
class StudyReport(Summarized):
    """Results of a study: its runs, the comparison of two families, and the power of its design.

    Attributes:
        table: one row per run with the columns of `analysis.runs.study.prepare`, `run_id`, and `residual`, the
            residual from the block model with the effect of the shape, in nats (nan if the model has no such run).
        losses: one row per size and token budget: rung, n, tokens, tokens_per_param, `families`, a dictionary of
            the loss of each family (mean over seeds), and `difference`, deep minus wide, or None: at equal FLOPs if
            `comparison.matched.is_corrected`, else the raw difference.
        families: names of all families, the two compared ones first.
        other_contrasts: block model for other pairs of families; estimates only.
        curves: laws per token budget for the chart; empty if nothing could be fitted.
        power: power of this design and of larger ones; None if there is one family only.
        isoflop: IsoFLOP fits by family; without the families that have too few sizes per compute budget.
        loss_curves: training losses of the runs whose directories exist.
        latency: comparison at equal decode latency and training time; None without measured speeds.
        seed_noise: standard deviation between seeds by family and size; empty without several seeds of a shape.
        speed_command: how to measure the speeds of the shapes, for the limitations.
        partial: what the study lacks if not all its cells are in the report; None if they are, or if the runs are not
            cells of a study.
    """

    question: str
    table: pd.DataFrame
    dropped: Counter[str]
    warnings: tuple[str, ...]
    comparison: Comparison
    losses: tuple[dict[str, Any], ...]
    families: tuple[str, ...]
    other_contrasts: tuple[BlockResult, ...]
    curves: tuple[Curve, ...]
    power: StudyPower | None
    isoflop: dict[str, IsoFlop]
    loss_curves: tuple[LossCurve, ...] = ()
    latency: Latency | None = None
    seed_noise: tuple[SeedNoise, ...] = ()
    speed_command: str = "python -m slm speed study=NAME"
    partial: Partial | None = None

    def title(self) -> str:
        return f"{self.comparison.verdict.word}: {self.comparison.verdict.sentence}"

    def details(self) -> Iterator[tuple[str, str]]:
        yield from self.comparison.details()
        total = power_of_ten(float(self.table["flops"].sum()))
        runs, families = len(self.table), count(len(self.families), "family", "families")
        left_out = format_dropped(self.dropped)
        if self.latency is not None:
            for contrast in self.latency.contrasts:
                for name, value in contrast.details():
                    yield f"equal {contrast.setting.quantity}, {name}", value
        yield "runs", f"{runs} of {families}, {total} FLOPs; left out: {left_out}"

    @property
    def tokens_per_param(self) -> list[float]:
        """Return the token budgets of the study in ascending order, as tokens per parameter."""
        return sorted(float(value) for value in self.table["tokens_per_param"].unique())

    @property
    def budgets_per_size(self) -> tuple[int, int]:
        """Return the smallest and the largest number of token budgets of a size."""
        numbers = self.table.groupby("rung")["tokens"].nunique()
        return int(numbers.min()), int(numbers.max())

    @property
    def seed_noise_ratio(self) -> SeedNoiseRatio | None:
        """Return the seed standard deviation of the deep family relative to the wide one."""
        if "aspect_ratio" not in self.table:
            return None
        aspects = self.table.groupby("family")["aspect_ratio"]
        deep, wide = (
            float(np.log(aspects.get_group(name).astype(float)).mean())
            for name in (self.comparison.deep, self.comparison.wide)
        )
        return seed_noise_ratio(self.seed_noise, deep, wide)


def analyze_study(
    runs: Runs | pd.DataFrame,
    *,
    deep: str | None = None,
    wide: str | None = None,
    audit: AuditLike = None,
    question: str = "",
    bootstrap: int = 999,
    seed: int = 0,
    speed: Path | None = None,
) -> StudyReport:
    """Analyze finished runs: comparison of two families, other contrasts, power and extensions of the design.

    An estimate that the design cannot identify has status REFUSED and no value; this is not an error.

    Args:
        runs: the result of `load_runs`, or a table with the columns family, shape, n_flop (FLOPs per token /
            6; without it, N is params_non_embedding, else params_total), tokens, loss_nats_per_token, and optionally
            run_id, flops, rung, seed, aspect_ratio, params_non_embedding, params_total.
        deep, wide: families to compare; None: chosen by `aspect_ratio`, or by name without that column.
        audit: learning-rate audit, see `analysis.compare.families.compare_families`.
        question: research question, printed at the top of the report.
        bootstrap: number of replicates of the parametric bootstrap; 0: none.
        seed: seed of the resampling.
        speed: file of measured speeds (`python -m slm speed`), for the comparison at equal latency.

    Raises:
        DataError: if a column is missing, a value is invalid, `deep` and `wide` cannot be determined, or `speed` is
            not readable.
    """
    speeds = None if speed is None else load_settings(speed)
    loaded = runs if isinstance(runs, Runs) else Runs(runs, Counter(), ())
    columns = _columns(loaded.table)
    study = prepare(loaded.table, columns, deep, wide)
    comparison = compare_study(study, parse_audit(audit), bootstrap=bootstrap, seed=seed)
    table = _run_table(study, loaded.table, comparison.block)
    latency = None if speeds is None else compare_at_equal_time(table, comparison.block, speeds)
    return StudyReport(
        question=question,
        table=table,
        dropped=loaded.dropped,
        warnings=tuple(
            dict.fromkeys((*loaded.warnings, *_size_notes(columns), *comparison.warnings))
        ),
        comparison=comparison,
        losses=tuple(_losses(table, comparison, are_budgets_grouped=study.are_budgets_grouped)),
        families=tuple(dict.fromkeys((study.deep, study.wide, *study.families))),
        other_contrasts=tuple(_other_contrasts(study)),
        curves=tuple(_curves(study, comparison)),
        power=power_of_study(study, comparison),
        isoflop=_isoflop(table),
        latency=latency,
        seed_noise=tuple(seed_noise(table, "n")),
    )


def _columns(table: pd.DataFrame) -> Columns:
    def present(name: str) -> str | None:
        return name if name in table else None

    return Columns(
        n=next(filter(present, SIZES), SIZES[0]),
        flops=present("flops"),
        rung=present("rung"),
        seed=present("seed"),
        aspect=present("aspect_ratio"),
    )


def _size_notes(columns: Columns) -> list[str]:
    """Return a note on the definition of N if it is not that of slm."""
    if columns.n == SIZES[0]:
        return []
    return [f"N is {columns.n} ({COLUMNS[columns.n].meaning}), as the table has no {SIZES[0]}"]


def _run_table(study: Study, source: pd.DataFrame, block: BlockResult) -> pd.DataFrame:
    """Return the prepared table with run ids, optional columns of `source`, and residuals of the block model."""
    table = study.table.copy()
    source = source.iloc[table.index]
    ids = source["run_id"] if "run_id" in source else [f"row {row}" for row in table.index]
    table["run_id"] = [str(run_id) for run_id in ids]
    for name in OPTIONAL_COLUMNS:
        if name in source:
            table[name] = source[name].to_numpy()
    residual = np.full(len(table), math.nan)
    if block.effects is not None:
        fit = block.effects.fit
        residual[fit.blocks.row] = fit.residuals()[0]
    table["residual"] = residual
    return table


def _losses(
    table: pd.DataFrame, comparison: Comparison, *, are_budgets_grouped: bool
) -> Iterator[dict[str, Any]]:
    """Yield the cells of the loss table by size and tokens; n is the mean of all runs of the size."""
    differences = {}
    if comparison.matched is not None:
        for pair in comparison.matched.pairs.to_dict("records"):
            differences[pair["rung"], pair["tokens"]] = float(pair["difference_at_equal_flops"])
    sizes = table.groupby("rung", sort=False)["n"].mean()
    for rung in sizes.index[stable_argsort(sizes)]:
        for tokens, rows in table[table["rung"] == rung].groupby("tokens"):
            losses = rows.groupby("family", sort=False)["loss_nats_per_token"].mean()
            n, budget = float(sizes[rung]), float(rows["tokens_per_param"].iloc[0])
            if are_budgets_grouped:
                budget = round_to_three_digits(float(str(tokens)) / n)
            yield {
                "rung": rung,
                "n": n,
                "tokens": float(str(tokens)),
                "tokens_per_param": budget,
                "families": {str(name): float(loss) for name, loss in losses.items()},
                "difference": differences.get((rung, tokens)),
            }


def _other_contrasts(study: Study) -> Iterator[BlockResult]:
    """Yield the block model for other pairs of families, the one with the smaller aspect ratio as deep."""
    families = study.families
    if not 2 < len(families) <= MAX_FAMILIES:
        return
    if "aspect_ratio" in study.table:
        aspects = study.table.groupby("family", sort=False)["aspect_ratio"].mean()
        families = [str(name) for name in aspects.index[stable_argsort(aspects)]]
    pairs = combinations(families, 2) if len(families) <= MAX_PAIRED else pairwise(families)
    for deep, wide in pairs:
        if {deep, wide} != {study.deep, study.wide}:
            yield fit_block_model(study.table, deep=deep, wide=wide, n="n")


def _curves(study: Study, comparison: Comparison) -> Iterator[Curve]:
    """Yield the joint law of each fitted family if it is identified, else the pooled law of the block model."""
    fitted = comparison.exponents.fitted
    if fitted is not None and comparison.status in IDENTIFIED:
        cells = fitted.study.table.groupby(["family", "tokens_per_param"], sort=False)
        for (family, budget), rows in cells:
            if rows["shape"].nunique() > 1:
                yield _joint_curve(fitted, str(family), float(str(budget)), rows)
    elif comparison.block.effects is not None:
        law = comparison.block.effects.fit.law
        for budget, rows in study.table.groupby("tokens_per_param", sort=False):
            if rows["shape"].nunique() > 1:
                n, tokens, flops = _line(rows)
                yield Curve(None, float(str(budget)), flops, law.loss(n, tokens))


def _line(rows: pd.DataFrame) -> tuple[Floats, Floats, Floats]:
    """Return N, tokens and FLOPs along the runs of one token budget."""
    n = np.geomspace(rows["n"].min(), rows["n"].max(), CURVE_POINTS)
    tokens = n * float(np.exp(np.log(rows["tokens"] / rows["n"]).mean()))
    return n, tokens, n * tokens * float((rows["flops"] / (rows["n"] * rows["tokens"])).mean())


def _joint_curve(fitted: FittedStudy, family: str, budget: float, rows: pd.DataFrame) -> Curve:
    n, tokens, flops = _line(rows)
    points = fitted.problem.points.at(n, tokens, fitted.study.families.index(family))
    middle = log_loss(fitted.law, fitted.theta[None], points)[0][0]
    deleted = log_loss(fitted.law, fitted.deleted.theta, points)[0]
    half = quantile_t(fitted.df) * jackknife_error(deleted)
    ends = np.exp(middle - half), np.exp(middle + half)
    return Curve(family, budget, flops, np.exp(middle), *ends)


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
