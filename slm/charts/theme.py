"""Colours, fonts and sizes of charts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

Theme = Literal["light", "dark"]
INK, MUTED, GRID, PAPER = "var(--ink)", "var(--muted)", "var(--grid)", "var(--paper)"
# Okabe-Ito colours, distinguishable with colour blindness; orange and sky blue are darkened, or lightened in the
# dark theme, so that each has a contrast of at least 3:1 with the paper. `budget`: from small to large budgets.
LIGHT = {
    "paper": "#ffffff",
    "ink": "#1f2933",
    "muted": "#52606d",
    "grid": "#d9dee4",
    "series-1": "#0072b2",
    "series-2": "#d55e00",
    "series-3": "#009e73",
    "series-4": "#c2649a",
    "series-5": "#a87400",
    "series-6": "#2e8fc7",
    "budget-1": "#8393a4",
    "budget-2": "#728292",
    "budget-3": "#627181",
    "budget-4": "#526070",
    "budget-5": "#414f5f",
    "budget-6": "#313e4e",
    "budget-7": "#202d3c",
    "budget-8": "#101c2b",
}
DARK = {
    "paper": "#12171d",
    "ink": "#e6ebf0",
    "muted": "#9aa7b4",
    "grid": "#2d3741",
    "series-1": "#4fa8e0",
    "series-2": "#f2884b",
    "series-3": "#2cc29a",
    "series-4": "#e6a5c8",
    "series-5": "#e8b84a",
    "series-6": "#a9dbfa",
    "budget-1": "#607387",
    "budget-2": "#728395",
    "budget-3": "#8493a4",
    "budget-4": "#95a3b2",
    "budget-5": "#a7b4c0",
    "budget-6": "#b9c4cf",
    "budget-7": "#dce4ec",
    "budget-8": "#eef4fa",
}
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"


def css_variables() -> str:
    """Return the CSS that defines the colours of charts for the light, dark and print themes."""

    def block(colours: Mapping[str, str]) -> str:
        return ":root{" + "".join(f"--{name}:{value};" for name, value in colours.items()) + "}"

    light, dark = block(LIGHT), block(DARK)
    return f"{light}\n@media (prefers-color-scheme:dark){{{dark}}}\n@media print{{{light}}}\n"


def literal(spec: Any, theme: Theme = "light") -> Any:
    """Return a copy of a chart specification with literal colours instead of CSS variables."""
    colours = LIGHT if theme == "light" else DARK
    if isinstance(spec, Mapping):
        return {key: literal(value, theme) for key, value in spec.items()}
    if isinstance(spec, list | tuple):
        return [literal(value, theme) for value in spec]
    if isinstance(spec, str) and spec.startswith("var(--") and spec.endswith(")"):
        return colours.get(spec[6:-1], spec)
    return spec


def theme_config() -> dict[str, Any]:
    """Return the Vega-Lite config of all charts: fonts, sizes, and colours of axes and legends."""
    text = {"labelColor": INK, "titleColor": INK, "labelFontSize": 12, "titleFontSize": 13}
    title = {"anchor": "start", "color": INK, "fontSize": 15, "subtitleColor": MUTED, "offset": 12}
    return {
        "background": "transparent",
        "font": FONT,
        "view": {"stroke": None},
        "axis": {
            **text,
            "gridColor": GRID,
            "tickColor": GRID,
            "domainColor": MUTED,
            "titleFontWeight": "normal",
            "titlePadding": 8,
            "labelLimit": 260,
            "titleLimit": 420,
        },
        "legend": {
            **text,
            "orient": "top",
            "titleOrient": "left",
            "titlePadding": 10,
            "titleFontWeight": "normal",
            "title": None,
            "symbolSize": 90,
            "symbolStrokeWidth": 1.5,
            "symbolOpacity": 1,
            "symbolBaseFillColor": INK,
            "symbolBaseStrokeColor": INK,
            "offset": 8,
            "labelLimit": 240,
        },
        "title": {**title, "subtitleFontSize": 12, "subtitlePadding": 6},
        "header": {"labelColor": INK, "labelFontSize": 13, "labelFontWeight": "bold"},
    }
