"""Tables of a report as rows of text, shared by HTML, Markdown and the console."""

from __future__ import annotations

import math

from analysis.formatting import power_of_ten, short_count
from analysis.report.study_report import StudyReport
from analysis.report.text import alpha_text, difference_text, interval, number, p_text

Rows = list[dict[str, str]]


def pair_rows(report: StudyReport) -> Rows:
    """Return one row per pair of shapes with equal tokens."""
    matched = report.comparison.matched
    if matched is None:
        return []
    return [
        {
            "tokens_per_param": f"{row['tokens_per_param']:g}",
            "size": f"{row['size']:,.0f}",
            "tokens": f"{row['tokens']:,.0f}",
            "FLOPs": f"{row['flops']:.3g}",
            "FLOPs mismatch": f"{row['flops_mismatch']:+.1%}",
            matched.deep: f"{row['loss_nats_per_token_deep']:.4f}",
            matched.wide: f"{row['loss_nats_per_token_wide']:.4f}",
            "difference": f"{row['difference']:+.4f}",
            "difference at equal FLOPs": f"{row['difference_at_equal_flops']:+.4f}",
        }
        for row in matched.pairs.to_dict(orient="records")
    ]


def summary_rows(report: StudyReport) -> Rows:
    """Return one row per token budget: mean difference, and difference at the largest FLOPs."""
    matched = report.comparison.matched
    if matched is None:
        return []
    return [
        {
            "tokens_per_param": f"{row['tokens_per_param']:g}",
            "pairs": str(int(row["pairs"])),
            "pairs with lower loss for deep": str(int(row["deep_lower"])),
            "mean difference [95% CI]": interval(row["mean"], row["mean_low"], row["mean_high"]),
            "SD over pairs": number(row["sd"]),
            "difference at the largest FLOPs [95% CI]": interval(
                row["largest"], row["largest_low"], row["largest_high"]
            ),
            "p (Holm)": p_text(row["largest_p_holm"]),
        }
        for row in matched.summary.to_dict(orient="records")
    ]


def exponent_rows(report: StudyReport) -> Rows:
    """Return one row per definition of N; an estimate that is refused or not identified has no value."""
    found = report.comparison
    rows = []
    for name, one in found.by_definition.items():
        is_identified = one.status != "UNIDENTIFIED"
        permuted = None if one.permutation is None else one.permutation.p
        rows.append(
            {
                "N": name,
                "status": one.status,
                **{
                    f"alpha {family} [95% CI]": alpha_text(one, family)
                    for family in dict.fromkeys((found.deep, found.wide))
                },
                "difference [95% CI]": difference_text(one) if not one.refused else "refused",
                "p": p_text(one.p if is_identified else None),
                "permutation p": p_text(permuted if is_identified else None),
            }
        )
    return rows


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
    power = report.power
    if power is None:
        return []
    effects = (0.01, 0.02, 0.05)
    rows = []
    if power.se_exponent is not None and power.power_t is not None:
        rows.append(
            {
                "estimate": "exponent difference, t test",
                "SE": number(power.se_exponent),
                "MDE (80% power)": number(power.mde80_exponent),
                **{f"power at {e:g}": f"{power.power_t[e]:.0%}" for e in effects},
            }
        )
    if power.power_verdict is not None:
        verdict = power.power_verdict
        rows.append(
            {
                "estimate": "exponent difference, full verdict (simulated)",
                "SE": "",
                "MDE (80% power)": "",
                **{f"power at {e:g}": f"{verdict[e]:.0%}" for e in effects},
            }
        )
    if power.se_difference is not None:
        rows.append(
            {
                "estimate": "loss difference at the largest FLOPs, nats/token",
                "SE": number(power.se_difference),
                "MDE (80% power)": number(power.mde80_difference),
                **({f"power at {e:g}": "" for e in effects} if rows else {}),
            }
        )
    return rows


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
        "exponent MDE (80% power)": number(power.mde80_exponent),
        "loss MDE (80% power), nats/token": number(power.mde80_difference),
    }
    return [
        current,
        *(
            {
                "extension": one.name,
                "runs": f"+{one.runs}",
                "FLOPs": power_of_ten(one.flops),
                "relative cost": f"{one.flops / spent:.2g}x",
                "exponent MDE (80% power)": number(one.mde80_exponent),
                "loss MDE (80% power), nats/token": number(one.mde80_difference),
            }
            for one in report.extensions
        ),
    ]


def next_rows(report: StudyReport) -> Rows:
    """Return additional single runs, the one with the largest decrease of the standard error per FLOP first."""
    return [
        {
            "family": run.family,
            "N_flop": short_count(run.flops / run.tokens / 6),
            "shape": run.shape if run.seed else f"new shape, {run.rung}",
            "tokens": short_count(run.tokens),
            "seed": str(run.seed),
            "FLOPs": power_of_ten(run.flops),
            "SE of the exponent difference": number(run.se_exponent, digits=5),
        }
        for run in report.next_runs
    ]


def hold_out_rows(report: StudyReport) -> Rows:
    """Return one row per held-out cell: observed and predicted loss in nats per token."""
    return [
        {
            "family": cell.family,
            "N": short_count(cell.n),
            "tokens": short_count(cell.tokens),
            "observed": f"{cell.observed:.4f}",
            "predicted [95% PI]": interval(cell.predicted, cell.low, cell.high, signed=False),
            "error, nats": f"{cell.error_nats:+.4f}",
            "relative error": f"{cell.error_percent:+.2f}%",
            "inside interval": "yes" if cell.inside else "NO",
        }
        for cell in report.comparison.hold_out.cells
    ]


def audit_rows(report: StudyReport) -> Rows:
    """Return the learning-rate audit: one row per shape, or per family if only a summary was given."""
    audit = report.comparison.audit
    if audit is None:
        return []
    if not audit.shapes:
        return [
            {
                "family": name,
                "audit": f"FAILED: {audit.failed[name]}" if name in audit.failed else "passed",
            }
            for name in audit.families
        ]
    return [
        {
            "family": one.family,
            "shape": one.shape,
            "best LR": f"{one.best_lr:.2e}" + ("" if one.interior else " (edge of the grid)"),
            "penalty of the LR used, nats/token": number(one.penalty),
            "cost of a factor 2, nats/token": number(one.cost_of_two),
        }
        for one in audit.shapes
    ]


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
