"""Tables of a report as rows of text, shared by HTML, Markdown and the console."""

from __future__ import annotations

import math
from collections.abc import Iterator

from analysis.compare.block_result import BlockResult
from analysis.formatting import format_interval, format_number, format_p_value, power_of_ten, span
from analysis.report.study_report import StudyReport
from slm.formatting import short_count
from slm.summary import Rows

BEST = "* "  # before the lowest loss of a row
LEVEL, EXPONENT = "loss difference, nats/token", "exponent difference"


def loss_rows(report: StudyReport) -> Rows:
    """Return one row per size and token budget: the loss of each family, the lowest marked, and deep minus wide."""
    found = report.comparison
    rows = []
    for cell in report.losses:
        losses = cell["families"]
        lowest = min(losses.values()) if len(losses) > 1 else math.nan
        row = {
            "N": short_count(cell["n"]),
            "tokens_per_param": f"{cell['tokens_per_param']:g}",
            "tokens": short_count(cell["tokens"]),
        }
        for name in report.families:
            loss = losses.get(name)
            row[name] = f"{BEST * (loss == lowest)}{format_number(loss)}"
        if found.matched is not None:
            condition = "at equal FLOPs" if found.matched.is_corrected else "(raw difference)"
            heading = f"{found.deep} - {found.wide} {condition}"
            row[heading] = format_number(cell["difference"], signed=True)
        rows.append(row)
    return rows


def kappa_rows(report: StudyReport) -> Rows:
    """Return the compute multiplier at the largest common size by token budget."""
    return [
        {
            "tokens": short_count(row["tokens"]),
            "compute multiplier [95% CI]": format_interval(
                row["kappa"], row["low"], row["high"], signed=False, digits=3
            ),
        }
        for row in report.comparison.block.kappa_by_budget
    ]


def optimum_rows(report: StudyReport) -> Rows:
    """Return the best aspect ratio of each size with Fieller's interval."""
    return [
        {
            "N": short_count(row["n"]),
            "best d_model / n_layers [95% CI]": format_interval(
                row["best_aspect"], row["low"], row["high"], signed=False, digits=1
            ),
            "cost of a factor of 2, nats/token": format_number(row["cost_of_two"]),
        }
        for row in report.comparison.block.optima
    ]


def contrast_rows(report: StudyReport) -> Rows:
    """Return level and exponent difference of other pairs of families."""
    return [
        {
            "deep": one.deep,
            "wide": one.wide,
            f"{LEVEL} [95% CI]": "refused" if one.refused else one.level_text,
            "compute multiplier [95% CI]": one.kappa_text,
            f"{EXPONENT} [95% CI]": one.d_alpha_interval_text,
        }
        for one in report.other_contrasts
    ]


def robustness_rows(report: StudyReport) -> Rows:
    """Return the estimates of the block model, and what other assumptions and tests give."""
    found, block = report.comparison, report.comparison.block
    checks = found.robustness
    if block.refused or checks is None:
        return []
    rows = [
        _check("block model", (block.level_text, block.p_level), (_difference(block), block.p_exponent))
    ]  # fmt: skip
    if block.d_alpha_free_e is not None:
        free = f"{format_number(block.d_alpha_free_e, signed=True)} +- {format_number(block.d_alpha_free_e_se)}"
        rows.append(_check("E free in each family", exponent=(free, None)))
    for name, one in found.by_definition.items():
        if name != block.n_name:
            rows.append(_check(f"N = {name}", exponent=(_difference(one), one.p_exponent)))
    rows.append(_check("joint law M2, jackknife", exponent=_joint(report)))
    for name, one in found.by_subset.items():
        estimates = (one.level_text, one.p_level), (_difference(one), one.p_exponent)
        rows.append(_check(name, *estimates))
    for noise in checks.noise:
        level, d_alpha = (format_number(noise[key], signed=True) for key in ("level", "d_alpha"))
        name = f"noise proportional to N^{noise['noise_exponent']:g}"
        rows.append(_check(name, (level, noise["p_level"]), (d_alpha, noise["p_exponent"])))
    if checks.bootstrap_p is not None:
        rows.append(_check("parametric bootstrap", exponent=("", checks.bootstrap_p)))
    if checks.permutation_p is not None:
        rows.append(_check("permutation of shapes", exponent=("", checks.permutation_p)))
    return rows


def _check(
    name: str,
    level: tuple[str, float | None] = ("", None),
    exponent: tuple[str, float | None] = ("", None),
) -> dict[str, str]:
    row = {"check": name}
    for key, (estimate, p) in ((LEVEL, level), (EXPONENT, exponent)):
        row[f"{key} [95% CI]"] = estimate
        row[f"p, {key.partition(' ')[0]}"] = "" if p is None else format_p_value(p)[2:]
    return row


def _difference(block: BlockResult) -> str:
    return block.d_alpha_interval_text


def _joint(report: StudyReport) -> tuple[str, float | None]:
    one = report.comparison.exponents
    if one.refused or one.status == "UNIDENTIFIED":
        return one.status.lower(), None
    return one.difference_text, one.p


def noise_rows(report: StudyReport) -> Rows:
    """Return the residual standard deviation by family and by size."""
    sizes = {str(cell["rung"]): f"N = {short_count(cell['n'])}" for cell in report.losses}
    return [
        {
            "runs of": sizes.get(row["name"], row["name"]) if row["by"] == "rung" else row["name"],
            "runs": str(row["runs"]),
            "residual SD, nats": format_number(row["sd"]),
        }
        for row in report.comparison.block.noise
    ]


def seed_noise_rows(report: StudyReport) -> Rows:
    """Return the standard deviation between seeds by size and family; empty without several seeds."""
    return [
        {
            "N": short_count(one.n),
            "family": one.family,
            "seeds": str(one.seeds),
            "SD between seeds, nats [95% CI]": format_interval(one.sd, *one.interval, signed=False),
        }
        for one in report.seed_noise
    ]


def delta_rows(report: StudyReport) -> Rows:
    """Return the joint law by threshold (delta) of the Huber loss; empty if there are no estimates."""
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


def family_rows(report: StudyReport) -> Rows:
    """Return one row per family: number of runs, sizes, N, tokens_per_param and seeds."""
    return [_family_row(report, name) for name in report.families]


def _family_row(report: StudyReport, name: str) -> dict[str, str]:
    runs = report.table[report.table["family"] == name]
    ratio = runs["tokens"] / runs["n"]
    row = {
        "family": name,
        "runs": str(len(runs)),
        "sizes": str(runs["shape"].nunique()),
        "N": span(runs["n"]),
        "tokens_per_param": span(ratio),
        "seeds": str(runs["seed"].nunique()),
    }
    if "aspect_ratio" in runs:
        aspect = runs["aspect_ratio"].dropna()
        row["d_model / n_layers"] = "-" if aspect.empty else span(aspect)
    if "tokens_per_second" in runs:
        row["tokens/s, median"] = f"{runs['tokens_per_second'].median():,.0f}"
    return row


def run_rows(report: StudyReport) -> Iterator[dict[str, str]]:
    """Yield one row per run."""
    for row in report.table.to_dict("records"):
        yield {
            "run": str(row["run_id"]),
            "family": row["family"],
            "shape": row["shape"],
            "N": short_count(row["n"]),
            "tokens": short_count(row["tokens"]),
            "FLOPs": power_of_ten(row["flops"], 3),
            "seed": str(row["seed"]),
            "loss": f"{row['loss_nats_per_token']:.4f}",
            "residual": "-"
            if math.isnan(row["residual"])
            else format_number(row["residual"], signed=True),
        }
