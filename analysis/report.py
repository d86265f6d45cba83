"""Writes what the runs say: tables on the console, report.md, results.json and one figure."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import asdict
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from analysis.figures import save_overview
from analysis.fits import PowerLaw, fit_power_law
from analysis.inference import Contrast, paired_differences
from analysis.runs import Runs, load_runs
from slm.errors import DataError
from slm.files import write_json, write_text

SCHEMA_VERSION = 1
SIGNIFICANCE = 0.05
FIGURE = "loss_vs_flops.png"
CAVEATS = (
    "One learning rate serves all shapes unless a study says otherwise; a family whose optimum lies "
    "elsewhere loses for that reason alone.",
    "The intervals are over pairs of shapes. They do not cover another corpus, another learning rate "
    "or sizes outside of the measured range.",
    "The mean over pairs takes the difference for the same at all sizes; it describes, and the endpoint "
    "at the largest FLOPs decides.",
    "A gap that shrinks or grows with FLOPs is not a difference of exponents.",
    "Equal FLOPs are not equal time: deep shapes run at fewer tokens/s.",
)


def write_report(
    folder: Path,
    out: Path,
    contrast: tuple[str, str] | None = None,
    only: Collection[str] | None = None,
    *,
    pool_validation_sets: bool = False,
) -> None:
    """Analyse every finished run below `folder` and write the report to `out`.

    `contrast` names the families to compare; without it, the thinnest and the widest. `only` keeps
    the runs with these ids. `pool_validation_sets` compares losses on different validation sets too.

    Raises:
        DataError: if there is no finished run, or none of a family that `contrast` names.
    """
    runs = load_runs(folder, only, pool_validation_sets=pool_validation_sets)
    families = runs.families
    _check_names(contrast or (), families)
    pair = contrast or ((families[0], families[-1]) if len(families) > 1 else None)
    compared = None if pair is None else paired_differences(runs.table, *pair)
    if compared is not None and compared.pairs.empty:
        compared = None
    laws = [fit_power_law(runs.table, family) for family in families]
    out.mkdir(parents=True, exist_ok=True)
    save_overview(runs.table, families, compared, out / FIGURE)
    write_json(out / "results.json", results(runs, compared, laws))
    write_text(out / "report.md", markdown(runs, compared, laws))
    _print(runs, compared, laws)
    Console().print(f"report: {out / 'report.md'}   figure: {out / FIGURE}", soft_wrap=True)


def _check_names(asked: tuple[str, ...], families: list[str]) -> None:
    for name in asked:
        if name not in families:
            near = get_close_matches(name, families, n=1)
            fix = f"did you mean {near[0]}?" if near else f"there are: {', '.join(families)}"
            raise DataError(f"no runs of a family named {name!r} here; {fix}")


def results(runs: Runs, contrast: Contrast | None, laws: list[PowerLaw]) -> dict[str, Any]:
    """The content of results.json; losses in nats per token, undefined numbers as null."""
    return {
        "schema_version": SCHEMA_VERSION,
        "runs": len(runs.table),
        "dropped": dict(runs.dropped),
        "warnings": list(runs.warnings),
        "contrast": None
        if contrast is None
        else {
            "deep": contrast.deep,
            "wide": contrast.wide,
            "pairs_within_3_percent": contrast.matched,
            "unpaired_runs": contrast.unpaired,
            "summary": _records(contrast.summary),
            "pairs": _records(contrast.pairs),
        },
        "power_laws": [asdict(law) for law in laws],
        "caveats": list(CAVEATS),
    }


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    rows = table.to_dict(orient="records")
    return [{str(k): _null_if_undefined(v) for k, v in row.items()} for row in rows]


def _null_if_undefined(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def sentences(contrast: Contrast | None) -> list[str]:
    """What the endpoint of each token budget says, in words; a result only where it holds one."""
    if contrast is None:
        return ["No two families share a size and a token budget, so nothing can be compared."]
    lines = []
    for row in contrast.summary.to_dict(orient="records"):
        start = (
            f"At {row['budget']:g} tokens per parameter, {contrast.deep} minus {contrast.wide} is"
        )
        pairs = int(row["pairs"])
        if not math.isfinite(row["largest_p_holm"]):
            many = "pair is" if pairs == 1 else "pairs are"
            lines.append(
                f"{start} {row['mean']:+.4f} nats/token; {pairs} {many} too few for an interval."
            )
            continue
        better = contrast.deep if row["largest"] < 0 else contrast.wide
        reading = (
            f"{better} is better in these runs"
            if row["largest_p_holm"] < SIGNIFICANCE
            else "these runs do not tell the families apart"
        )
        lines.append(
            f"{start} {_interval(row['largest'], row['largest_low'], row['largest_high'])} nats/token "
            f"at the largest FLOPs ({pairs} pairs, p = {row['largest_p_holm']:.3f} by Holm over the "
            f"budgets): {reading}. Below 0 in {int(row['deep_lower'])} of {pairs} pairs."
        )
    return lines


def markdown(runs: Runs, contrast: Contrast | None, laws: list[PowerLaw]) -> str:
    parts = ["# Deep or wide, at matched compute", ""]
    parts += [f"- {sentence}" for sentence in sentences(contrast)]
    parts += ["", f"![Loss against FLOPs per family, and the differences]({FIGURE})", ""]
    if contrast is not None:
        parts += [
            "## Differences per pair (nats/token)",
            "",
            *_markdown_table(_pair_rows(contrast)),
        ]
        parts += ["", "## Over pairs", "", *_markdown_table(_summary_rows(contrast)), ""]
    parts += ["## Power law per family", "", *_markdown_table(_law_rows(laws)), ""]
    parts += [f"- {law.family}: {'; '.join(law.reasons)}" for law in laws if law.reasons]
    parts += [
        "",
        "`loss = A * N_flop^-alpha * D^-beta` without an irreducible loss: a local slope over the "
        "measured range. Intervals are delete-one-size jackknife, 95%.",
        "",
        "## What went in",
        "",
        f"{len(runs.table)} finished runs; left out: " + f"{_dropped(runs, contrast)}.",
        *[f"- Note: {warning}." for warning in runs.warnings],
        "",
        "## What this cannot say",
        "",
        *[f"- {caveat}" for caveat in CAVEATS],
        "",
    ]
    return "\n".join(parts)


Rows = list[dict[str, str]]


def _pair_rows(contrast: Contrast) -> Rows:
    return [
        {
            "D/N_flop": f"{row['budget']:g}",
            "size": f"{int(row['size']):,}",
            "tokens": f"{int(row['tokens']):,}",
            "FLOPs": f"{row['flops']:.3g}",
            "mismatch": f"{row['flops_mismatch']:+.1%}",
            contrast.deep: f"{row['loss_nats_per_token_deep']:.4f}",
            contrast.wide: f"{row['loss_nats_per_token_wide']:.4f}",
            "difference": f"{row['difference']:+.4f}",
            "at equal FLOPs": f"{row['difference_at_equal_flops']:+.4f}",
        }
        for row in contrast.pairs.to_dict(orient="records")
    ]


def _summary_rows(contrast: Contrast) -> Rows:
    return [
        {
            "D/N_flop": f"{row['budget']:g}",
            "pairs": str(int(row["pairs"])),
            "deep lower in": str(int(row["deep_lower"])),
            "mean [95%]": _interval(row["mean"], row["mean_low"], row["mean_high"]),
            "sd over pairs": _number(row["sd"]),
            "at the largest FLOPs [95%]": _interval(
                row["largest"], row["largest_low"], row["largest_high"]
            ),
            "p (Holm)": _number(row["largest_p_holm"]),
        }
        for row in contrast.summary.to_dict(orient="records")
    ]


def _law_rows(laws: list[PowerLaw]) -> Rows:
    return [
        {
            "family": law.family,
            "status": law.status,
            "runs": str(law.runs),
            "sizes": str(law.sizes),
            "alpha [95%]": _interval(law.alpha, law.alpha_low, law.alpha_high, signed=False),
            "beta [95%]": _interval(law.beta, law.beta_low, law.beta_high, signed=False),
        }
        for law in laws
    ]


def _number(value: float | None, *, signed: bool = False) -> str:
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:+.4f}" if signed else f"{value:.4f}"


def _interval(
    value: float | None, low: float | None, high: float | None, *, signed: bool = True
) -> str:
    shown = [_number(number, signed=signed) for number in (value, low, high)]
    return shown[0] if "-" in shown[1:] else f"{shown[0]} [{shown[1]}, {shown[2]}]"


def _markdown_table(rows: Rows) -> list[str]:
    heading = list(rows[0])
    lines = ["| " + " | ".join(heading) + " |", "|" + " --- |" * len(heading)]
    return lines + ["| " + " | ".join(row.values()) + " |" for row in rows]


def _print(runs: Runs, contrast: Contrast | None, laws: list[PowerLaw]) -> None:
    console = Console(width=None if Console().is_terminal else 150)
    if contrast is not None:
        title = f"{contrast.deep} minus {contrast.wide}, validation loss in nats/token"
        console.print(_rich_table(title, _pair_rows(contrast)))
        console.print(_rich_table("over pairs of shapes", _summary_rows(contrast)))
    console.print(_rich_table("loss = A * N_flop^-alpha * D^-beta", _law_rows(laws)))
    for law in laws:
        if law.reasons:
            console.print(f"{law.family}: {law.status}: {'; '.join(law.reasons)}")
    for sentence in sentences(contrast):
        console.print(sentence)
    console.print(f"{len(runs.table)} runs; left out: {_dropped(runs, contrast)}")
    for warning in runs.warnings:
        console.print(f"note: {warning}")


def _dropped(runs: Runs, contrast: Contrast | None) -> str:
    reasons = [f"{count} {reason}" for reason, count in runs.dropped.items()]
    if contrast is not None and contrast.unpaired:
        reasons.append(f"{contrast.unpaired} without a partner (from the differences only)")
    return ", ".join(reasons) or "none"


def _rich_table(title: str, rows: Rows) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in rows[0]:
        table.add_column(heading, justify="left" if heading in {"family", "status"} else "right")
    for row in rows:
        table.add_row(*row.values())
    return table
