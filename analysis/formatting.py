"""Format numbers for the text and tables of reports."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from slm.formatting import count, short_count  # noqa: F401 (count: for the other modules)

MIN_P = 0.001  # smaller p values are printed as `< .001`


def format_p_value(p: float, equals: str = " ") -> str:
    """Return `p 0.012`, or `p < .001`; `equals` separates the letter from the number."""
    return "p < .001" if p < MIN_P else f"p{equals}{p:.3f}"


def p_text(p: float | None) -> str:
    """Format a p value for a table cell; a dash if it is undefined."""
    if p is None or not math.isfinite(p):
        return "-"
    return "< .001" if p < MIN_P else f"{p:.4f}"


def format_number(value: float | None, *, signed: bool = False, digits: int = 4) -> str:
    """Format a number for a table cell; a dash if it is undefined."""
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"


def format_interval(
    value: float | None,
    low: float | None,
    high: float | None,
    *,
    signed: bool = True,
    digits: int = 4,
) -> str:
    """Format an estimate as `estimate [low, high]`, or without the interval if that is undefined."""
    estimate, lower, upper = (
        format_number(one, signed=signed, digits=digits) for one in (value, low, high)
    )
    return estimate if "-" in (lower, upper) else f"{estimate} [{lower}, {upper}]"


def span(values: Iterable[float]) -> str:
    """Return the range of counts with metric suffixes: `10M to 316M`, or `10M` for one value."""
    known = list(values)
    ends = list(dict.fromkeys((short_count(min(known)), short_count(max(known)))))
    return " to ".join(ends)


def format_range(ends: tuple[float, float], *, signed: bool = False) -> str:
    """Return a range with three decimals: `0.012 to 0.034`."""
    sign = "+" if signed else ""
    return f"{ends[0]:{sign}.3f} to {ends[1]:{sign}.3f}"


def format_nats(value: float | None) -> str:
    """Return a number of nats with four decimals, or `-` for None."""
    return "-" if value is None else f"{value:.4f}"


def format_dropped(dropped: Mapping[str, int]) -> str:
    """Return counts of dropped runs by reason: `2 not finished (failed), 1 duplicate`, or `none`."""
    return ", ".join(f"{number} {reason}" for reason, number in dropped.items()) or "none"


SUPERSCRIPTS = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


def power_of_ten(value: float, digits: int = 2) -> str:
    """Return a number in powers of ten: `4.3·10¹⁹` for 4.3e19, `10¹⁹` for 1e19."""
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    power = f"10{str(int(exponent)).translate(SUPERSCRIPTS)}"
    short = f"{float(mantissa):g}"
    return power if short == "1" else f"{short}·{power}"
