"""Format numbers for the text and tables of reports."""

from __future__ import annotations

from collections.abc import Mapping

MIN_P = 0.001  # smaller p values are printed as `< .001`


def format_p_value(p: float, equals: str = " ") -> str:
    """Return `p 0.012`, or `p < .001`; `equals` separates the letter from the number."""
    return "p < .001" if p < MIN_P else f"p{equals}{p:.3f}"


def count(number: int, noun: str) -> str:
    """Return a number with its noun in the right form: `1 size`, `2 sizes`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


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


def short_count(value: float) -> str:
    """Return a count with a metric suffix: `25k` for 25000."""
    for unit, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= unit * 0.9995:
            return f"{value / unit:.3g}{suffix}"
    return f"{value:.3g}"
