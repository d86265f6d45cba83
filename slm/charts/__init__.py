"""Chart theme, encodings and rendering, for Vega-Lite charts that are built with Altair.

Charts name their colours as CSS variables, e.g. `var(--series-1)`. A page defines the variables once
(`css_variables`), so that its charts follow the light, dark and print themes; files and notebooks get literal
colours (`literal`). Rows of chart data have fixed column names (`x`, `y`, `low`, `high`, `series`, ...) because
Vega-Lite interprets dots and brackets in a field name. Altair and vl_convert are imported inside functions:
both are slow to import.
"""

from __future__ import annotations

from slm.charts.encodings import (
    Axis,
    Series,
    data,
    finite_or_none,
    literal_colour,
    literal_line,
    tooltips,
)
from slm.charts.figure import Figure, page_script, script_json
from slm.charts.loss_curves import LossCurve, loss_curves
from slm.charts.marks import (
    bands,
    forest,
    interactive,
    intervals,
    labels,
    layered,
    lines,
    panels,
    points,
    rule,
    tint,
)
from slm.charts.pareto import ParetoPoint, pareto
from slm.charts.theme import DARK, INK, LIGHT, MUTED, css_variables, literal

__all__ = [
    "DARK", "INK", "LIGHT", "MUTED", "Axis", "Figure", "LossCurve", "ParetoPoint", "Series", "bands", "css_variables", "data", "finite_or_none",
    "forest", "interactive", "intervals", "labels", "layered", "lines", "literal", "literal_colour", "literal_line",
    "loss_curves", "page_script", "panels", "pareto", "points", "rule", "script_json", "tint", "tooltips",
]  # fmt: skip
