"""Sentences of a report: headline, findings, what they depend on, checks and limitations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from analysis.block.effects import is_significant
from analysis.compare.robustness import WithoutOne, fragile_name
from analysis.compare.verdict import Finding, describe_exponent
from analysis.formatting import (
    count,
    format_dropped,
    format_interval,
    format_number,
    format_p_value,
    power_of_ten,
    span,
)
from analysis.learning_rate.audit import MAX_PENALTY
from analysis.report import latency_text
from slm.formatting import short_count

if TYPE_CHECKING:
    from analysis.compare.block_result import BlockResult
    from analysis.compare.families import Comparison
    from analysis.report.study_report import StudyReport

AUDITED_FACTOR = 1.1  # sizes and token counts within this factor of the audit's are audited
CAVEATS = (
    "All families share one rule for the learning rate unless the study tunes it (study.lr_policy=tuned). A family with "
    "another optimal learning rate can have a higher loss only because its learning rate is not tuned.",
    "The intervals cover the variation between shapes. They do not cover another corpus, another learning "
    "rate, or sizes outside the measured range.",
    "A loss difference that shrinks or grows with FLOPs does not imply a difference of exponents.",
    "Equal FLOPs do not mean equal time: deep shapes run at fewer tokens/s. Measure the times of this study with "
    "{speed_command}; the report then compares the families at equal latency too.",
    "The exponents describe the loss in nats per token as a function of N. Exponents of perplexity, or in "
    "FLOPs, have other values.",
)

EQUAL_TIME = 3  # index of the limitation that measured speeds replace
MEASURED_TIMES = (
    "Equal FLOPs do not mean equal time. The comparison at equal latency and training time holds for the measured "
    "device and settings only."
)

HOLD_OUT_RULE = "it passes if at least half of the cells of each compared family do"


def caveats(report: StudyReport) -> list[str]:
    """Return the limitations of the study; a report without estimates needs none on intervals and exponents."""
    times = MEASURED_TIMES
    if report.latency is None:
        times = CAVEATS[EQUAL_TIME].format(speed_command=report.speed_command)
    if report.comparison.block.refused and report.comparison.exponents.refused:
        return [CAVEATS[0], times]
    return [*CAVEATS[:EQUAL_TIME], times, *CAVEATS[EQUAL_TIME + 1 :]]


def headline(report: StudyReport) -> str:
    """Return the verdict in one short sentence with both findings, marked if further cells are to come."""
    prefix = "" if report.partial is None else report.partial.prefix
    return f"{prefix}{_headline(report)}"


def _headline(report: StudyReport) -> str:
    found = report.comparison
    deep, wide, verdict = found.deep, found.wide, found.verdict
    sides = {"depth": (deep, wide), "width": (wide, deep)}
    if verdict.level in sides:
        better, other = sides[verdict.level]
        start = f"{better} beats {other} at equal compute"
        if verdict.exponent not in sides:
            return start
        if verdict.exponent == verdict.level:
            return f"{start}, and its loss falls faster with size"
        return f"{start}, but the loss of {other} falls faster with size"
    if verdict.word == "refused" and found.matched is not None:
        pairs = count(len(found.matched.pairs), "pair")
        return f"No verdict: {pairs} of {deep} and {wide}, without a confidence interval"
    if verdict.exponent in sides:
        better, other = sides[verdict.exponent]
        return f"The loss of {better} falls faster with size than that of {other}"
    inconclusive = f"No significant difference between {deep} and {wide} in these runs"
    if _differ_elsewhere(found.block):
        inconclusive = f"{deep} and {wide} differ jointly, but neither loss at the largest size nor exponent differs significantly"
    return {
        "no_difference": f"{deep} and {wide} are equivalent within the margins",
        "definition_dependent": "The sign of the exponent difference depends on how parameters are counted",
        "fragile": "The result depends on a single shape",
        "inconclusive": inconclusive,
        "audit_failed": "No verdict: the learning-rate audit failed",
        "refused": "No comparison: these runs do not allow one",
    }[verdict.word]


def key_numbers(report: StudyReport) -> list[tuple[str, str]]:
    """Return the findings as (`estimate [low, high]`, what it is and what was found), and the size of the study."""
    found, block, table = report.comparison, report.comparison.block, report.table
    numbers = []
    if block.level is not None:
        level = _finding(report, found.verdict.level, significant=block.is_level_significant)
        where = f"N = {short_count(block.at_n or 0)}, {power_of_ten(block.at_flops or 0)} FLOPs"
        label = f"nats/token, loss of {found.deep} minus {found.wide} at the largest common FLOPs ({where}): {level}"
        numbers.append((block.level_text, label))
        label = (
            f"compute multiplier there: FLOPs of {found.wide} / FLOPs of {found.deep} at equal loss"
        )
        numbers.append((block.kappa_text, label))
        exponent = _finding(
            report, found.verdict.exponent, significant=block.is_exponent_significant
        )
        label = (
            f"exponent of {found.deep} minus exponent of {found.wide}, given equal E: {exponent}"
        )
        numbers.append((block.d_alpha_interval_text, label))
    numbers += latency_text.key_numbers(report)
    families = count(len(report.families), "family", "families")
    shapes = count(table.groupby(["family", "shape"]).ngroups, "shape")
    fewest, most = report.budgets_per_size
    budgets = f"{'' if fewest == most else f'{fewest} to '}{count(most, 'token budget')} per size"
    size = f"{families}, {budgets}, {power_of_ten(float(table['flops'].sum()))} FLOPs"
    return [*numbers, (f"{count(len(table), 'run')}, {shapes}", size)]


def _finding(report: StudyReport, finding: Finding, *, significant: bool) -> str:
    found = report.comparison
    return {
        "depth": f"in favour of {found.deep}",
        "width": f"in favour of {found.wide}",
        "fragile": "the sign depends on one shape",
        "definition_dependent": "the sign depends on the definition of N",
        "open": "significant, but not decided" if significant else "no difference shown",
        "refused": "not comparable",
    }[finding]


def findings(report: StudyReport) -> list[str]:
    """Return the sentence of the verdict, the reasons that it does not have, and what an incomplete study lacks."""
    verdict = report.comparison.verdict
    others = [reason for reason in verdict.reasons if reason not in verdict.sentence]
    best = [shape_line(report)] if report.comparison.block.has_optimum else []
    lacking = () if report.partial is None else report.partial.lines
    reasons = [f"{_capitalized(reason)}." for reason in others]
    joint = _joint_test_lines(report.comparison.block)
    return [verdict.sentence, *joint, *reasons, *_pair_lines(report), *lacking, *best]


def _differ_elsewhere(block: BlockResult) -> bool:
    """Return whether the joint test rejects equality at all sizes, but neither the level nor the exponent is significant."""
    single = block.is_level_significant or block.is_exponent_significant
    return is_significant(block.p_f) and not single


def _joint_test_lines(block: BlockResult) -> Iterator[str]:
    """Yield the difference at the smallest size, if only the joint test of level and exponent is significant."""
    if _differ_elsewhere(block) and block.curve:
        first = block.curve[0]
        value = format_interval(first["level"], first["low"], first["high"], signed=True)
        yield (
            f"The joint test of both finds a difference ({format_p_value(block.p_f or 0.0)}): at N = "
            f"{short_count(first['n'])}, the smallest common size, {block.deep} minus {block.wide} is {value} nats."
        )


def _pair_lines(report: StudyReport) -> Iterator[str]:
    """Yield the mean difference of the pairs if the block model gives no estimate."""
    found = report.comparison
    if found.block.refused and found.matched is not None:
        values = found.matched.pairs["difference_at_equal_flops"]
        mean, low, high = (
            format_number(float(value), signed=True)
            for value in (values.mean(), values.min(), values.max())
        )
        sizes = count(found.matched.pairs["rung"].nunique(), "size")
        yield (
            f"Raw difference, loss of {found.deep} minus loss of {found.wide}, nats/token: mean {mean}, {low} to {high}, in "
            f"{count(len(values), 'pair')} at {sizes}, not corrected for unequal FLOPs. No verdict follows from it."
        )


def _capitalized(text: str) -> str:
    return text[:1].upper() + text[1:]


def contrast_lines(report: StudyReport) -> list[str]:
    """Return which families are compared and why, which others there are, and how to compare those."""
    found, table = report.comparison, report.table
    if found.deep == found.wide:
        return [f"{found.deep} is the only family."]
    names = [found.deep, found.wide]
    why = "as given"
    if "aspect_ratio" in table:
        shapes = table.drop_duplicates(["family", "shape"])
        aspects = np.exp(np.log(shapes["aspect_ratio"]).groupby(shapes["family"]).mean())
        names = [f"{name} (d_model / n_layers {aspects[name]:.3g})" for name in names]
        if found.block.is_labelled:
            why = "the families do not differ in d_model / n_layers, so they are compared by name"
        elif aspects[found.deep] == aspects.min() and aspects[found.wide] == aspects.max():
            why = "the families with the smallest and the largest d_model / n_layers"
    lines = [f"{names[0]} against {names[1]}: {why}."]
    if len(report.families) > 2:
        lines.append(
            f"Other families in these runs: {', '.join(report.families[2:])}. To compare others, name them: "
            "python -m analysis RUNS --out DIR --deep FAMILY --wide FAMILY, or study.contrast=[DEEP,WIDE]."
        )
    if report.other_contrasts:
        lines.append(
            "Estimates for other contrasts are descriptive: they have no verdict, and their intervals are not "
            "adjusted for the number of contrasts."
        )
    return lines


def exponent_lines(report: StudyReport) -> list[str]:
    """Return the exponent difference with the definition of N, noise and sample sizes, or why it is refused."""
    found, block = report.comparison, report.comparison.block
    if block.refused:
        return [f"No estimate: {'; '.join(block.reasons)}."]
    low, high = found.tokens_per_param
    seeds = f", of a seed of a shape {block.trunk_sigma:.4f} nats" if block.trunk_sigma else ""
    noise = f"Standard deviation of a run {block.sigma:.4f} nats, of a shape {block.tau:.4f} nats{seeds}"
    size = f"{count(block.runs, 'run')}, tokens_per_param {span((low, high))}"
    return [describe_exponent(block), f"{noise}; {size}."]


def shape_line(report: StudyReport) -> str:
    """Return the curvature in ln(d_model / n_layers) and the best aspect ratio of the largest size."""
    block = report.comparison.block
    assert block.p_curvature is not None
    start = (
        f"Curvature of the loss in ln(d_model / n_layers), relative to the size term: "
        f"{format_number(block.curvature, signed=True)} +- {format_number(block.curvature_se)} "
        f"({format_p_value(block.p_curvature)})."
    )
    best = block.optima[-1] if block.optima else {}
    if best.get("low") is None:
        place = "No interior optimum is shown at the largest size."
    else:
        place = (
            f"Best d_model / n_layers at N = {short_count(best['n'])}: {best['best_aspect']:.3g} [{best['low']:.3g}, "
            f"{best['high']:.3g}]; a ratio twice or half as large costs {best['cost_of_two']:.4f} nats/token."
        )
    return f"{start} {place}{_trend(block)}"


def _trend(block: BlockResult) -> str:
    """Return how the best aspect ratio moves with size; empty if the curvature or the exponent is not identified."""
    if block.optimum_trend is None or block.optimum_trend_ci is None:
        return ""
    trend = format_interval(block.optimum_trend, *block.optimum_trend_ci, digits=2)
    return (
        f" The best ratio changes in proportion to N^b, b = {trend}: positive if larger models should be relatively wider. "
        "This and the difference of exponents are one parameter of the model."
    )


def robustness_lines(report: StudyReport) -> Iterator[str]:
    """Yield the checks of equal E, single shapes, other tests and noise, each in one sentence."""
    found, block = report.comparison, report.comparison.block
    checks = found.robustness
    if block.refused or checks is None or block.level is None:
        return
    if block.p_free_e is not None:
        yield (
            f"Equal E is {'rejected' if block.is_equal_e_rejected else 'not rejected'}: E of {found.deep} minus E of {found.wide} is "
            f"{format_number(block.free_e, signed=True)} +- {format_number(block.free_e_se)} nats "
            f"({format_p_value(block.p_free_e)}). With E free, the standard error of the exponent difference is "
            f"{(block.d_alpha_free_e_se or 0) / (block.d_alpha_se or 1):.1f} times as large."
        )
    elif block.d_alpha is not None:
        yield "Too few shapes to estimate the exponent difference with E free in each family."
    yield _influence_line("The loss difference", "level", checks.without, block.level)
    if block.d_alpha is not None:
        yield _influence_line("The exponent difference", "d_alpha", checks.without, block.d_alpha)
    yield from _subset_lines(found)
    if checks.permutation_p is not None:
        yield (
            "The permutation test permutes whole shapes within a size; its smallest possible p is "
            f"{checks.smallest_permutation_p:.3g}."
        )
    sds = [f"{row['name']} {row['sd']:.4f}" for row in block.noise if row["by"] == "family"]
    yield f"Residual standard deviation, shapes and runs together, in nats: {', '.join(sds)}."
    ratio = report.seed_noise_ratio
    if ratio is not None:
        yield (
            f"Noise between seeds: the standard deviation of {found.deep} is "
            f"{format_interval(ratio.ratio, *ratio.interval, signed=False, digits=2)} times that of {found.wide} "
            f"({format_p_value(ratio.p)}), from {count(ratio.cells, 'pair')} of family and size with several seeds."
        )


def _subset_lines(found: Comparison) -> Iterator[str]:
    """Yield the refits in which a significant estimate is not significant, or the other way round."""
    block = found.block
    exponents = {name: one for name, one in found.by_subset.items() if one.d_alpha is not None}
    for estimate, refits, is_significant_in in (
        ("loss", found.by_subset, lambda one: one.is_level_significant),
        ("exponent", exponents, lambda one: one.is_exponent_significant),
    ):
        changed = [
            name
            for name, one in refits.items()
            if is_significant_in(one) != is_significant_in(block)
        ]
        if changed:
            yield f"Refits that change whether the {estimate} difference is significant: {', '.join(changed)}."


def _influence_line(name: str, quantity: str, without: tuple[WithoutOne, ...], value: float) -> str:
    others = [getattr(one, quantity) for one in without]
    known = [other for other in others if other is not None]
    if not known:
        return f"{name}: deleting any shape leaves too few degrees of freedom."
    fragile = fragile_name(without, quantity, value)
    sign = "keeps its sign" if fragile is None else f"changes its sign without {fragile}"
    ends = " to ".join(format_number(end, signed=True) for end in (min(known), max(known)))
    missing = len(others) - len(known)
    rest = (
        f" {count(missing, 'deletion')} of others {'leaves' if missing == 1 else 'leave'} too little."
        if missing
        else ""
    )
    return f"{name} {sign}: {ends} over {count(len(known), 'deletion')} of one shape, or of one size with two shapes.{rest}"


def joint_lines(report: StudyReport) -> list[str]:
    """Return exponents of the joint law M2 with definition of N, sample sizes and noise, and reasons of its status."""
    found, one = report.comparison, report.comparison.exponents
    if one.refused:
        return [f"Joint law: REFUSED: {'; '.join(one.reasons)}."]
    alphas = ", ".join(
        f"alpha {name} = {one.alpha_text(name)}" for name in (found.deep, found.wide)
    )
    level = ""
    if one.fit is not None and one.status != "UNIDENTIFIED":
        level = f"E shared = {one.fit.params['E']:.3f}; "
    return [
        "Joint law loss = E + A N^-alpha + B D^-beta with E, B and beta shared, A and alpha per family: "
        f"{alphas}; difference {one.difference_text} (loss in nats against {one.n_name}; {level}jackknife over "
        f"{one.shapes} shapes; status {one.status}).",
        *(f"{one.status}: {reason}" for reason in one.reasons),
    ]


def hold_out_line(report: StudyReport) -> str:
    """Return the result of predicting the largest size from the smaller ones."""
    held = report.comparison.hold_out
    if held.is_borderline:
        return f"Borderline: {'; '.join(held.reasons)} ({HOLD_OUT_RULE})."
    if held.passed is None:
        reasons = "; ".join(held.reasons) or "the comparison was refused"
        return f"The largest size cannot be predicted from the smaller ones: {reasons}."
    inside = f"{held.coverage:.0%} of its cells lie inside their 95% prediction interval"
    if held.passed:
        return f"Passed: the joint law fitted without the largest size predicts it; {inside} ({HOLD_OUT_RULE})."
    return f"FAILED: {'; '.join(held.reasons)}; {inside} ({HOLD_OUT_RULE})."


def audit_line(report: StudyReport) -> str:
    """Return the result of the learning-rate audit of both families."""
    found = report.comparison
    if found.audit is None:
        return (
            "No learning-rate audit was given (--audit FILE), so the result assumes a learning rate near the "
            "optimum of both families. python sweep.py study=lr_audit audits the recipe of study=micro; another "
            'study needs an audit with its own recipe (docs/studies.md, "Learning rates").'
        )
    if found.audit.passed(found.deep, found.wide):
        return (
            "Passed: in both families the best learning rate lies inside the grid, and the penalty of the "
            f"learning rate used is at most {MAX_PENALTY:g} nats.{_audited_range(report)}"
        )
    return f"FAILED: {'; '.join(found.audit.reasons(found.deep, found.wide))}."


def _audited_range(report: StudyReport) -> str:
    """Return the sizes and tokens of the audit, and whether the study goes beyond them."""
    found, table = report.comparison, report.table
    assert found.audit is not None
    cells = [cell for name in (found.deep, found.wide) for cell in found.audit.cells.get(name, ())]
    if not cells:
        return ""
    sizes, tokens = zip(*cells, strict=True)
    compared = table[table["family"].isin((found.deep, found.wide))]
    largest = (
        float((compared["flops"] / (6 * compared["tokens"])).max()),
        float(compared["tokens"].max()),
    )
    beyond = ""
    if largest[0] > AUDITED_FACTOR * max(sizes) or largest[1] > AUDITED_FACTOR * max(tokens):
        beyond = (
            f" The study goes to N = {short_count(largest[0])} and {short_count(largest[1])} tokens: beyond the audit, "
            "the learning rate is extrapolated."
        )
    return (
        f" Audited: N = {short_count(min(sizes))} to {short_count(max(sizes))}, {short_count(min(tokens))} to "
        f"{short_count(max(tokens))} tokens.{beyond}"
    )


def power_lines(report: StudyReport) -> list[str]:
    """Return the noise that the power calculation assumes, and why an exponent has no power."""
    if report.power is None:
        return []
    refusals = [f"Exponents: {reason}" for reason in report.power.design.refusals]
    return [
        f"Power of a study with this design. Noise: {report.power.noise}.",
        "MDE (80% power): the smallest true difference that the study finds with a probability of 80%.",
        *refusals,
    ]


def run_lines(report: StudyReport) -> list[str]:
    """Return the number of runs in the report, of those left out by reason, and notes on the data."""
    runs = count(len(report.table), "finished run")
    return [
        f"{runs}; left out: {format_dropped(report.dropped)}.",
        *(f"Note: {warning}." for warning in report.warnings),
    ]
