"""Format counts and durations for people."""

from __future__ import annotations

MINUTE, HOUR, DAY = 60, 3600, 86_400


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
