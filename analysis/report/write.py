"""Write the report of a study: results.json, report.md with a figure, and report.html.

    write_report(SOURCE, OUT)         load runs from a folder of run directories or a file of results
    report_on(RUNS_OR_TABLE, OUT)     use runs that are already loaded, or a table of runs

`results.json`, schema version 8. Losses are in nats per token; undefined and refused numbers are null:

    schema_version, question
    response      {column, unit}: the quantity that loss means in all keys and texts; another one than the loss with
                  --metric
    headline      the verdict in one sentence; `findings`: [sentence]; `conditions`: [what the verdict depends on]
    runs          number of runs; `dropped`: {reason: number of excluded runs}; `warnings`: [sentence]
    families      [{family, runs, sizes, N, tokens_per_param, seeds, ..}], formatted as text
    losses        [{rung, n, tokens, tokens_per_param, families {family: loss}, difference}]: mean over seeds;
                  difference: deep minus wide, at equal FLOPs if comparison.matched.corrected_to_equal_flops, else raw
    comparison    `analysis.compare.families.Comparison`: deep, wide, verdict {word, level, exponent, sentence,
                  conditions, reasons}, block (`BlockResult`, the primary analysis), by_definition {definition of N:
                  `BlockResult`}, by_subset {runs left out: `BlockResult`}, robustness, exponents (joint law M2,
                  secondary; read `status` first), matched (`Contrast`: pairs, descriptive), hold_out, audit, seed_sd,
                  runs, tokens_per_param, warnings
    other_contrasts               [`BlockResult` of another pair of families], descriptive
    power         `analysis.planning.power.DesignPower` of this design with the noise estimated from its runs, or null
    extensions    [`analysis.planning.extensions.Extension`]; next_runs: [`analysis.planning.extensions.NextRuns`]
    isoflop       {family: `analysis.fit.isoflop.IsoFlop`}
    residuals     [{run_id, family, shape, n, tokens, flops, seed, loss_nats_per_token, residual}]: residual of the
                  block model with the effect of the shape, in nats
    latency       null without measured speeds, or {reasons: why there is no setting, settings: [{quantity ("decode latency"
                  or "training time"), device, dtype, batch_size, prompt_tokens, new_tokens (null for training), deep,
                  wide, reasons (no estimate), level_reasons (none at equal time), missing: [shape without a measured
                  time], single_rounds, falls: {family: [[n, n] between which its time falls with N]}, sizes: [{rung, n,
                  seconds_deep, seconds_wide, ratio, ln_ratio_se}], levels: [{seconds, n_deep, n_wide, level, level_se,
                  level_ci, df}] the largest common time first, multipliers: [{n_deep, n_wide, n_run_deep, n_run_wide (the
                  fastest sizes of at least n_deep and n_wide), seconds_deep, seconds_wide (of these), log_multiplier,
                  log_multiplier_se, log_multiplier_ci, df}] the lowest common loss first}], shapes: [{family, shape, n, seconds, memory_bytes}] of the first decode
                  setting}; seconds are per token
    seed_noise    [`analysis.compare.seed_noise.SeedNoise`]; seed_noise_ratio: `SeedNoiseRatio`, or null
    partial       null, or of a study whose cells are not all in the report: {finished, cells (numbers), is_interim (whether
                  a missing cell can still finish), lines: [sentence]}
    caveats       [sentence]
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.charts import overview
from analysis.compare.families import plain
from analysis.learning_rate.gate import load_audit
from analysis.report import latency_text, tables, text
from analysis.report.html import DEFAULT_QUESTION, TITLE, page
from analysis.report.partial import Partial
from analysis.report.sections import sections
from analysis.report.study_report import AuditLike, StudyReport, analyze_study
from analysis.runs.load import Runs, load_runs
from analysis.runs.response import LOSS, Response, with_response
from slm.charts import Figure
from slm.console import Column, FittedTable, console, print_lines
from slm.files import write_json, write_text
from slm.formatting import markdown_cell
from slm.run_index.curves import curves_of
from slm.summary import Rows
from slm.tracking.speeds import FILE_NAME

# Changes: 2: full comparison; 3: power, extensions, shape curve, isoFLOP, residuals; 4: the key tokens_per_param
# replaces budget; 5: block model (comparison.block, by_definition, robustness), findings, conditions, losses,
# other_contrasts; no uncertainty, comparison.kappa and comparison.shape_curve; exponents of n_flop only; 6: latency;
# 7: seed_noise, partial; 8: comparison.seed_sd and by_subset, no comparison.tau.
SCHEMA_VERSION = 8
FIGURE = "loss_vs_flops.png"
MAX_PRINTED = 40  # rows of the loss table on the console


def write_report(
    source: Path | str | Sequence[Path],
    out: Path,
    *,
    only: Collection[str] | None = None,
    columns: Mapping[str, str] | None = None,
    constants: Mapping[str, str] | None = None,
    deep: str | None = None,
    wide: str | None = None,
    audit: Path | AuditLike = None,
    question: str = "",
    pool_validation_sets: bool = False,
    metric: str | None = None,
    speed: Path | None = None,
) -> StudyReport:
    """Load and analyze finished runs, and write the report to `out`.

    Args:
        source: folder, files or W&B project, see `analysis.load_runs`.
        only: ids of the runs to use; None: all.
        columns: names in tables and W&B runs of other programs, see `analysis.load_runs`.
        constants: values that all runs of such a source share.
        out: folder to write to; created if missing.
        deep: family to compare as deep; None: the one with the smallest d_model/n_layers.
        wide: family to compare as wide; None: the one with the largest d_model/n_layers.
        audit: learning-rate audit that both families must pass before there is a verdict: lr_audit.json of
            `study=lr_audit`, a folder of runs over a grid of learning rates, or an audit as
            `analysis.compare_families` accepts it.
        question: research question, printed at the top of the report.
        pool_validation_sets: whether to compare runs that have different validation sets.
        metric: column to compare instead of the loss, such as arc_easy_bits_per_byte; its name ends with bits_per_byte
            or nats_per_token. Runs with different validation sets are kept, runs scored on other examples are not.
        speed: file of measured speeds, for the comparison at equal latency; None: speed.json in the folder `source`, or
            beside that file, if it exists.

    Raises:
        DataError: if no run is finished, a named family has no finished run, the metric cannot be compared, or `speed`
            is not readable.
    """
    first = Path(source if isinstance(source, (Path, str)) else source[0])
    beside = (first if first.is_dir() else first.parent) / FILE_NAME
    if speed is None and beside.is_file():
        speed = beside
    is_loss = metric is None or metric == LOSS.column
    runs = load_runs(
        source,
        only,
        # Another quantity than the loss is not measured on the validation set.
        pool_validation_sets=pool_validation_sets or not is_loss,
        columns=columns,
        constants=constants,
    )
    if metric is not None:
        runs = with_response(runs, metric, pool_validation_sets=pool_validation_sets)
    return report_on(
        runs,
        out,
        deep=deep,
        wide=wide,
        audit=audit,
        question=question,
        run_directories=first,
        speed=speed,
    )


def report_on(
    runs: Runs | pd.DataFrame,
    out: Path,
    *,
    deep: str | None = None,
    wide: str | None = None,
    audit: Path | AuditLike = None,
    question: str = "",
    run_directories: Path | None = None,
    speed: Path | None = None,
    partial: Partial | None = None,
    speed_command: str = StudyReport.speed_command,
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
        run_directories: folder of the runs, for the loss curves; the report has none of other runs.
        speed: file of measured speeds, for the comparison at equal latency; None: no such comparison.
        partial: what a study lacks whose cells are not all in `runs`.
        speed_command: how to measure the speeds of the shapes, for the limitations.

    Raises:
        DataError: if a column is missing, a value is invalid, or `speed` is not readable.
    """
    loaded = runs if isinstance(runs, Runs) else Runs(runs, Counter(), ())
    if isinstance(audit, Path):
        audit = load_audit(audit, loaded)
    response = loaded.response
    question = " ".join(filter(None, (question, response.sentence())))
    report = analyze_study(
        loaded, deep=deep, wide=wide, audit=audit, question=question, speed=speed
    )
    report = replace(report, partial=partial, speed_command=speed_command)
    if run_directories is not None:
        curves = curves_of(run_directories, set(report.table["run_id"]))
        report = replace(report, loss_curves=tuple(curves))
    out.mkdir(parents=True, exist_ok=True)
    _reworded_figure(overview(report), response).save(out / FIGURE, titled=False)
    write_json(out / "results.json", response.reworded_values(results(report, response)))
    write_text(out / "report.md", response.reworded(markdown(report)))
    write_text(out / "report.html", response.reworded(page(report)))
    print_summary(report, response)
    console().print(f"report: {out / 'report.html'}   text: {out / 'report.md'}", soft_wrap=True)
    return report


