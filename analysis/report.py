"""Writes what the runs say: tables on the console, report.md, results.json and one figure."""

from __future__ import annotations

import math
from collections.abc import Collection
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from analysis.compare import Comparison, compare_families
from analysis.figures import save_overview
from analysis.inference import Contrast
from analysis.lr_audit import Audit, audit_rates
from analysis.runs import Runs, collect_runs, load_runs
from analysis.verdict import describe_kappa
from slm.errors import DataError
from slm.files import write_json, write_text

SCHEMA_VERSION = 2  # 2: the whole comparison
SIGNIFICANCE = 0.05
FIGURE = "loss_vs_flops.png"
EXPONENTS = (
    "Joint law `loss = E + A N^-alpha + B D^-beta` with E, B and beta shared and A, alpha of each family, "
    "loss in nats per token. Intervals are delete-one-shape jackknife, 95%."
)
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
    source: Path | str,
    out: Path,
    contrast: tuple[str, str] | None = None,
    only: Collection[str] | None = None,
    *,
    audit: Path | None = None,
    pool_validation_sets: bool = False,
) -> None:
    """Analyse every finished run of a source (`analysis.load_runs`) and write the report to `out`.

    `contrast` names the families to compare; without it, the thinnest and the widest. `only` keeps
    the runs with these ids. `audit`: a folder of runs over a grid of learning rates, for the audit of the
    rates that this study used. `pool_validation_sets` compares losses on different validation sets too.

    Raises:
        DataError: if there is no finished run, or none of a family that `contrast` names.
    """
    runs = load_runs(source, only, pool_validation_sets=pool_validation_sets)
    families = runs.families
    _check_names(contrast or (), families)
    deep, wide = contrast or (families[0], families[-1])
    audited = None if audit is None else _audit(audit, runs)
    found = (
        compare_families(runs.table, deep=deep, wide=wide, audit=audited) if deep != wide else None
    )
    matched = None if found is None else found.matched
    out.mkdir(parents=True, exist_ok=True)
    save_overview(runs.table, families, matched, out / FIGURE)
    write_json(out / "results.json", results(runs, found))
    write_text(out / "report.md", markdown(runs, found))
    _print(runs, found)
    Console().print(f"report: {out / 'report.md'}   figure: {out / FIGURE}", soft_wrap=True)


def _audit(folder: Path, runs: Runs) -> Audit:
    """The audit's runs judged at the rates that the study's families were trained with."""
    used = runs.table.groupby("family")["peak_lr"].median()
    return audit_rates(collect_runs(folder)[0], {str(name): rate for name, rate in used.items()})


def _check_names(asked: tuple[str, ...], families: list[str]) -> None:
    for name in asked:
        if name not in families:
            near = get_close_matches(name, families, n=1)
            fix = f"did you mean {near[0]}?" if near else f"there are: {', '.join(families)}"
            raise DataError(f"no runs of a family named {name!r} here; {fix}")


def results(runs: Runs, found: Comparison | None) -> dict[str, Any]:
    """The content of results.json; losses in nats per token, undefined numbers as null.

    `comparison` is `Comparison.to_dict()`: verdict, exponents per definition of N, matched differences,
    compute multiplier, hold-out, audit. It is null with one family.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "runs": len(runs.table),
        "dropped": dict(runs.dropped),
        "warnings": list(runs.warnings),
        "comparison": None if found is None else found.to_dict(),
        "caveats": list(CAVEATS),
    }


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


def markdown(runs: Runs, found: Comparison | None) -> str:
    contrast = None if found is None else found.matched
    parts = ["# Deep or wide, at matched compute", ""]
    if found is not None:
        parts += [f"**{found.verdict.word}**: {found.verdict.sentence}", ""]
        parts += [f"- {reason}" for reason in found.verdict.reasons]
    parts += [f"- {sentence}" for sentence in sentences(contrast)]
    parts += ["", f"![Loss against FLOPs per family, and the differences]({FIGURE})", ""]
    if contrast is not None:
        parts += [
            "## Differences per pair (nats/token)",
            "",
            *_markdown_table(_pair_rows(contrast)),
        ]
        parts += ["", "## Over pairs", "", *_markdown_table(_summary_rows(contrast)), ""]
    if found is not None:
        parts += ["## Exponents", "", *_markdown_table(_exponent_rows(found)), ""]
        parts += [f"- {reason}" for reason in found.exponents.reasons]
        parts += ["", EXPONENTS, ""]
        if found.kappa is not None:
            parts += [f"Compute multiplier: {describe_kappa(found.kappa, found.deep)}.", ""]
        if found.shape_curve is not None:
            parts += ["## Shape curve", "", found.shape_curve.sentence, ""]
    parts += [
        "## What went in",
        "",
        f"{len(runs.table)} finished runs; left out: " + f"{_dropped(runs, contrast)}.",
        *[f"- Note: {warning}." for warning in _notes(runs, found)],
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


def _exponent_rows(found: Comparison) -> Rows:
    rows = []
    for name, one in found.by_definition.items():
        low, high = one.interval or (None, None)
        alphas = {
            f"alpha {family} [95%]": _interval(
                one.alpha.get(family), *one.alpha_intervals.get(family, (None, None)), signed=False
            )
            for family in (found.deep, found.wide)
        }
        permuted = None if one.permutation is None else one.permutation.p
        rows.append(
            {
                "N": name,
                "status": one.status,
                "runs": str(one.runs),
                "shapes": str(one.shapes),
                **alphas,
                "difference [95%]": _interval(one.difference, low, high),
                "p": _number(one.p),
                "permutation p": _number(permuted),
            }
        )
    return rows


def _notes(runs: Runs, found: Comparison | None) -> list[str]:
    return [*runs.warnings, *(() if found is None else found.warnings)]


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


def _print(runs: Runs, found: Comparison | None) -> None:
    console = Console(width=None if Console().is_terminal else 150)
    contrast = None if found is None else found.matched
    if contrast is not None:
        title = f"{contrast.deep} minus {contrast.wide}, validation loss in nats/token"
        console.print(_rich_table(title, _pair_rows(contrast)))
        console.print(_rich_table("over pairs of shapes", _summary_rows(contrast)))
    if found is not None:
        console.print(_rich_table("exponents of the joint law", _exponent_rows(found)))
        for reason in found.exponents.reasons:
            console.print(f"exponents {found.exponents.status}: {reason}", markup=False)
    for sentence in sentences(contrast):
        console.print(sentence, markup=False)
    if found is not None:
        console.print(f"{found.verdict.word}: {found.verdict.sentence}", markup=False)
    console.print(f"{len(runs.table)} runs; left out: {_dropped(runs, contrast)}")
    for warning in _notes(runs, found):
        console.print(f"note: {warning}", markup=False)


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
