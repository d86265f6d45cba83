"""Sentences of a report: headline, uncertainty, exponents, compute multiplier, checks and limitations."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from analysis.compare.compute_multiplier import Kappa
from analysis.compare.exponents import ExponentDifference
from analysis.formatting import (
    count,
    format_dropped,
    format_interval,
    format_p_value,
    format_range,
    power_of_ten,
)
from analysis.learning_rate.audit import MAX_PENALTY

if TYPE_CHECKING:
    from analysis.report.study_report import StudyReport

SIGNIFICANCE = 0.05
MAX_LISTED_BUDGETS = 5
CAVEATS = (
    "All shapes share one learning rate unless the study tunes it (study.lr_policy=tuned). A family with "
    "another optimal learning rate can have a higher loss only because its learning rate is not tuned.",
    "The intervals cover the variation between shapes. They do not cover another corpus, another learning "
    "rate, or sizes outside the measured range.",
    "The mean over pairs assumes the same difference at all sizes and is descriptive only. The verdict uses "
    "the difference at the largest FLOPs.",
    "A loss difference that shrinks or grows with FLOPs does not imply a difference of exponents.",
    "Equal FLOPs do not mean equal time: deep shapes run at fewer tokens/s.",
    "The exponents describe the loss in nats per token as a function of N. Exponents of perplexity, or in "
    "FLOPs, have other values.",
)
NO_PAIRS = "No two families share a size and a token budget, so nothing can be compared."


def headline(report: StudyReport) -> str:
    """Return the verdict in one short sentence."""
    found = report.comparison
    deep, wide, word = found.deep, found.wide, found.verdict.word
    return {
        "depth_exponent_better": f"{deep} scales better than {wide}",
        "width_exponent_better": f"{wide} scales better than {deep}",
        "depth_level_better": f"{deep} beats {wide} at equal compute",
        "width_level_better": f"{wide} beats {deep} at equal compute",
        "no_difference": f"{deep} and {wide} are equivalent within the margins",
        "definition_dependent": "The sign of the exponent difference depends on how parameters are counted",
        "fragile": "The result depends on a single shape",
        "inconclusive": f"No significant difference between {deep} and {wide} in these runs",
        "audit_failed": "No verdict: the learning-rate audit failed",
        "refused": "No comparison: the design does not allow one",
    }[word]


def uncertainty(report: StudyReport) -> str:
    """Return the estimate and the interval for the headline, or the reasons if there is no verdict."""
    found = report.comparison
    word = found.verdict.word
    if word == "refused":
        return found.verdict.sentence.removeprefix("Refused: ")
    if word == "audit_failed" and found.audit is not None:
        return "; ".join(found.audit.reasons(found.deep, found.wide))
    if "exponent" in word or word in ("fragile", "definition_dependent"):
        return f"exponent of {found.deep} minus exponent of {found.wide}: {found.exponents.difference_text}"
    row = endpoint(report)
    if row is None:
        return "too few pairs for an interval"
    holm = "" if len(report.tokens_per_param) == 1 else ", Holm-adjusted over token budgets"
    return (
        f"loss of {found.deep} minus loss of {found.wide}: "
        f"{format_interval(row['largest'], row['largest_low_holm'], row['largest_high_holm'])} nats per token "
        f"at {power_of_ten(row['largest_flops'])} FLOPs (95% CI over {count(int(row['pairs']), 'pair')}{holm})"
    )


def endpoint(report: StudyReport) -> dict[str, Any] | None:
    """Return the summary row that the verdict on the loss level uses, or None if no row has an interval.

    It is the row of the largest token budget that has an interval; for a level verdict, of the largest token
    budget with a significant difference in the direction of the verdict.
    """
    matched = report.comparison.matched
    if matched is None:
        return None
    rows = [row for row in matched.by_flops if math.isfinite(row["largest_p_holm"])]
    word = report.comparison.verdict.word
    if "level" in word:
        sign = -1 if word.startswith("depth") else 1
        rows = [
            row
            for row in rows
            if row["largest"] * sign > 0 and row["largest_p_holm"] < SIGNIFICANCE
        ]
    return rows[-1] if rows else None


def key_numbers(report: StudyReport) -> list[tuple[str, str]]:
    """Return the main estimates as (`estimate [low, high]`, label), and the size of the study."""
    found, table = report.comparison, report.table
    numbers = []
    row = endpoint(report)
    if row is not None:
        value = format_interval(row["largest"], row["largest_low_holm"], row["largest_high_holm"])
        label = (
            f"loss of {found.deep} minus loss of {found.wide} at the largest FLOPs, nats per token"
        )
        numbers.append((value, label))
    if found.kappa is not None:
        low, high = found.kappa.interval or (math.nan, math.nan)
        value = format_interval(found.kappa.estimate, low, high, signed=False, digits=2)
        numbers.append(
            (value, f"compute multiplier: FLOPs of {found.wide} / {found.deep} at equal loss")
        )
    if found.verdict.word != "refused":
        one, label = found.exponents, f"exponent difference, status {found.status}"
        value = "refused" if one.refused else one.difference_text
        if one.status == "UNIDENTIFIED":
            value = "not identified"
            label += f": {format_range(one.accepted_difference, signed=True)} is accepted"
        numbers.append((value, label))
    shapes = count(table.groupby(["family", "shape"]).ngroups, "shape")
    families = count(len(report.families), "family", "families")
    budgets = count(len(report.tokens_per_param), "token budget")
    total_flops = power_of_ten(float(table["flops"].sum()))
    size = f"{families}, {budgets}, {total_flops} FLOPs"
    return [*numbers, (f"{count(len(table), 'run')}, {shapes}", size)]


def reasons(report: StudyReport) -> list[str]:
    """Return the reasons of the verdict, without those that the exponent section lists."""
    found = report.comparison
    return [reason for reason in found.verdict.reasons if reason not in found.exponents.reasons]


def status_lines(one: ExponentDifference) -> list[str]:
    """Return the reasons for the status of the exponents."""
    return [f"{one.status}: {reason}" for reason in one.reasons]


def power_refusals(report: StudyReport) -> list[str]:
    """Return the reasons why the power for the exponents cannot be computed."""
    return (
        [] if report.power is None else [f"Exponents: {reason}" for reason in report.power.refusals]
    )


def runs_sentence(report: StudyReport) -> str:
    """Return the number of runs in the report, and of those left out by reason."""
    runs = count(len(report.table), "finished run")
    return f"{runs}; left out: {dropped_text(report)}."


def notes(report: StudyReport) -> list[str]:
    """Return the warnings about the runs and the design."""
    return [f"Note: {warning}." for warning in report.warnings]


def exponent_sentence(report: StudyReport) -> str:
    """Return both exponents and their difference with the definition of N, sample sizes and noise."""
    found, one = report.comparison, report.comparison.exponents
    if one.refused:
        return f"The exponents are REFUSED: {'; '.join(one.reasons)}."
    alphas = ", ".join(
        f"alpha {name} = {one.alpha_text(name)}" for name in (found.deep, found.wide)
    )
    level = ""
    if one.fit is not None and one.status != "UNIDENTIFIED":
        level = f"E shared = {one.fit.params['E']:.3f}; "
    permuted = (
        "" if one.permutation is None else f"permutation {format_p_value(one.permutation.p)}; "
    )
    low, high = found.tokens_per_param
    return (
        f"{alphas}; difference {one.difference_text} (loss in nats against {one.n_name}; {level}jackknife "
        f"over {one.shapes} shapes; {permuted}{noise_text(report)}; {count(found.runs, 'run')}; tokens_per_param {low:.3g} to "
        f"{high:.3g}; status {one.status})."
    )


def noise_text(report: StudyReport) -> str:
    """Return the seed standard deviation and the random effect of a shape with units."""
    found = report.comparison
    sigma = "not measured" if found.sigma is None else f"{found.sigma:.4f} nats"
    tau = "not identified" if found.tau is None else f"{found.tau:.4f} nats"
    return f"seed standard deviation {sigma}, random effect of a shape {tau}"


def assumed_noise_text(report: StudyReport) -> str:
    """Return the noise that the power calculation assumes; empty if the report has no power calculation."""
    power, found = report.power, report.comparison
    if power is None:
        return ""
    sigma, tau = f"{power.sigma:.4f} nats", f"{power.tau:.4f} nats"
    if not found.sigma:
        sigma += " (default, not measured)"
    if not found.tau:
        tau += " (default, not identified)"
    return f"seed standard deviation {sigma}, random effect of a shape {tau}"


def kappa_sentence(kappa: Kappa | None, deep: str, wide: str) -> str:
    """Return the compute multiplier with its interval: FLOPs of wide over FLOPs of deep at equal loss."""
    if kappa is None:
        return "No compute multiplier: the families have no common range of losses."
    low, high = kappa.interval or (math.nan, math.nan)
    value = format_interval(kappa.estimate, low, high, signed=False, digits=2)
    return (
        f"At {power_of_ten(kappa.at_flops)} FLOPs {wide} needs {value} times the FLOPs of "
        f"{deep} for the same loss."
    )


def budget_sentences(report: StudyReport) -> list[str]:
    """Return one sentence per token budget: the difference at the largest FLOPs and its significance.

    With more than `MAX_LISTED_BUDGETS` budgets, only the largest budget that has an interval is listed.
    """
    contrast = report.comparison.matched
    if contrast is None:
        return [NO_PAIRS]
    rows = contrast.summary.to_dict(orient="records")
    tested = [row for row in rows if math.isfinite(row["largest_p_holm"])]
    lines = []
    if len(rows) > MAX_LISTED_BUDGETS:
        lines.append(
            f"{len(tested)} of {len(rows)} token budgets have enough pairs for an interval; only the largest of "
            f"them is listed here. The mean difference of all {len(contrast.pairs)} pairs is "
            f"{contrast.pairs['difference_at_equal_flops'].mean():+.4f} nats/token."
        )
        rows = tested[-1:]
    for row in rows:
        start = f"At tokens_per_param {row['tokens_per_param']:g}, {contrast.deep} minus {contrast.wide} is"
        pairs = int(row["pairs"])
        if not math.isfinite(row["largest_p_holm"]):
            many = "pair is" if pairs == 1 else "pairs are"
            lines.append(
                f"{start} {row['mean']:+.4f} nats/token; {pairs} {many} too few for an interval."
            )
            continue
        better = contrast.deep if row["largest"] < 0 else contrast.wide
        reading = (
            f"{better} has the lower loss in these runs"
            if row["largest_p_holm"] < SIGNIFICANCE
            else "no significant difference between the families in these runs"
        )
        lines.append(
            f"{start} {format_interval(row['largest'], row['largest_low'], row['largest_high'])} nats/token "
            f"at the largest FLOPs (unadjusted 95% CI over {count(pairs, 'pair')}; Holm-adjusted "
            f"{format_p_value(row['largest_p_holm'], ' = ')}): {reading}. {contrast.deep} has the lower loss in "
            f"{int(row['deep_lower'])} of {count(pairs, 'pair')}."
        )
    return lines


def hold_out_sentence(report: StudyReport) -> str:
    """Return the result of predicting the largest size from the smaller ones."""
    held = report.comparison.hold_out
    if held.passed is None:
        reasons = "; ".join(held.reasons) or "the exponents were refused"
        return f"The largest size cannot be predicted from the smaller ones: {reasons}."
    inside = f"{held.coverage:.0%} of its runs lie inside their 95% prediction interval"
    if held.passed:
        return f"Passed: the joint law fitted without the largest size predicts it; {inside}."
    return f"FAILED: {'; '.join(held.reasons)}; {inside}."


def audit_sentence(report: StudyReport) -> str:
    """Return the result of the learning-rate audit of both families."""
    found = report.comparison
    if found.audit is None:
        return (
            "No learning-rate audit was given (--audit FILE), so the result assumes a learning rate near the "
            "optimum of both families. Run python sweep.py study=lr_audit to check this."
        )
    if found.audit.passed(found.deep, found.wide):
        return (
            "Passed: in both families the best learning rate lies inside the grid, and the penalty of the "
            f"learning rate used is at most {MAX_PENALTY:g} nats."
        )
    return f"FAILED: {'; '.join(found.audit.reasons(found.deep, found.wide))}."


def dropped_text(report: StudyReport) -> str:
    """Return the number of excluded runs per reason."""
    reasons, matched = dict(report.dropped), report.comparison.matched
    if matched is not None and matched.unpaired:
        reasons["unpaired (left out of the paired differences only)"] = matched.unpaired
    return format_dropped(reasons)
