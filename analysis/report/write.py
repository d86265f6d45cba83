"""Writes what the runs say: results.json, report.md with a figure, and report.html.

    write_report(FOLDER, OUT)         a folder of run directories, or a file of results
    report_on(RUNS_OR_TABLE, OUT)     runs that are loaded already, or any table of them

`results.json`, schema version 3; losses in nats per token, numbers that are undefined or refused are null:

    schema_version, question
    runs          how many went in; `dropped`: {reason: runs left out}; `warnings`: [sentence]
    headline, uncertainty         the answer as the report says it
    families      [{family, runs, sizes, N, tokens_per_param, seeds, ..}] as text
    comparison    `analysis.compare.families.Comparison`: deep, wide, verdict {word, sentence, reasons}, sigma, tau,
                  runs, tokens_per_param, largest_flops, warnings,
                  exponents {definition of N: `ExponentDifference` with its joint fit; read `status` first},
                  matched (`Contrast`: summary per token budget, pairs), kappa (`Kappa`), hold_out, audit,
                  shape_curve (`ShapeCurve`, or null below three aspect ratios)
    power         `analysis.design.power.DesignPower` of this design with the noise found in it, or null
    extensions    [`analysis.design.extensions.Extension`]; next_runs: [`analysis.design.power.NextRun`]
    isoflop       {family: `analysis.fit.isoflop.IsoFlop`}
    residuals     [{run_id, family, shape, n, tokens, flops, seed, loss, residual of ln loss}]
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

from analysis.compare.families import plain
from analysis.formatting import count
from analysis.learning_rate.gate import load_audit
from analysis.report import tables, text
from analysis.report.html import DEFAULT_QUESTION, TITLE, page
from analysis.report.overview_png import save_overview
from analysis.report.study_report import Answer, AuditLike, answer
from analysis.report.tables import Rows
from analysis.runs.load import Runs, load_runs
from slm.files import write_json, write_text

# 2: the whole comparison; 3: power, extensions, shape curve, isoFLOP, residuals; 4: tokens_per_param instead of
# budget (matched, shape_curve), tokens_per_n (comparison) and difference_multiplier (power).
SCHEMA_VERSION = 4
FIGURE = "loss_vs_flops.png"
EXPONENTS = (
    "Joint law `loss = E + A N^-alpha + B D^-beta` with E, B and beta shared and A, alpha of each family, "
    "loss in nats per token. Intervals are delete-one-shape jackknife, 95%."
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
) -> Answer:
    """Analyse every finished run of a source and write the report to `out`.

    Args:
        source: what `analysis.load_runs` reads.
        only: the ids of the runs to keep; None: all.
        deep, wide: the families to compare; None: the thinnest and the widest.
        audit: an audit of learning rates as a gate before the verdict; a file that
            `study=lr_audit` wrote, a folder of runs over a grid of rates, or what
            `analysis.compare_families` takes.
        question: what the study asks, for the report's head.
        pool_validation_sets: compare losses on different validation sets too.

    Raises:
        DataError: if there is no finished run, or none of a family that is named.
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
) -> Answer:
    """The report of runs that are loaded already; a plain table needs the columns that
    `analysis.report.study_report.answer` names.

    Raises:
        DataError: if a column is absent or holds what cannot be.
    """
    loaded = runs if isinstance(runs, Runs) else Runs(runs, Counter(), ())
    gate = load_audit(audit, loaded) if isinstance(audit, Path) else audit
    found = answer(loaded, deep=deep, wide=wide, audit=gate, question=question)
    out.mkdir(parents=True, exist_ok=True)
    save_overview(found.table, found.families, found.comparison.matched, out / FIGURE)
    write_json(out / "results.json", results(found))
    write_text(out / "report.md", markdown(found))
    write_text(out / "report.html", page(found))
    show(found)
    Console().print(f"report: {out / 'report.html'}   text: {out / 'report.md'}", soft_wrap=True)
    return found


