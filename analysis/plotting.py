"""Colours, markers and line styles of all figures."""

from __future__ import annotations

COLOURS = (BLUE, ORANGE, GREEN, PURPLE, VERMILLION)
MARKERS = ("o", "s", "^", "D", "v")
LINES = ("-", "--", ":", "-.")
NEUTRAL = "#444444"
