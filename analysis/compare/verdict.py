"""From estimates to one word, two findings, and the sentence that justifies them.

The rules are fixed before the data are seen. LEVEL: is the loss different at equal FLOPs at the largest common
size? EXPONENT: does the loss of one family fall faster with size? Conditions are what the answer depends on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from analysis.block.effects import EQUIVALENT, is_significant
from analysis.block.model import LARGE_Q, MAX_Q
from analysis.compare.block_result import BlockResult
from analysis.compare.holdout import HoldOut
from analysis.compare.robustness import WithoutOne, fragile_name
from analysis.formatting import format_number, format_p_value, power_of_ten
from analysis.learning_rate.audit import Audit
from slm.formatting import short_count
from slm.rounding import exceeds, opposite_signs
from slm.summary import Summarized

Finding = Literal["depth", "width", "fragile", "definition_dependent", "open", "refused"]
Word = Literal[
    "refused",
    "audit_failed",
    "depth_level_better",
    "width_level_better",
    "depth_exponent_better",
    "width_exponent_better",
    "definition_dependent",
    "fragile",
    "no_difference",
    "inconclusive",
]
EQUIVALENT_COST = 1.05  # compute multipliers closer to 1 than this are no difference
CHECKED = ("n_flop", "params_non_embedding")  # definitions under which the sign must agree


@dataclass(frozen=True, repr=False)
class Verdict(Summarized):
    """`word`, the findings on level and exponent, what they depend on, and the sentence that justifies them."""

    word: Word
    level: Finding
    exponent: Finding
    sentence: str
    conditions: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()

    def title(self) -> str:
        return f"{self.word}: {self.sentence}"

    def details(self) -> Iterator[tuple[str, str]]:
        yield "loss at equal FLOPs", self.level
        yield "exponent", self.exponent
        for condition in self.conditions:
            yield "condition", condition
        for reason in self.reasons:
            yield "reason", reason


@dataclass(frozen=True)
class Evidence:
    """All that the rules look at.

    `others`: the block model under further definitions of N. `audit_gaps`: what the audit does not cover.
    """

    block: BlockResult
    others: Sequence[BlockResult] = ()
    without: tuple[WithoutOne, ...] = ()
    hold_out: HoldOut | None = None
    audit: Audit | None = None
    audit_gaps: Sequence[str] = ()
    equivalent_cost: float = EQUIVALENT_COST


def decide(evidence: Evidence) -> Verdict:
    """Return the verdict."""
    block = evidence.block
    if block.refused:
        return Verdict(
            "refused",
            "refused",
            "refused",
            f"Refused: {block.reasons[0]}.",
            reasons=block.reasons[1:],
        )
    conditions = tuple(_conditions(evidence))
    audit = evidence.audit
    if audit is not None and not audit.passed(block.deep, block.wide):
        failures = audit.reasons(block.deep, block.wide)
        sentence = (
            f"The learning-rate audit failed ({failures[0]}), so a difference between {block.deep} and "
            f"{block.wide} may be one of tuning, not of architecture."
        )
        return Verdict("audit_failed", "open", "open", sentence, conditions, tuple(failures[1:]))
    level = _level(evidence)
    exponent, reasons = _exponent(evidence)
    conditions += tuple(_unchecked_signs(level, exponent, evidence))
    word = _word(level, exponent, evidence)
    sentence = f"{describe_level(block)} {describe_exponent(block)}"
    if level == "fragile":
        name = fragile_name(evidence.without, "level", block.level or 0.0)
        reasons = (f"the loss difference changes sign without {name}", *reasons)
        sentence += f" The loss difference changes sign without {name}, so it is not a finding."
    if {level, exponent} == {"depth", "width"}:
        sentence += " The two findings point to opposite sides: the curves cross within or beyond the measured sizes."
    if word == "no_difference":
        sentence = (
            f"{block.deep} and {block.wide} are equivalent: exponents within {EQUIVALENT:g} and FLOPs at equal loss "
            f"within a factor of {evidence.equivalent_cost:g}. {sentence}"
        )
    if word == "inconclusive":
        sentence += f" Neither a difference nor equivalence is shown. {_detectable(block)}"
    return Verdict(word, level, exponent, sentence, conditions, reasons)


def _unchecked_signs(level: Finding, exponent: Finding, evidence: Evidence) -> Iterator[str]:
    """Yield the checks of the sign of a finding that the runs do not allow."""
    sided = {"depth", "width"}
    if exponent in sided and not _is_checked_without_embeddings(evidence):
        yield "the sign of the exponent difference is not checked with N as params_non_embedding"
    if level in sided and not evidence.without:
        yield "the sign of the loss difference is not checked without single shapes: too few would be left"
    if exponent in sided and all(one.d_alpha is None for one in evidence.without):
        yield "the sign of the exponent difference is not checked without single shapes: too few would be left"


def _is_checked_without_embeddings(evidence: Evidence) -> bool:
    name = "params_non_embedding"
    if evidence.block.n_name == name:
        return True
    return any(one.n_name == name and one.d_alpha is not None for one in evidence.others)


def _level(evidence: Evidence) -> Finding:
    block = evidence.block
    assert block.level is not None
    if not block.is_level_significant:
        return "open"
    if fragile_name(evidence.without, "level", block.level) is not None:
        return "fragile"
    return "depth" if block.level < 0 else "width"


def _exponent(evidence: Evidence) -> tuple[Finding, tuple[str, ...]]:
    block = evidence.block
    if block.d_alpha is None:
        return "refused", block.exponent_reasons
    if block.is_equal_e_rejected:
        reason = (
            f"equal E is rejected (E_deep - E_wide = {format_number(block.free_e, signed=True)} nats, "
            f"{format_p_value(block.p_free_e or 0.0)}), so exponents given equal E are not compared"
        )
        return "open", (reason,)
    if not block.is_exponent_significant:
        return "open", ()
    for other in evidence.others:
        if other.n_name in CHECKED and opposite_signs(other.d_alpha or 0.0, block.d_alpha):
            value = format_number(other.d_alpha, signed=True)
            return "definition_dependent", (f"with N as {other.n_name} it is {value}",)
    name = fragile_name(evidence.without, "d_alpha", block.d_alpha)
    if name is not None:
        return "fragile", (f"the exponent difference changes sign without {name}",)
    return ("depth" if block.d_alpha > 0 else "width"), ()


def _word(level: Finding, exponent: Finding, evidence: Evidence) -> Word:
    sided: dict[tuple[str, Finding], Word] = {
        ("level", "depth"): "depth_level_better",
        ("level", "width"): "width_level_better",
        ("exponent", "depth"): "depth_exponent_better",
        ("exponent", "width"): "width_exponent_better",
    }
    for name, finding in (("level", level), ("exponent", exponent)):
        if (name, finding) in sided:
            return sided[name, finding]
    if exponent == "definition_dependent":
        return "definition_dependent"
    if "fragile" in (level, exponent):
        return "fragile"
    return (
        "no_difference"
        if is_equivalent(evidence.block, evidence.equivalent_cost)
        else "inconclusive"
    )


def is_equivalent(block: BlockResult, cost: float = EQUIVALENT_COST) -> bool:
    """Return whether two one-sided tests show |d_alpha| < 0.02 and |ln kappa| < ln(cost), both at 5%."""
    if not is_significant(block.p_equal_exponents) or block.ln_kappa_ci90 is None:
        return False
    farthest = max(map(abs, block.ln_kappa_ci90))
    return not block.is_equal_e_rejected and bool(exceeds(math.log(cost), farthest))


def _conditions(evidence: Evidence) -> Iterator[str]:
    block, hold_out = evidence.block, evidence.hold_out
    if block.d_alpha is not None and not block.is_equal_e_rejected:
        yield "the exponents are compared given equal E in both families"
    if evidence.audit is None:
        yield "no learning-rate audit was given: the answer holds if the learning rates suit both families"
    for gap in evidence.audit_gaps:
        yield f"the learning-rate audit is incomplete ({gap})"
    if hold_out is not None and hold_out.passed is False:
        yield f"the smaller sizes do not predict the largest ({'; '.join(hold_out.reasons)})"
    if hold_out is not None and hold_out.is_borderline:
        yield f"the prediction of the largest size is borderline ({'; '.join(hold_out.reasons)})"
    elif hold_out is not None and hold_out.passed is None:
        yield f"the extrapolation is not checked ({'; '.join(hold_out.reasons)})"
    if not block.is_matched:
        yield "unmatched: the runs share no blocks of equal tokens and FLOPs, so a fitted law replaces them"
    if not (block.is_curved or block.is_labelled):
        yield "two aspect ratios per rung: a curved loss with drifting aspect ratios looks like an exponent difference"
    if block.largest_q is not None and block.largest_q > LARGE_Q:
        refit = "so the model is refitted to second order"
        if block.largest_q > MAX_Q:
            refit = "too large for the model, which holds for small differences"
        yield f"differences of up to {block.largest_q:.0%} of the size term, {refit}"
    yield from _doubts_of_law(block)


def _doubts_of_law(block: BlockResult) -> Iterator[str]:
    """Yield why the law common to all shapes, and with it the compute multiplier, is in doubt."""
    at_bound = "" if block.effects is None else block.effects.fit.law.at_bound
    if at_bound and block.kappa is not None:
        yield f"the compute multiplier is that of a law with {at_bound} at a bound of the search"
    if block.is_law_assumed:
        yield "the exponent of the size term is not identified: 0.34 is assumed for the compute multiplier"


def describe_level(block: BlockResult) -> str:
    """Return the sentence on the loss at equal FLOPs."""
    assert block.level is not None and block.at_flops is not None and block.p_level is not None
    multiplier = f"a compute multiplier of {block.kappa_text}"
    if block.kappa is None:
        multiplier = "a compute multiplier that is not identified: the runs do not show how the loss falls with compute"
    better = "lower" if block.level < 0 else "higher"
    shown = (
        f"{block.deep} has the {better} loss"
        if block.is_level_significant
        else "no loss difference is shown"
    )
    return (
        f"At equal FLOPs and tokens {shown}: {block.deep} minus {block.wide} is {block.level_text} nats at "
        f"N = {short_count(block.at_n or 0.0)} and {power_of_ten(block.at_flops)} FLOPs "
        f"({'t' if block.p_f is None else 'closed'} test: {format_p_value(block.p_level)}), {multiplier}."
    )


def describe_exponent(block: BlockResult) -> str:
    """Return the sentence on the exponents."""
    if block.d_alpha is None:
        reasons = "; ".join(block.exponent_reasons)
        return f"The exponents cannot be compared: {reasons}."
    faster = block.deep if block.d_alpha > 0 else block.wide
    shown = "No difference of exponents is shown"
    if block.is_exponent_significant:
        shown = f"The loss of {faster} falls faster with size"
    if block.is_equal_e_rejected:
        shown = "The exponents are not compared, because equal E is rejected; given equal E"
    return (
        f"{shown}: alpha {block.deep} - alpha {block.wide} = {block.d_alpha_text} (loss in nats against "
        f"{block.n_name}, {block.shapes} shapes, {block.df} degrees of freedom, given equal E)."
    )


def _detectable(block: BlockResult) -> str:
    level = f"a loss difference of {format_number(block.level_mde80)} nats"
    exponent = "" if block.mde80 is None else f" or an exponent difference of {block.mde80:.3f}"
    return f"A t test of this study finds {level}{exponent} with a probability of 80%."
