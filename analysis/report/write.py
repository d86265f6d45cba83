"""Write the report of a study: results.json, report.md with a figure, and report.html.

    write_report(SOURCE, OUT)         load runs from a folder of run directories or a file of results
    report_on(RUNS_OR_TABLE, OUT)     use runs that are already loaded, or a table of runs

`results.json`, schema version 4. Losses are in nats per token; undefined and refused numbers are null:

    schema_version, question
    runs          number of runs; `dropped`: {reason: number of excluded runs}; `warnings`: [sentence]
    headline, uncertainty         sentences at the top of the report
    families      [{family, runs, sizes, N, tokens_per_param, seeds, ..}], formatted as text
    comparison    `analysis.compare.families.Comparison`: deep, wide, verdict {word, sentence, reasons}, sigma, tau,
                  runs, tokens_per_param, largest_flops, warnings,
                  exponents {definition of N: `ExponentDifference` with its joint fit; read `status` first},
                  matched (`Contrast`: summary per token budget, pairs), kappa (`Kappa`), hold_out, audit,
                  shape_curve (`ShapeCurve`, or null below three aspect ratios)
    power         `analysis.planning.power.DesignPower` of this design with the noise estimated from its runs, or null
    extensions    [`analysis.planning.extensions.Extension`]; next_runs: [`analysis.planning.extensions.NextRuns`]
    isoflop       {family: `analysis.fit.isoflop.IsoFlop`}
    residuals     [{run_id, family, shape, n, tokens, flops, seed, loss_nats_per_token, residual of ln(loss)}]
    caveats       [sentence]
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from analysis.charts import overview
from analysis.compare.families import plain
from analysis.formatting import count
from analysis.learning_rate.gate import load_audit
from analysis.report import tables, text
from analysis.report.html import DEFAULT_QUESTION, TITLE, page
from analysis.report.study_report import AuditLike, StudyReport, analyze_study
from analysis.report.tables import Rows
from analysis.runs.load import Runs, load_runs
from slm.files import write_json, write_text

# Changes: 2: full comparison; 3: power, extensions, shape curve, isoFLOP, residuals; 4: the key tokens_per_param
# replaces budget (matched, shape_curve), tokens_per_n (comparison) and difference_multiplier (power).
SCHEMA_VERSION = 4
FIGURE = "loss_vs_flops.png"
EXPONENTS_NOTE = (
    "Joint law `loss = E + A N^-alpha + B D^-beta`, loss in nats per token: E, B and beta are shared, A and "
    "alpha differ between families. Intervals are 95% confidence intervals from the delete-one-shape jackknife."
)


def write_report(
    source: Path | str,
    out: Path,
    *,
    only: Collection[str] | None = None,
    deep: str | None = None,
    wide: str | None = None,
    audit: Path | AuditLike = None,
    question: str = "",
    pool_validation_sets: bool = False,
) -> StudyReport:
    """Load and analyze finished runs, and write the report to `out`.

    Args:
        source: folder, file or W&B project, see `analysis.load_runs`.
        only: ids of the runs to use; None: all.
        out: folder to write to; created if missing.
        deep: family to compare as deep; None: the one with the smallest d_model/n_layers.
        wide: family to compare as wide; None: the one with the largest d_model/n_layers.
        audit: learning-rate audit that both families must pass before there is a verdict: lr_audit.json of
            `study=lr_audit`, a folder of runs over a grid of learning rates, or an audit as
            `analysis.compare_families` accepts it.
        question: research question, printed at the top of the report.
        pool_validation_sets: whether to compare runs that have different validation sets.

    Raises:
        DataError: if no run is finished, or a named family has no finished run.
    """
    runs = load_runs(source, only, pool_validation_sets=pool_validation_sets)
    return report_on(runs, out, deep=deep, wide=wide, audit=audit, question=question)


def report_on(
    runs: Runs | pd.DataFrame,
    out: Path,
    *,
    deep: str | None = None,
    wide: str | None = None,
    audit: Path | AuditLike = None,
    question: str = "",
) -> StudyReport:
    """Analyze loaded runs, and write the report to `out`.

    Args:
        runs: the result of `load_runs`, or a table with the columns family, shape, n_flop (FLOPs per token /
            6), tokens, loss_nats_per_token, and optionally run_id, flops, rung, seed, aspect_ratio,
            params_non_embedding, params_total.
        out: folder to write to; created if missing.
        deep: as in `write_report`.
        wide: as in `write_report`.
        audit: as in `write_report`.
        question: research question, printed at the top of the report.

    Raises:
        DataError: if a column is missing or a value is invalid.
    """
    loaded = runs if isinstance(runs, Runs) else Runs(runs, Counter(), ())
    if isinstance(audit, Path):
        audit = load_audit(audit, loaded)
    report = analyze_study(loaded, deep=deep, wide=wide, audit=audit, question=question)
    out.mkdir(parents=True, exist_ok=True)
    overview(report).save(out / FIGURE, titled=False)
    write_json(out / "results.json", results(report))
    write_text(out / "report.md", markdown(report))
    write_text(out / "report.html", page(report))
    print_summary(report)
    Console().print(f"report: {out / 'report.html'}   text: {out / 'report.md'}", soft_wrap=True)
    return report


def results(report: StudyReport) -> dict[str, Any]:
    """Return the content of results.json; the module docstring describes its keys."""
    columns = ["run_id", "family", "shape", "n", "tokens", "flops", "seed"]
    residuals = report.table[[*columns, "loss_nats_per_token", "residual"]]
    content = {
        "schema_version": SCHEMA_VERSION,
        "question": report.question,
        "headline": text.headline(report),
        "uncertainty": text.uncertainty(report),
        "runs": len(report.table),
        "dropped": dict(report.dropped),
        "warnings": report.warnings,
        "families": tables.family_rows(report),
        "comparison": report.comparison.to_dict(),
        "power": None if report.power is None else report.power.to_dict(),
        "extensions": [asdict(extension) for extension in report.extensions],
        "next_runs": [asdict(run) for run in report.next_runs],
        "isoflop": {family: asdict(fit) for family, fit in report.isoflop.items()},
        "residuals": residuals.to_dict(orient="records"),
        "caveats": text.CAVEATS,
    }
    plain_content = plain(content)
    assert isinstance(plain_content, dict)
    return plain_content


def markdown(report: StudyReport) -> str:
    """Return the content of report.md."""
    verdict, exponents = report.comparison.verdict, report.comparison.exponents
    parts = [f"# {TITLE}", "", f"_{report.question or DEFAULT_QUESTION}_", ""]
    parts += [f"**{text.headline(report)}**: {text.uncertainty(report)}.", ""]
    parts += [f"`{verdict.word}`: {verdict.sentence}", ""]
    parts += [f"- {line}" for line in (*text.reasons(report), *text.budget_sentences(report))]
    parts += ["", f"![Loss against FLOPs per family, and loss differences]({FIGURE})", ""]
    parts += _section("Loss difference by token budget (nats/token)", tables.summary_rows(report))
    parts += _section("Loss difference by pair (nats/token)", tables.pair_rows(report))
    parts += ["## Exponents", "", text.exponent_sentence(report), ""]
    if not exponents.refused:
        parts += [f"- {line}" for line in text.status_lines(exponents)]
    parts += ["", *_markdown_table(tables.exponent_rows(report)), "", EXPONENTS_NOTE, ""]
    parts += _section("Sensitivity to the Huber delta", tables.delta_rows(report))
    kappa = report.comparison.kappa
    if kappa is not None:
        sentence = text.kappa_sentence(kappa, report.comparison.deep, report.comparison.wide)
        parts += ["## Compute multiplier", "", sentence, ""]
    curve = report.shape_curve
    if curve is not None:
        parts += ["## Shape curve", "", f"{curve.status}: {curve.sentence}", ""]
    parts += ["## Validity checks", "", f"- Hold-out: {text.hold_out_sentence(report)}"]
    parts += [f"- Learning-rate audit: {text.audit_sentence(report)}", ""]
    parts += _section("Runs by family", tables.family_rows(report))
    if report.power is not None:
        parts += ["## Power of this design", "", f"Noise: {text.assumed_noise_text(report)}.", ""]
        refusals = [f"- {line}" for line in text.power_refusals(report)]
        parts += [*refusals, ""] if refusals else []
        parts += [*_markdown_table(tables.power_rows(report)), ""]
    parts += _section("Power of larger designs", tables.extension_rows(report))
    parts += _section("Most informative additional runs per FLOP", tables.next_rows(report))
    parts += ["## Runs in this report", ""]
    parts += [text.runs_sentence(report), *(f"- {note}" for note in text.notes(report))]
    parts += ["", "## Limitations", "", *[f"- {caveat}" for caveat in text.CAVEATS], ""]
    return "\n".join(parts)


def _section(title: str, rows: Rows) -> list[str]:
    return [f"## {title}", "", *_markdown_table(rows), ""] if rows else []


def _markdown_table(rows: Rows) -> list[str]:
    if not rows:
        return []
    heading = list(rows[0])
    lines = ["| " + " | ".join(heading) + " |", "|" + " --- |" * len(heading)]
    return lines + ["| " + " | ".join(row.values()) + " |" for row in rows]


def print_summary(report: StudyReport) -> None:
    """Print the main tables and sentences of the report on the console."""
    console = Console(width=None if Console().is_terminal else 150)
    comparison = report.comparison
    difference = f"loss of {comparison.deep} minus loss of {comparison.wide}, nats/token"
    for title, rows in (
        (f"{difference}, by pair", tables.pair_rows(report)),
        (f"{difference}, by token budget", tables.summary_rows(report)),
        ("exponents of the joint law", tables.exponent_rows(report)),
    ):
        if rows:
            console.print(_rich_table(title, rows))
    verdict = comparison.verdict
    lines = [
        *text.budget_sentences(report),
        *(f"exponents {comparison.status}: {reason}" for reason in comparison.exponents.reasons),
        f"{text.headline(report)}: {text.uncertainty(report)}",
        f"{verdict.word}: {verdict.sentence}",
        f"{count(len(report.table), 'run')}; left out: {text.dropped_text(report)}",
        *(f"note: {warning}" for warning in report.warnings),
    ]
    for line in lines:
        console.print(line, markup=False)


def _rich_table(title: str, rows: Rows) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in rows[0]:
        table.add_column(heading, justify="left" if heading in {"N", "status"} else "right")
    for row in rows:
        table.add_row(*row.values())
    return table
