"""Report of a coordinate check, from the file that `python -m slm coordinates out=FILE` writes."""

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
TICKS = (0.1, 0.2, 0.4, 0.8)  # of the logarithmic axis of the root mean square
SIZES = {"width": "d_model", "depth": "n_layers"}
MEASURES = {"stream": "at step 0", "update": "change after {step} steps"}


def growth(rows: pd.DataFrame, axis: str, measure: str, step: int) -> pd.Series:
    """Return the growth exponent of a measure for each parametrization.

    The exponent is the slope of ln(root mean square) against ln(size) after `step` training steps.

    Args:
        rows: the file's rows, one per parametrization (`kind`), axis, size, seed and step.
        axis: "width" or "depth".
        measure: "stream" (residual stream) or "update" (its change since step 0).
    """
    chosen = rows[(rows["axis"] == axis) & (rows["step"] == step)]
    slopes = {}
    for kind, of_kind in chosen.groupby("kind", sort=False):
        x, y = np.log(of_kind[SIZES[axis]]), np.log(of_kind[measure])
        slopes[str(kind)] = float(np.polyfit(x, y, 1)[0])
    return pd.Series(slopes, name=f"{measure} over {axis}")


def draw(rows: pd.DataFrame) -> Figure:
    """Plot the root mean square of the residual stream and of its change, against width and depth."""
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
    axes.yaxis.set_major_locator(FixedLocator(TICKS))
    axes.yaxis.set_major_formatter(FixedFormatter([str(value) for value in TICKS]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.25)
    axes.legend(fontsize=7, frameon=False, loc="lower left")


def write_coordinate_report(file: Path, out: Path) -> None:
    """Write the figure coordinates.png to `out`, and print the growth exponents of the updates.

    Raises:
        DataError: if the file is missing or is not a coordinate check.
    """
    try:
        rows = pd.DataFrame(read_json(file))
        tables = [growth(rows, axis, "update", int(rows["step"].max())) for axis in SIZES]
    except (OSError, ValueError, KeyError) as error:
        fix = "run python -m slm coordinates out=FILE"
        raise DataError(f"{file}: not a coordinate check ({error}); {fix}") from None
    out.mkdir(parents=True, exist_ok=True)
    draw(rows).savefig(out / FIGURE, dpi=150)
    print(pd.concat(tables, axis=1).round(2).to_string())
