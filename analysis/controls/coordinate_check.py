"""The figure of a coordinate check: what `python -m slm coordinates out=FILE` wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from analysis.plotting import COLOURS, MARKERS, NEUTRAL
from slm.errors import DataError
from slm.files import read_json

FIGURE = "coordinates.png"
SHOWN = (0.1, 0.2, 0.4, 0.8)  # labels of the logarithmic axis
SIZES = {"width": "d_model", "depth": "n_layers"}
MEASURES = {"stream": "at the start", "update": "change after {step} steps"}


def growth(rows: pd.DataFrame, axis: str, measure: str, step: int) -> pd.Series:
    """Per parametrization, the exponent with which a root mean square grows along the axis."""
    chosen = rows[(rows["axis"] == axis) & (rows["step"] == step)]
    slopes = {}
    for kind, of_kind in chosen.groupby("kind", sort=False):
        x, y = np.log(of_kind[SIZES[axis]]), np.log(of_kind[measure])
        slopes[str(kind)] = float(np.polyfit(x, y, 1)[0])
    return pd.Series(slopes, name=f"{measure} over {axis}")


def draw(rows: pd.DataFrame) -> Figure:
    """Size of the residual stream and of its update, over width and over depth."""
    figure = Figure(figsize=(8.4, 6.4), layout="constrained")
    grid = figure.subplots(2, 2, sharey="row")
    last = int(rows["step"].max())
    for column, axis in enumerate(SIZES):
        for line, (measure, title) in enumerate(MEASURES.items()):
            step = 0 if measure == "stream" else last
            _panel(grid[line][column], rows, axis, measure, step)
            grid[line][column].set_title(
                f"residual stream {title.format(step=step)}", loc="left", fontsize=10
            )
    for axes in grid[:, 0]:
        axes.set_ylabel("root mean square")
    return figure


def _panel(axes: Axes, rows: pd.DataFrame, axis: str, measure: str, step: int) -> None:
    size = SIZES[axis]
    slopes = growth(rows, axis, measure, step)
    for index, kind in enumerate(slopes.index):
        chosen = rows[(rows["axis"] == axis) & (rows["step"] == step) & (rows["kind"] == kind)]
        means = chosen.groupby(size)[measure].mean()
        style: dict[str, Any] = {
            "color": COLOURS[index],
            "marker": MARKERS[index],
            "ls": ["-", "--", ":"][index],
        }
        axes.plot(means.index, means, label=f"{kind}, exponent {slopes[kind]:+.2f}", **style)
    if measure == "stream":
        floor = chosen.groupby(size)["embedding"].mean()
        axes.plot(floor.index, floor, color=NEUTRAL, lw=0.8, label="before the first block")
    ticks = sorted(rows[rows["axis"] == axis][size].unique())
    axes.set(xscale="log", yscale="log", xlabel=size)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FixedFormatter([str(tick) for tick in ticks]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(0.06, 1.2)
    axes.yaxis.set_major_locator(FixedLocator(SHOWN))
    axes.yaxis.set_major_formatter(FixedFormatter([str(value) for value in SHOWN]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.25)
    axes.legend(fontsize=7, frameon=False, loc="lower left")


def write_coordinate_report(file: Path, out: Path) -> None:
    """Draw the figure, and print how updates grow.

    Raises:
        DataError: if the file is not a coordinate check.
    """
    try:
        rows = pd.DataFrame(read_json(file))
        tables = [growth(rows, axis, "update", int(rows["step"].max())) for axis in SIZES]
    except (OSError, ValueError, KeyError) as error:
        made = "python -m slm coordinates out=FILE makes one"
        raise DataError(f"{file}: not a coordinate check ({error}); {made}") from None
    out.mkdir(parents=True, exist_ok=True)
    draw(rows).savefig(out / FIGURE, dpi=150)
    print(pd.concat(tables, axis=1).round(2).to_string())