def _reworded_figure(figure: Figure, response: Response) -> Figure:
    if response.is_loss:
        return figure
    return replace(figure, chart=figure.chart.from_json(response.reworded(figure.chart.to_json())))


def results(report: StudyReport, response: Response = LOSS) -> dict[str, Any]:
    """Return the content of results.json; the module docstring describes its keys."""
    columns = ["run_id", "family", "shape", "n", "tokens", "flops", "seed"]
    residuals = report.table[[*columns, "loss_nats_per_token", "residual"]]
    no_power: dict[str, Any] = {"power": None, "extensions": [], "next_runs": []}
    content = {
        "schema_version": SCHEMA_VERSION,
        "question": report.question,
        "response": {"column": response.column, "unit": response.unit},
        "headline": text.headline(report),
        "findings": text.findings(report),
        "conditions": report.comparison.verdict.conditions,
        "runs": len(report.table),
        "dropped": dict(report.dropped),
        "warnings": report.warnings,
        "families": tables.family_rows(report),
        "losses": report.losses,
        "comparison": report.comparison.to_dict(),
        "other_contrasts": [one.to_dict() for one in report.other_contrasts],
        **(no_power if report.power is None else report.power.to_dict()),
        "isoflop": {family: asdict(fit) for family, fit in report.isoflop.items()},
        "residuals": residuals.to_dict(orient="records"),
        "latency": None if report.latency is None else report.latency.to_dict(),
        "seed_noise": [asdict(one) for one in report.seed_noise],
        "seed_noise_ratio": None if (ratio := report.seed_noise_ratio) is None else asdict(ratio),
        "partial": None if report.partial is None else asdict(report.partial),
        "caveats": text.caveats(report),
    }
    plain_content = plain(content)
    assert isinstance(plain_content, dict)
    return plain_content


