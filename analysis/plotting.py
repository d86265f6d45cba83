"""Colours, markers and line styles that all figures share."""

from __future__ import annotations

# Okabe-Ito palette: distinguishable with colour blindness. Markers and dashes differ too.
BLUE, ORANGE, GREEN = "#0072B2", "#E69F00", "#009E73"
PURPLE, VERMILLION, SKY = "#CC79A7", "#D55E00", "#56B4E9"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, VERMILLION)
MARKERS = ("o", "s", "^", "D", "v")
LINES = ("-", "--", ":", "-.")
NEUTRAL = "#444444"
