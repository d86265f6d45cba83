"""Sentences and tables of a report on the comparison at equal decode latency and equal training time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from analysis.compare.latency import EqualTime
from analysis.compare.latency_result import (
    TimeContrast,
    format_seconds,
    geometric_mean_ratio,
    level_text,
    multiplier_text,
    ratio_rows,
)
from analysis.compare.measured_speeds import falling_note, range_text
from analysis.formatting import count, power_of_ten
from slm.formatting import short_count
from slm.summary import Rows

if TYPE_CHECKING:
    from analysis.report.study_report import StudyReport

DIFFERENCE = "loss difference, nats/token [95% CI]"
MULTIPLIER = "multiplier [95% CI]"
METHOD = (
    "Times were measured with random weights. Between the measured sizes of a family, ln(time) is linear in ln(N); nothing "
    "is extrapolated. A larger size counts where it is faster: the time at N is the least time of a size of at least N, and a "
    "table names the size that runs (`N, run as larger N`). Multiplier: FLOPs or time of {wide} divided by that of {deep} at equal loss; above 1, {deep} needs less."
)


def lines(report: StudyReport) -> list[str]:
    """Return the estimates of each setting in one sentence each, the method, and what is not measured."""
    latency, block = report.latency, report.comparison.block
    if latency is None:
        return []
    found = [*latency.reasons, *contrast_lines(report)]
    if not all(contrast.reasons for contrast in latency.contrasts):
        found.append(METHOD.format(deep=block.deep, wide=block.wide))
    effects = block.level_effects
    if effects is not None and effects.fit.law.at_bound and not effects.fit.law.is_assumed:
        found.append(
            f"The runs do not identify {effects.fit.law.at_bound} of the law common to all shapes, which gives the loss "
            "difference between two sizes."
        )
    return [*found, *_notes(latency.contrasts)]


def contrast_lines(report: StudyReport) -> list[str]:
    """Return level, multiplier and ratio of times of the first decode and the first training setting.

    Of other settings, which are in the tables, only refusals. A reason that holds for every setting is given once.
    """
    contrasts, block = _contrasts(report), report.comparison.block
    reasons = {contrast.reasons for contrast in contrasts}
    (common,) = reasons if len(reasons) == 1 else ((),)
    found: list[str] = []
    if common:
        is_same = block.refused and common == block.reasons
        why = (
            "refused for the same reason as at equal FLOPs"
            if is_same
            else f"REFUSED: {'; '.join(common)}"
        )
        found.append(f"At equal latency and training time: {why}.")
    quantities: set[str] = set()
    for contrast in contrasts:
        is_first = contrast.setting.quantity not in quantities
        quantities.add(contrast.setting.quantity)
        if not common and (is_first or contrast.level is None):
            found.append(_level_line(contrast))
        found += _time_line(contrast) if is_first else ()
    return found


def _level_line(contrast: TimeContrast) -> str:
    start = f"Loss difference at equal {contrast.setting.describe()} and equal training tokens:"
    if (level := contrast.level) is None:
        return f"{start} REFUSED: {'; '.join(contrast.reasons or contrast.level_reasons)}."
    return (
        f"{start} {contrast.deep} minus {contrast.wide} is {level_text(level)} nats/token at "
        f"{_per_token(contrast, level)}, the largest common time, where {contrast.deep} has "
        f"N = {short_count(level.n_deep)} and {contrast.wide} N = {short_count(level.n_wide)}."
    )


def _time_line(contrast: TimeContrast) -> Iterator[str]:
    setting, sentences = contrast.setting, []
    if (loss := contrast.multiplier) is not None:
        sentences.append(
            f"Time multiplier at the lowest common loss, {setting.quantity}: {multiplier_text(loss)} ({contrast.wide} with "
            f"N = {_size(loss.n_wide, loss.n_run_wide)} takes {format_seconds(loss.seconds_wide)}, {contrast.deep} with "
            f"N = {_size(loss.n_deep, loss.n_run_deep)} {format_seconds(loss.seconds_deep)})."
        )
    if contrast.sizes:
        sentences.append(f"At equal FLOPs {contrast.deep} takes {_ratio(contrast)}.")
    if sentences:
        yield " ".join(sentences)


def _per_token(contrast: TimeContrast, level: EqualTime) -> str:
    return f"{format_seconds(level.seconds)} per {contrast.setting.token}"


def _ratio(contrast: TimeContrast) -> str:
    ratios = [row["ratio"] for row in contrast.sizes]
    mean = f"{geometric_mean_ratio(contrast.sizes):.2f} times as long as {contrast.wide} per {contrast.setting.token}"
    return f"{mean} ({range_text(ratios)})"


def _size(n: float, n_run: float) -> str:
    """Return N, and the larger size that runs because it is faster."""
    return short_count(n) if n_run == n else f"{short_count(n)}, run as {short_count(n_run)}"


def _notes(contrasts: tuple[TimeContrast, ...]) -> Iterator[str]:
    for contrast in contrasts:
        where = contrast.setting.describe()
        if contrast.missing:
            shapes = count(len(contrast.missing), "shape")
            yield f"{shapes} without a measured {where}, not used there: {', '.join(contrast.missing)}."
        if contrast.single_rounds:
            shapes = count(contrast.single_rounds, "shape")
            yield f"{shapes} measured in one round, {where}: the noise of these times is unknown and counts as 0."
        if fall := falling_note(contrast.falls):
            yield f"Note: {where} {fall}."


def key_numbers(report: StudyReport) -> list[tuple[str, str]]:
    """Return the estimates at equal decode latency of the first setting as (`estimate [low, high]`, label)."""
    decoding = None if report.latency is None else report.latency.decoding
    if decoding is None:
        return []
    where = f"on {decoding.setting.device}, {decoding.setting.dtype}"
    found = []
    if (level := decoding.level) is not None:
        label = (
            f"nats/token, loss of {decoding.deep} minus {decoding.wide} at equal decode latency "
            f"({_per_token(decoding, level)}) and tokens, {where}"
        )
        found.append((level_text(level), label))
    if (loss := decoding.multiplier) is not None:
        label = f"time multiplier: decode latency of {decoding.wide} / decode latency of {decoding.deep} at equal loss, {where}"
        found.append((multiplier_text(loss), label))
    return found


def rows(report: StudyReport) -> Rows:
    """Return loss difference and multiplier at equal FLOPs, and below them those of each setting."""
    block, latency = report.comparison.block, report.latency
    if block.refused or latency is None or block.at_n is None or block.at_flops is None:
        return []
    at = f"N = {short_count(block.at_n)}, {power_of_ten(block.at_flops)} FLOPs"
    found = [_row("FLOPs", at, (block.level_text, block.kappa_text), "")]
    for contrast in latency.contrasts:
        level, loss = contrast.level, contrast.multiplier
        estimates = (
            "refused" if level is None else level_text(level),
            "refused" if loss is None else multiplier_text(loss),
        )
        at = "no common time" if level is None else _per_token(contrast, level)
        setting = contrast.setting
        found.append(_row(setting.quantity, at, estimates, setting.conditions()))
    return found


def _row(equal: str, at: str, estimates: tuple[str, str], setting: str) -> dict[str, str]:
    return {
        "equal": equal,
        "at": at,
        DIFFERENCE: estimates[0],
        MULTIPLIER: estimates[1],
        "device and setting": setting or "any",
    }


def size_rows(report: StudyReport) -> Rows:
    """Return the measured times of both families and their ratio by setting and size."""
    return [
        {"time": contrast.setting.quantity, **row, "device": contrast.setting.device}
        for contrast in _contrasts(report)
        for row in ratio_rows(contrast)
    ]


def level_rows(report: StudyReport) -> Rows:
    """Return the loss differences by setting and time per token."""
    return [
        {
            "equal": contrast.setting.quantity,
            "time per token": format_seconds(level.seconds),
            f"N, {contrast.deep}": short_count(level.n_deep),
            f"N, {contrast.wide}": short_count(level.n_wide),
            DIFFERENCE: level_text(level),
            "device": contrast.setting.device,
        }
        for contrast in _contrasts(report)
        for level in contrast.levels
    ]


def multiplier_rows(report: StudyReport) -> Rows:
    """Return the time multipliers by setting, from the lowest common loss up."""
    return [
        {
            "time": contrast.setting.quantity,
            f"N, {contrast.deep}": _size(loss.n_deep, loss.n_run_deep),
            f"N, {contrast.wide}": _size(loss.n_wide, loss.n_run_wide),
            f"time, {contrast.deep}": format_seconds(loss.seconds_deep),
            f"time, {contrast.wide}": format_seconds(loss.seconds_wide),
            "time multiplier [95% CI]": multiplier_text(loss),
            "device": contrast.setting.device,
        }
        for contrast in _contrasts(report)
        for loss in contrast.multipliers
    ]


def _contrasts(report: StudyReport) -> tuple[TimeContrast, ...]:
    return () if report.latency is None else report.latency.contrasts
