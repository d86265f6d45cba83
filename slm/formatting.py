"""Format counts and durations for people."""

from __future__ import annotations

import math
from collections.abc import Sequence

MINUTE, HOUR, DAY = 60, 3600, 86_400
# Units of a column (`in_one_unit`), from large to small.
TIME_UNITS = (("hours", 3600.0), ("minutes", 60.0), ("seconds", 1.0))
BYTE_UNITS = (("GB", 1e9), ("MB", 1e6), ("KB", 1e3))


def short_count(value: float) -> str:
    """Return a count with a metric suffix: `25k` for 25000."""
    for unit, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= unit * 0.9995:
            return f"{value / unit:.3g}{suffix}"
    return f"{value:.3g}"


def format_duration(seconds: float) -> str:
    """Return a duration in its two largest units: `8 s`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h`."""
    rounded = round(seconds)
    if rounded < MINUTE:
        return f"{rounded} s"
    if rounded < HOUR:
        return _two_units(rounded, MINUTE, "min", "s")
    # Round to the smaller unit first, so that no unit reaches the next one, as in 1 h 60 min.
    minutes = round(seconds / MINUTE)
    if minutes < DAY // MINUTE:
        return _two_units(minutes, HOUR // MINUTE, "h", "min")
    return _two_units(round(seconds / HOUR), DAY // HOUR, "d", "h")


def _two_units(value: int, size: int, unit: str, small_unit: str) -> str:
    large, small = divmod(value, size)
    return f"{large} {unit}" + (f" {small} {small_unit}" if small else "")


def round_down(share: float, digits: int) -> float:
    """Round a share down, so that it is 1 only at the end."""
    return math.floor(share * 10**digits + 1e-9) / 10**digits


def percent_done(share: float) -> str:
    return f"{100 * round_down(share, 2):.0f}%"


def count(number: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun in the right form: `1 size`, `2 sizes`."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def scientific(value: float, digits: int = 3) -> str:
    """Return a number without the plus of its exponent: `9e10`, `1.57e15`."""
    return f"{value:.{digits}g}".replace("e+0", "e").replace("e+", "e")


def markdown_cell(text: str) -> str:
    """Return text for a cell of a Markdown table: a vertical bar is escaped, and line breaks are spaces."""
    return " ".join(text.splitlines()).replace("|", "\\|")


def in_one_unit(
    values: Sequence[float | None], units: Sequence[tuple[str, float]]
) -> tuple[str, list[str]]:
    """Return the unit that fits the largest value, and all values in it; an unknown value is `?`."""
    largest = max((value for value in values if value is not None), default=0.0)
    unit, size = next((each for each in units if largest >= each[1]), units[-1])
    decimals = sum(largest / size < limit for limit in (10, 1000))
    return unit, ["?" if value is None else f"{value / size:,.{decimals}f}" for value in values]
