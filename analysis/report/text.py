"""A study's answer in words: the headline, and what each part of a report says in a sentence."""

from __future__ import annotations

import math
from typing import Any

from analysis.compare.compute_multiplier import Kappa
from analysis.compare.exponents import ExponentDifference
from analysis.formatting import (
    MIN_P,
    count,
    format_dropped,
    format_p_value,
    format_range,
    power_of_ten,
)
from analysis.report.study_report import Answer

SIGNIFICANCE = 0.05
MOST_LISTED = 5  # token budgets told one by one
CAVEATS = (
    "One learning rate serves all shapes unless a study says otherwise; a family whose optimum lies "
    "elsewhere loses for that reason alone.",
    "The intervals are over shapes. They do not cover another corpus, another learning rate or sizes "
    "outside of the measured range.",
    "The mean over pairs takes the difference for the same at all sizes; it describes, and the endpoint "
    "at the largest FLOPs decides.",
    "A gap that shrinks or grows with FLOPs is not a difference of exponents.",
    "Equal FLOPs are not equal time: deep shapes run at fewer tokens/s.",
    "Exponents are of the loss in nats per token. Those of perplexity, or in FLOPs, are other numbers.",
)
NOTHING = "No two families share a size and a token budget, so nothing can be compared."
NAMES = {
    "n_flop": "N = FLOPs per token / 6",
    "params_non_embedding": "N = parameters without embedding",
    "params_total": "N = all parameters",
}


def headline(answer: Answer) -> str:
    """The verdict for a reader in a hurry."""
    found = answer.comparison
    deep, wide, word = found.deep, found.wide, found.verdict.word
    return {
        "depth_exponent_better": f"{deep} scales better than {wide}",
        "width_exponent_better": f"{wide} scales better than {deep}",
        "depth_level_better": f"{deep} beats {wide} at equal compute",
        "width_level_better": f"{wide} beats {deep} at equal compute",
        "no_difference": f"No difference between {deep} and {wide}",
        "definition_dependent": "The answer depends on how a model's size is counted",
        "fragile": "The answer hangs on a single shape",
        "inconclusive": f"These runs do not tell {deep} and {wide} apart",
        "audit_failed": "No verdict: the learning rate does not suit both families",
        "refused": "No comparison: the design does not allow one",
    }[word]


def uncertainty(answer: Answer) -> str:
    """The numbers that belong to the headline."""
    found = answer.comparison
    word, one = found.verdict.word, found.exponents
    if word == "refused":
        return found.verdict.sentence.removeprefix("Refused: ")
    if word == "audit_failed" and found.audit is not None:
        return "; ".join(found.audit.reasons(found.deep, found.wide))
    if "exponent" in word or word in ("fragile", "definition_dependent"):
        return f"exponent of {found.deep} minus that of {found.wide}: {difference_text(one)}"
    row = endpoint(answer)
    if row is None:
        return "too few pairs for an interval"
    holm = "" if len(answer.tokens_per_param) == 1 else ", adjusted for several budgets"
    return (
        f"{found.deep} minus {found.wide}: "
        f"{interval(row['largest'], row['largest_low_holm'], row['largest_high_holm'])} nats per token "
        f"at {power_of_ten(row['largest_flops'])} FLOPs (95% interval over {count(int(row['pairs']), 'pair')}{holm})"
    )


def endpoint(answer: Answer) -> dict[str, Any] | None:
    """The row of the paired differences that decides: at the largest FLOPs, with an interval."""
    matched = answer.comparison.matched
    if matched is None:
        return None
    rows = [row for row in matched.by_flops if math.isfinite(row["largest_p_holm"])]
    word = answer.comparison.verdict.word
    if "level" in word:  # the budget that the verdict speaks of
        sign = -1 if word.startswith("depth") else 1
        rows = [
            row
            for row in rows
            if row["largest"] * sign > 0 and row["largest_p_holm"] < SIGNIFICANCE
        ]
    return rows[-1] if rows else None


def reasons(answer: Answer) -> list[str]:
    """What else weighed in, less what is said beside the exponents."""
    found = answer.comparison
    return [reason for reason in found.verdict.reasons if reason not in found.exponents.reasons]


def difference_text(one: ExponentDifference) -> str:
    """The difference of exponents, or why there is no number; a range where every value is accepted."""
    if one.difference is None or one.interval is None:
        return f"refused: {'; '.join(one.reasons)}"
    if one.status == "UNIDENTIFIED":
        ends = format_range(one.accepted_difference, signed=True)
        return f"not identified: anything from {ends} is accepted"
    return interval(one.difference, *one.interval)


def alpha_text(one: ExponentDifference, family: str) -> str:
    """The exponent of one family, likewise."""
    if family not in one.alpha:
        return "refused"
    if one.status == "UNIDENTIFIED":
        return f"not identified: {format_range(one.accepted_alpha(family))} is accepted"
    return interval(one.alpha[family], *one.alpha_intervals[family], signed=False)