def markdown(report: StudyReport) -> str:
    """Return the content of report.md."""
    verdict = report.comparison.verdict
    parts = [f"# {TITLE}", "", f"_{report.question or DEFAULT_QUESTION}_", ""]
    parts += [f"**{text.headline(report)}** (`{verdict.word}`)", ""]
    parts += [f"- **{value}** {label}" for value, label in text.key_numbers(report)]
    parts += ["", *(f"{line}\n" for line in text.findings(report))]
    if verdict.conditions:
        parts += ["Conditions:", "", *(f"- {one}" for one in verdict.conditions), ""]
    parts += [f"![Loss against FLOPs per family, and loss difference by size]({FIGURE})", ""]
    for section in sections(report):
        if not (section.lines or section.tables):
            continue  # a chart of report.html alone
        parts += [f"## {section.title}", "", *(f"- {line}" for line in section.lines), ""]
        for table in section.tables:
            if table.rows and not table.all_runs:
                parts += [f"{table.title}:", "", *markdown_table(table.rows), ""]
    return "\n".join(parts)


def markdown_table(rows: Rows) -> list[str]:
    """Return the lines of a Markdown table; there is at least one row."""
    heading = list(rows[0])
    lines = [heading, *(list(row.values()) for row in rows)]
    texts = ["| " + " | ".join(map(markdown_cell, line)) + " |" for line in lines]
    return [texts[0], "|" + " --- |" * len(heading), *texts[1:]]


def print_summary(report: StudyReport, response: Response = LOSS) -> None:
    """Print the losses, the findings and what they depend on."""
    out = console()
    rows = tables.loss_rows(report)
    if rows and len(rows) <= MAX_PRINTED:
        # A comparison needs two families; of many, the last ones may be left out.
        contrast = {report.comparison.deep, report.comparison.wide}
        ranks = {"tokens_per_param": 2} | {f: int(f not in contrast) for f in report.families}
        columns = [
            Column(key.replace(" at ", "\nat "), [row[key] for row in rows], rank=ranks.get(key, 0))
            for key in rows[0]
        ]
        name = "Loss in nats/token" if response.is_loss else response.label
        title = f"{name}, mean over seeds; * lowest of the row"
        out.print(FittedTable(columns, title))
    lines = [
        f"{report.comparison.verdict.word}: {text.headline(report)}",
        *text.findings(report),
        *latency_text.contrast_lines(report),
        *(f"condition: {condition}" for condition in report.comparison.verdict.conditions),
        *text.run_lines(report),
    ]
    print_lines(out, [*filter(None, [response.sentence()]), *map(response.reworded, lines)])
