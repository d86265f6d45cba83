"""Charts of the page on inverse depth scaling."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from analysis.charts.rows import forest_row
from analysis.examples.published.width_depth_inference import ExponentEstimate
from analysis.examples.published.width_depth_law import Runs
from slm.charts import (
    MUTED,
    Axis,
    Figure,
    Series,
    forest,
    labels,
    layered,
    lines,
    literal_line,
    points,
    rule,
)

PROFILE_SHOWN, MAX_T = (
    (0.05, 2.55),
    8.0,
)  # b and |t| of the profile, whose steps are too coarse below b 0.1


class ExponentRow(NamedTuple):
    """An exponent with its interval, as a row of a chart, below the kind of interval (`group`); `colour`: CSS variable."""

    group: str
    label: str
    value: float
    ends: tuple[float, float]
    colour: str


def shapes_figure(runs: Runs) -> Figure:
    """Plot depth against width, one point per shape, with the line of a regression of ln depth on ln width."""
    log_width, log_depth = np.log(runs.shapes).T
    slope, intercept = np.polyfit(log_width, log_depth, 1)
    x = Axis.around(runs.shapes[:, 0], "width d_model", log=True)
    y = Axis.around(runs.shapes[:, 1], "depth n_layers", log=True)
    series = Series(("shape",))
    ends = [float(log_width.min()), float(log_width.max())]
    line = [
        {"x": math.exp(w), "y": math.exp(intercept + slope * w), "series": "shape", "group": ""}
        for w in ends
    ]
    marks = [{"x": w, "y": d, "series": "shape"} for w, d in runs.shapes.tolist()]
    chart = layered(lines(line, x, y, series), points(marks, x, y, series))
    return Figure("shapes", "Width and depth of Chinchilla's runs grow together", "", chart)


def profile_figure(estimates: Mapping[str, ExponentEstimate], cut: float) -> Figure:
    """Plot the profile of the depth exponent, one line per choice of rows; values below the line `cut` are accepted."""
    x = Axis("depth exponent b", 0, 3.0)
    y = Axis("|t| against the best b (profile)", 0, MAX_T)
    layers = []
    for index, (name, one) in enumerate(estimates.items(), start=1):
        rows = [
            {"x": b, "y": math.sqrt(excess), "series": name, "group": name}
            for b, excess in zip(*one.profile, strict=True)
            if PROFILE_SHOWN[0] < b < PROFILE_SHOWN[1]
        ]
        end, colour = {**rows[-1], "x": PROFILE_SHOWN[1], "text": name}, f"var(--series-{index})"
        layers += [
            lines(rows, x, y, Series((name,)), width=2).encode(**literal_line(colour)),
            labels([end], x.x(), y.y(), colour),
        ]
    limit = {"x": PROFILE_SHOWN[1], "y": cut - 0.3, "text": "95% limit"}
    chart = layered(
        rule(x=1, dash=(2, 3), colour=MUTED),
        rule(y=cut, colour=MUTED),
        *layers,
        labels([limit], x.x(), y.y()),
    )
    return Figure("profile", "Profile of the depth exponent, for three choices of rows", "", chart)


def exponents_figure(rows: Sequence[ExponentRow]) -> Figure:
    """Plot depth exponents with their intervals, and a dotted line at 1."""
    marks = [
        {**forest_row(row.label, row.value, row.ends, row.colour), "group": row.group}
        for row in rows
    ]
    ends = [end for row in rows for end in row.ends]
    chart = forest(marks, Axis.around(ends, "depth exponent b"), {1.0: (2, 3)})
    groups = len({row.group for row in rows})
    title = "Depth exponent: published, fitted, and in data without a depth term"
    return Figure("depth_exponent", title, "", chart, 30 + 26 * (len(rows) + groups))