def exponent_sentence(answer: Answer) -> str:
    """Both exponents and their difference with all that they stand on."""
    found, one = answer.comparison, answer.comparison.exponents
    if one.refused:
        return f"The exponents are REFUSED: {'; '.join(one.reasons)}."
    alphas = ", ".join(
        f"alpha {name} = {alpha_text(one, name)}" for name in (found.deep, found.wide)
    )
    level = ""
    if one.fit is not None and one.status != "UNIDENTIFIED":
        level = f"E shared = {one.fit.params['E']:.3f}; "
    permuted = (
        "" if one.permutation is None else f"permutation {format_p_value(one.permutation.p)}; "
    )
    low, high = found.tokens_per_param
    return (
        f"{alphas}; difference {difference_text(one)} (loss in nats against {one.n_name}; {level}jackknife "
        f"over {one.shapes} shapes; {permuted}{noise_text(answer)}; {count(found.runs, 'run')}; tokens_per_param {low:.3g} to "
        f"{high:.3g}; status {one.status})."
    )


def noise_text(answer: Answer) -> str:
    found = answer.comparison
    sigma = "not measured" if found.sigma is None else f"{found.sigma:.4f} nats"
    tau = "unknown" if found.tau is None else f"{found.tau:.4f} nats"
    return f"seed standard deviation {sigma}, random effect of a shape {tau}"


def kappa_sentence(kappa: Kappa | None, deep: str, wide: str) -> str:
    """What the better shape saves."""
    if kappa is None:
        return "No compute multiplier: the families share no range of losses."
    value = kappa.at_largest if kappa.by_law is None else kappa.by_law
    between = ""
    if kappa.interval is not None:
        low, high = kappa.interval
        between = f" [{low:.2f}, {high:.2f}]"
    return (
        f"At {power_of_ten(kappa.at_flops)} FLOPs {wide} needs {value:.2f}{between} times the FLOPs of "
        f"{deep} for the same loss."
    )


def budget_sentences(answer: Answer) -> list[str]:
    """What the endpoint of each token budget says; a result only where it holds one."""
    contrast = answer.comparison.matched
    if contrast is None:
        return [NOTHING]
    rows = contrast.summary.to_dict(orient="records")
    known = [row for row in rows if math.isfinite(row["largest_p_holm"])]
    lines = []
    if len(rows) > MOST_LISTED:
        lines.append(
            f"{len(known)} of {len(rows)} token budgets have enough pairs for an interval; the one of the largest "
            f"FLOPs is told here. The mean of all {len(contrast.pairs)} pairs is "
            f"{contrast.pairs['difference_at_equal_flops'].mean():+.4f} nats/token."
        )
        rows = known[-1:]
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
            f"{better} is better in these runs"
            if row["largest_p_holm"] < SIGNIFICANCE
            else "these runs do not tell the families apart"
        )
        lines.append(
            f"{start} {interval(row['largest'], row['largest_low'], row['largest_high'])} nats/token "
            f"at the largest FLOPs ({count(pairs, 'pair')}, {format_p_value(row['largest_p_holm'], ' = ')} by Holm "
            f"over the budgets): {reading}. Below 0 in {int(row['deep_lower'])} of {count(pairs, 'pair')}."
        )
    return lines


def hold_out_sentence(answer: Answer) -> str:
    held = answer.comparison.hold_out
    if held.passed is None:
        reasons = "; ".join(held.reasons) or "the exponents were refused"
        return f"The largest size cannot be predicted from the smaller ones: {reasons}."
    inside = f"{held.coverage:.0%} of its runs lie inside of their 95% interval"
    if held.passed:
        return f"Passed: fitted without the largest size, the law predicts it; {inside}."
    return f"FAILED: {'; '.join(held.reasons)}; {inside}."


def audit_sentence(answer: Answer) -> str:
    found = answer.comparison
    if found.audit is None:
        return (
            "No audit of learning rates was given (--audit FILE): the answer holds if the rates suit both "
            "families. python sweep.py study=lr_audit makes one."
        )
    if found.audit.passed(found.deep, found.wide):
        return "Passed: in both families the best rate lies inside of the grid, and the one used costs little."
    return f"FAILED: {'; '.join(found.audit.reasons(found.deep, found.wide))}."


def dropped_text(answer: Answer) -> str:
    reasons, matched = dict(answer.dropped), answer.comparison.matched
    if matched is not None and matched.unpaired:
        reasons["without a partner (from the differences only)"] = matched.unpaired
    return format_dropped(reasons)


def p_text(p: float | None) -> str:
    if p is None or not math.isfinite(p):
        return "-"
    return "< .001" if p < MIN_P else f"{p:.4f}"


def number(value: float | None, *, signed: bool = False, digits: int = 4) -> str:
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"


def interval(
    value: float | None, low: float | None, high: float | None, *, signed: bool = True
) -> str:
    shown = [number(one, signed=signed) for one in (value, low, high)]
    return shown[0] if "-" in shown[1:] else f"{shown[0]} [{shown[1]}, {shown[2]}]"
