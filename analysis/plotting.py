"""Colours, markers and line styles of all figures."""

from __future__ import annotations

# Okabe and Ito's palette, told apart by colour-blind readers; markers differ too.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00")
MARKERS = ("o", "s", "^", "D", "v")
LINES = ("-", "--", ":", "-.")
NEUTRAL = "#444444"
