"""Numbers as sentences of a report hold them."""

from __future__ import annotations

from collections.abc import Mapping

MIN_P = 0.001  # the smallest that is worth telling


def format_p_value(p: float, equals: str = " ") -> str:
    """`p 0.012`, or `p < .001`."""
    return "p < .001" if p < MIN_P else f"p{equals}{p:.3f}"


def count(number: int, noun: str) -> str:
    """`1 size`, `2 sizes`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def format_range(ends: tuple[float, float], *, signed: bool = False) -> str:
    """A range."""
    sign = "+" if signed else ""
    return f"{ends[0]:{sign}.3f} to {ends[1]:{sign}.3f}"


def format_nats(value: float | None) -> str:
    """Four decimals, or a dash."""
    return "-" if value is None else f"{value:.4f}"


def format_dropped(dropped: Mapping[str, int]) -> str:
    """`2 not finished (failed), 1 duplicate`, or `none`."""
    return ", ".join(f"{number} {reason}" for reason, number in dropped.items()) or "none"


SUPERSCRIPTS = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


def power_of_ten(value: float, digits: int = 2) -> str:
    """4.3e19 as 4.3·10¹⁹, and 1e19 as 10¹⁹."""
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    raised = f"10{str(int(exponent)).translate(SUPERSCRIPTS)}"
    short = f"{float(mantissa):g}"
    return raised if short == "1" else f"{short}·{raised}"


def short_count(value: float) -> str:
    """25000 as 25k."""
    for unit, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= unit * 0.9995:
            return f"{value / unit:.3g}{suffix}"
    return f"{value:.3g}"
