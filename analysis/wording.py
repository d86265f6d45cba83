"""Numbers as sentences of a report hold them."""

from __future__ import annotations

LEAST_P = 0.001  # the smallest that is worth telling


def p_value(p: float, equals: str = " ") -> str:
    """`p 0.012`, or `p < .001`."""
    return "p < .001" if p < LEAST_P else f"p{equals}{p:.3f}"


def count(number: int, noun: str) -> str:
    """`1 size`, `2 sizes`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def span(ends: tuple[float, float], *, signed: bool = False) -> str:
    """A range."""
    sign = "+" if signed else ""
    return f"{ends[0]:{sign}.3f} to {ends[1]:{sign}.3f}"
