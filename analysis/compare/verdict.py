"""From estimates to one word and the sentence that justifies it.

The rules are fixed before the data are seen, and are tried in this order: what forbids an answer, the
learning-rate audit, the exponents, the levels, equivalence. Whatever passes none is inconclusive.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from analysis.compare.compute_multiplier import Kappa
from analysis.compare.exponents import EQUIVALENT, ExponentDifference
from analysis.compare.holdout import HoldOut
from analysis.compare.matched_pairs import Contrast
from analysis.formatting import count, format_p_value, format_range, power_of_ten
from analysis.learning_rate.audit import Audit
from slm.rounding import ITERATION_TOLERANCE, exceeds, opposite_signs, snap_to_zero
from slm.summary import Summarized

Word = Literal[
    "depth_exponent_better",
    "width_exponent_better",
    "depth_level_better",
    "width_level_better",
    "no_difference",
    "definition_dependent",
    "fragile",
    "inconclusive",
    "audit_failed",
    "refused",
]

SIGNIFICANCE = 0.05
SAME_COST = math.log(1.05)  # ln kappa closer to 0 than this is no difference


@dataclass(frozen=True, repr=False)
class Verdict(Summarized):
    """`word`, the sentence that justifies it, and further reasons."""

    word: Word
    sentence: str
    reasons: tuple[str, ...] = ()

    def title(self) -> str:
        return f"{self.word}: {self.sentence}"

    def details(self) -> Iterator[tuple[str, str]]:
        for reason in self.reasons:
            yield "reason", reason


@dataclass(frozen=True)
class Findings:
    """All that the rules look at. `others`: the exponents under further definitions of N."""

    deep: str
    wide: str
    refusals: tuple[str, ...]
    primary: ExponentDifference
    others: tuple[ExponentDifference, ...]
    contrast: Contrast | None
    kappa: Kappa | None
    hold_out: HoldOut
    audit: Audit | None


def decide(found: Findings) -> Verdict:
    """The verdict."""
    if found.refusals:
        return Verdict("refused", f"Refused: {found.refusals[0]}.", found.refusals[1:])
    if found.audit is not None and not found.audit.passed(found.deep, found.wide):
        reasons = found.audit.reasons(found.deep, found.wide)
        sentence = (
            f"The learning-rate audit failed ({reasons[0]}), so a difference between {found.deep} and "
            f"{found.wide} may be one of tuning, not of architecture."
        )
        return Verdict("audit_failed", sentence, tuple(reasons[1:]))
    doubts: list[str] = []
    verdict = _exponents(found, doubts)
    if verdict is None:
        verdict = _levels(found, doubts) or _equivalence(found) or _inconclusive(found)
    notes = tuple(doubts)
    if found.audit is None:
        notes = (
            *notes,
            "no audit of learning rates was given: the answer holds if they suit both families",
        )
    return Verdict(verdict.word, verdict.sentence, (*verdict.reasons, *notes))


def _exponents(found: Findings, doubts: list[str]) -> Verdict | None:
    """A difference of exponents, or why one that is significant is not to be had; else None."""
    one = found.primary
    if one.difference is None or not one.significant or one.status == "UNIDENTIFIED":
        return None
    estimate = describe(one)
    other_sign = [
        other
        for other in found.others
        if other.difference is not None and opposite_signs(other.difference, one.difference)
    ]
    if other_sign:
        sentence = f"{estimate}; with N as {other_sign[0].n_name} the sign is the other one."
        return Verdict("definition_dependent", sentence)
    if one.is_fragile and one.without is not None:
        shape, without = one.without
        return Verdict("fragile", f"{estimate}; without {shape} it is {without:+.4f}.")
    if found.kappa is not None and opposite_signs(found.kappa.excess_slope, one.difference):
        doubts.append(
            f"{estimate}, but the compute multiplier changes with scale the other way "
            f"(slope {found.kappa.excess_slope:+.3f})"
        )
        return None
    if found.hold_out.passed is False:
        failed = "; ".join(found.hold_out.reasons)
        doubts.append(f"{estimate}, but the law does not predict the largest size ({failed})")
        return None
    deep_wins = one.difference > 0
    winner, loser = (found.deep, found.wide) if deep_wins else (found.wide, found.deep)
    word: Word = "depth_exponent_better" if deep_wins else "width_exponent_better"
    return Verdict(
        word, f"The loss of {winner} falls faster with size than that of {loser}: {estimate}."
    )


def _levels(found: Findings, doubts: list[str]) -> Verdict | None:
    """A matched-FLOP difference at the largest FLOPs of some budget, adjusted over budgets."""
    if found.contrast is None or found.contrast.summary.empty:
        return None
    rows = found.contrast.by_flops
    lower = [
        row for row in rows if row["largest_high_holm"] < 0 and row["largest_p_holm"] < SIGNIFICANCE
    ]
    higher = [
        row for row in rows if row["largest_low_holm"] > 0 and row["largest_p_holm"] < SIGNIFICANCE
    ]
    if lower and higher:
        doubts.append("which family is better depends on the token budget")
        return None
    if not lower and not higher:
        return None
    row = (lower or higher)[-1]
    winner, loser = (found.deep, found.wide) if lower else (found.wide, found.deep)
    word: Word = "depth_level_better" if lower else "width_level_better"
    sentence = (
        f"At equal FLOPs {winner} has the lower loss: {found.deep} minus {found.wide} is "
        f"{row['largest']:+.4f} nats [{row['largest_low_holm']:+.4f}, {row['largest_high_holm']:+.4f}] at "
        f"{power_of_ten(row['largest_flops'])} FLOPs and tokens_per_param {row['tokens_per_param']:g} "
        f"({count(int(row['pairs']), 'pair')}, Holm {format_p_value(row['largest_p_holm'])}); no difference of exponents from {loser} is shown."
    )
    return Verdict(word, sentence)


def _equivalence(found: Findings) -> Verdict | None:
    """No difference needs equivalence; and where equal losses cost unequal FLOPs there is one."""
    one, kappa = found.primary, found.kappa
    ends = (
        None if kappa is None or kappa.interval is None else [math.log(x) for x in kappa.interval]
    )
    if ends is not None and not snap_to_zero(ends[0], ITERATION_TOLERANCE) <= 0 <= snap_to_zero(
        ends[1], ITERATION_TOLERANCE
    ):
        return None
    identified = one.status != "UNIDENTIFIED"
    if identified and one.equivalence_p is not None and one.equivalence_p < SIGNIFICANCE:
        sentence = (
            f"The exponents are the same within {EQUIVALENT:g} ({describe(one)}; equivalence "
            f"{format_p_value(one.equivalence_p)}), and no difference at equal FLOPs was found."
        )
        return Verdict("no_difference", sentence)
    if kappa is not None and ends is not None and exceeds(SAME_COST, max(-ends[0], ends[1])):
        multiplier = describe_kappa(kappa, found.deep, found.wide)
        return Verdict(
            "no_difference", f"Equal losses cost the same FLOPs within 5%: {multiplier}."
        )
    return None


def _inconclusive(found: Findings) -> Verdict:
    one = found.primary
    if one.difference is None:
        reason = one.reasons[0] if one.reasons else "the exponents were refused"
        return Verdict(
            "inconclusive",
            f"No difference at equal FLOPs was found, and the exponents cannot be compared: {reason}.",
            one.reasons[1:],
        )
    if one.status == "UNIDENTIFIED":
        return Verdict(
            "inconclusive",
            f"No difference at equal FLOPs was found, and the exponents are not identified: "
            f"{one.reasons[0]}; as their difference, anything from "
            f"{format_range(one.accepted_difference, signed=True)} is accepted.",
            one.reasons[1:],
        )
    hints: tuple[str, ...] = ()
    if found.kappa is not None and found.kappa.interval is not None:
        hints = (f"exploratory: {describe_kappa(found.kappa, found.deep, found.wide)}",)
    sentence = (
        f"{describe(one)}: neither a difference nor its absence is shown; a difference of exponents of "
        f"{one.mde80:.3f} would have been found with a probability of 80%."
    )
    return Verdict("inconclusive", sentence, hints)


def describe(one: ExponentDifference) -> str:
    """The estimate with what it stands on, or the accepted range of one that is not identified."""
    if one.difference is None or one.interval is None or one.p is None:
        return f"exponents refused ({'; '.join(one.reasons)})"
    if one.status == "UNIDENTIFIED":
        return (
            f"alpha {one.deep} - alpha {one.wide} is not identified: anything from "
            f"{format_range(one.accepted_difference, signed=True)} is accepted (loss in nats against {one.n_name})"
        )
    permuted = (
        "" if one.permutation is None else f", permutation {format_p_value(one.permutation.p)}"
    )
    low, high = one.interval
    return (
        f"alpha {one.deep} - alpha {one.wide} = {one.difference:+.4f} [{low:+.4f}, {high:+.4f}] (loss in nats "
        f"against {one.n_name}, jackknife over {one.shapes} shapes {format_p_value(one.p)}{permuted})"
    )


def describe_kappa(kappa: Kappa, deep: str, wide: str) -> str:
    """Return the compute multiplier at the largest common FLOPs, with its interval if there is one."""
    return (
        f"the compute multiplier at {power_of_ten(kappa.at_flops)} FLOPs is {kappa.text}: {deep} needs "
        f"{1 / kappa.estimate:.0%} of the FLOPs of {wide}"
    )
