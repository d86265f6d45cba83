"""Tables of a report as rows of text, shared by HTML, Markdown and the console."""

from __future__ import annotations

import math

from analysis.formatting import format_number, power_of_ten, short_count
from analysis.report.study_report import StudyReport
from slm.summary import Rows


def pair_rows(report: StudyReport) -> Rows:
    """Return one row per pair of shapes with equal tokens."""
    matched = report.comparison.matched
    return [] if matched is None else matched.pair_rows()


def summary_rows(report: StudyReport) -> Rows:
    """Return one row per token budget: mean difference, and difference at the largest FLOPs."""
    matched = report.comparison.matched
    return [] if matched is None else matched.rows()


def exponent_rows(report: StudyReport) -> Rows:
    """Return one row per definition of N; an estimate that is refused or not identified has no value."""
    return [one.row() for one in report.comparison.by_definition.values()]


def delta_rows(report: StudyReport) -> Rows:
    """Return the estimates by threshold (delta) of the Huber loss; empty if there are no estimates."""
    found = report.comparison
    fit = found.exponents.fit
    if fit is None or found.status not in ("OK", "WEAK"):
        return []
    pair = (found.deep, found.wide)
    rows = []
    for delta, values in fit.by_delta.items():
        alphas = [values[f"alpha[{name}]"] for name in pair]
        rows.append(
            {
                "Huber delta": "least squares" if math.isinf(delta) else f"{delta:g}",
                "E": f"{values['E']:.4f}",
                **{f"alpha {name}": f"{a:.4f}" for name, a in zip(pair, alphas, strict=True)},
                "difference": f"{alphas[0] - alphas[1]:+.4f}",
                "beta": f"{values['beta']:.4f}",
            }
        )
    return rows


def power_rows(report: StudyReport) -> Rows:
    """Return standard error, MDE and power of this design for exponents and loss level."""
    return [] if report.power is None else report.power.rows()


def extension_rows(report: StudyReport) -> Rows:
    """Return MDE and cost of larger designs; the first row is the current design."""
    power = report.power
    if power is None or not report.extensions:
        return []
    spent = float(report.table["flops"].sum())
    current = {
        "extension": "none (current design)",
        "runs": "",
        "FLOPs": "",
        "relative cost": "",
        "exponent MDE (80% power)": format_number(power.mde80_exponent),
        "loss MDE (80% power), nats/token": format_number(power.mde80_level),
    }
    return [
        current,
        *(
            {
                "extension": one.name,
                "runs": f"+{one.runs}",
                "FLOPs": power_of_ten(one.flops),
                "relative cost": f"{one.flops / spent:.2g}x",
                "exponent MDE (80% power)": format_number(one.mde80_exponent),
                "loss MDE (80% power), nats/token": format_number(one.mde80_level),
            }
            for one in report.extensions
        ),
    ]


def next_rows(report: StudyReport) -> Rows:
    """Return single additions, the one with the largest decrease of the standard error per FLOP first."""
    return [
        {
            "addition": addition.name,
            "runs": f"+{addition.runs}",
            "FLOPs": power_of_ten(addition.flops),
            "SE of the exponent difference": format_number(addition.se, digits=5),
        }
        for addition in report.next_runs
    ]


def hold_out_rows(report: StudyReport) -> Rows:
    """Return one row per held-out cell: observed and predicted loss in nats per token."""
    return report.comparison.hold_out.rows()


def audit_rows(report: StudyReport) -> Rows:
    """Return the learning-rate audit: one row per shape, or per family if only a summary was given."""
    audit = report.comparison.audit
    return [] if audit is None else audit.rows()


def family_rows(report: StudyReport) -> Rows:
    """Return one row per family: number of runs, sizes, N, tokens_per_param and seeds."""
    rows = []
    for name in report.families:
        runs = report.table[report.table["family"] == name]
        ratio = runs["tokens"] / runs["n"]
        row = {
            "family": name,
            "runs": str(len(runs)),
            "sizes": str(runs["shape"].nunique()),
            "N": f"{short_count(runs['n'].min())} to {short_count(runs['n'].max())}",
            "tokens_per_param": f"{ratio.min():.3g} to {ratio.max():.3g}",
            "seeds": str(runs["seed"].nunique()),
        }
        if "aspect_ratio" in runs:
            aspect = runs["aspect_ratio"]
            row["d_model / n_layers"] = f"{aspect.min():.3g} to {aspect.max():.3g}"
        if "tokens_per_second" in runs:
            row["tokens/s, median"] = f"{runs['tokens_per_second'].median():,.0f}"
        rows.append(row)
    return rows


def run_rows(report: StudyReport) -> Rows:
    """Return one row per run."""
    return [
        {
            "run": str(row["run_id"]),
            "family": row["family"],
            "shape": row["shape"],
            "N": short_count(row["n"]),
            "tokens": short_count(row["tokens"]),
            "FLOPs": power_of_ten(row["flops"], 3),
            "seed": str(row["seed"]),
            "loss": f"{row['loss_nats_per_token']:.4f}",
            "residual": "-" if math.isnan(row["residual"]) else f"{row['residual']:+.2%}",
        }
        for row in report.table.to_dict("records")
    ]