def results(found: Answer) -> dict[str, Any]:
    """The content of results.json, as the head of this module describes it."""
    columns = ["run_id", "family", "shape", "n", "tokens", "flops", "seed"]
    residuals = found.table[[*columns, "loss_nats_per_token", "residual"]]
    content = {
        "schema_version": SCHEMA_VERSION,
        "question": found.question,
        "headline": text.headline(found),
        "uncertainty": text.uncertainty(found),
        "runs": len(found.table),
        "dropped": dict(found.dropped),
        "warnings": found.warnings,
        "families": tables.shape_rows(found),
        "comparison": found.comparison.to_dict(),
        "power": None if found.power is None else found.power.to_dict(),
        "extensions": [asdict(one) for one in found.extensions],
        "next_runs": [asdict(one) for one in found.next_runs],
        "isoflop": {family: asdict(one) for family, one in found.isoflop.items()},
        "residuals": residuals.to_dict(orient="records"),
        "caveats": text.CAVEATS,
    }
    plain_content = plain(content)
    assert isinstance(plain_content, dict)
    return plain_content


def markdown(found: Answer) -> str:
    """report.md: the same answer for a terminal or a pull request."""
    verdict, one = found.comparison.verdict, found.comparison.exponents
    parts = [f"# {TITLE}", "", f"_{found.question or DEFAULT_QUESTION}_", ""]
    parts += [f"**{text.headline(found)}**: {text.uncertainty(found)}.", ""]
    parts += [f"`{verdict.word}`: {verdict.sentence}", ""]
    parts += [f"- {line}" for line in (*text.reasons(found), *text.budget_sentences(found))]
    parts += ["", f"![Loss against FLOPs per family, and the differences]({FIGURE})", ""]
    parts += _section("Differences over pairs (nats/token)", tables.summary_rows(found))
    parts += _section("Differences per pair", tables.pair_rows(found))
    parts += ["## Exponents", "", text.exponent_sentence(found), ""]
    parts += [f"- {one.status}: {reason}" for reason in one.reasons if not one.refused]
    parts += ["", *_markdown_table(tables.exponent_rows(found)), "", EXPONENTS, ""]
    parts += _section("Sensitivity to Huber's delta", tables.delta_rows(found))
    kappa = found.comparison.kappa
    if kappa is not None:
        told = text.kappa_sentence(kappa, found.comparison.deep, found.comparison.wide)
        parts += ["## Compute multiplier", "", told, ""]
    if found.shape_curve is not None:
        parts += [
            "## Shape curve",
            "",
            f"{found.shape_curve.status}: {found.shape_curve.sentence}",
            "",
        ]
    parts += ["## Checks", "", f"- Hold-out: {text.hold_out_sentence(found)}"]
    parts += [f"- Learning rates: {text.audit_sentence(found)}", ""]
    parts += _section("The design", tables.shape_rows(found))
    if found.power is not None:
        parts += ["## What this design can find", "", f"With {text.noise_text(found)}.", ""]
        parts += [f"- Exponents: {reason}" for reason in found.power.refusals]
        parts += ["", *_markdown_table(tables.power_rows(found)), ""]
    parts += _section("What would settle it", tables.extension_rows(found))
    parts += _section("Single runs that say most per FLOP", tables.next_rows(found))
    parts += ["## What went in", ""]
    parts += [f"{count(len(found.table), 'finished run')}; left out: {text.dropped_text(found)}."]
    parts += [f"- Note: {warning}." for warning in found.warnings]
    parts += ["", "## What this cannot say", "", *[f"- {caveat}" for caveat in text.CAVEATS], ""]
    return "\n".join(parts)


def _section(title: str, rows: Rows) -> list[str]:
    return [f"## {title}", "", *_markdown_table(rows), ""] if rows else []


def _markdown_table(rows: Rows) -> list[str]:
    if not rows:
        return []
    heading = list(rows[0])
    lines = ["| " + " | ".join(heading) + " |", "|" + " --- |" * len(heading)]
    return lines + ["| " + " | ".join(row.values()) + " |" for row in rows]


def show(found: Answer) -> None:
    """The answer on the console."""
    console = Console(width=None if Console().is_terminal else 150)
    pair = f"{found.comparison.deep} minus {found.comparison.wide}, loss in nats/token"
    for title, rows in (
        (pair, tables.pair_rows(found)),
        ("over pairs of shapes", tables.summary_rows(found)),
        ("exponents of the joint law", tables.exponent_rows(found)),
    ):
        if rows:
            console.print(_rich_table(title, rows))
    verdict = found.comparison.verdict
    lines = [
        *text.budget_sentences(found),
        *(f"exponents {found.comparison.status}: {r}" for r in found.comparison.exponents.reasons),
        f"{text.headline(found)}: {text.uncertainty(found)}",
        f"{verdict.word}: {verdict.sentence}",
        f"{count(len(found.table), 'run')}; left out: {text.dropped_text(found)}",
        *(f"note: {warning}" for warning in found.warnings),
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
