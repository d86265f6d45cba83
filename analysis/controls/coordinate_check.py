"""Report of a coordinate check, from the file that `python -m slm coordinates out=FILE` writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from slm.charts import MUTED, Axis, Figure, Series, layered, lines, literal_line, panels, points
from slm.errors import DataError
from slm.files import read_json

FIGURE = "coordinates.png"
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


def root_mean_squares(rows: pd.DataFrame) -> Figure:
    """Plot the root mean square of the residual stream and of its change, against width and depth."""
    last = int(rows["step"].max())
    ends = rows[rows["step"].isin([0, last])]
    values = [*ends["stream"], *ends["embedding"], *ends[ends["step"] == last]["update"]]
    y = Axis.around(values, "root mean square", log=True)
    charts = {
        f"residual stream {title.format(step=last)}, {axis}": _panel(
            rows, axis, measure, 0 if measure == "stream" else last, y
        )
        for measure, title in MEASURES.items()
        for axis in SIZES
    }
    return Figure(
        "coordinates",
        "Coordinate check",
        "Root mean square of the residual stream, averaged over seeds; exponent: slope in ln(size). Line without "
        "marks: before the first block.",
        panels(charts, columns=2),
    )


def _panel(rows: pd.DataFrame, axis: str, measure: str, step: int, y: Axis) -> Any:
    size = SIZES[axis]
    slopes = growth(rows, axis, measure, step)
    chosen = rows[(rows["axis"] == axis) & (rows["step"] == step)]
    ticks = sorted(chosen[size].unique())
    x = Axis.around(ticks, size, log=True, ticks=ticks)
    series = Series(
        tuple(f"{kind}, exponent {slope:+.2f}" for kind, slope in slopes.items()), interactive=False
    )
    drawn = []
    for name, kind in zip(series.names, slopes.index, strict=True):
        means = chosen[chosen["kind"] == kind].groupby(size)[[measure, "embedding"]].mean()
        drawn += [
            {
                "x": at,
                "y": row[measure],
                "series": name,
                "group": name,
                "embedding": row["embedding"],
            }
            for at, row in means.iterrows()
        ]
    tooltip = {"series": "parametrization", "x": size, "y": "root mean square"}
    embedding = [
        {**row, "y": row["embedding"]} for row in drawn if row["series"] == series.names[-1]
    ]
    before = lines(embedding, x, y, series, width=1).encode(**literal_line(MUTED))
    return layered(
        before if measure == "stream" else None,
        lines(drawn, x, y, series),
        points(drawn, x, y, series, tooltip),
        series=series,
    )


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
    root_mean_squares(rows).save(out / FIGURE)
    print(pd.concat(tables, axis=1).round(2).to_string())
