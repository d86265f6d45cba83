"""Charts of single shapes: loss against aspect ratio, and residuals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis.block.model import left_side
from analysis.charts.rows import (
    PER_TOKEN,
    families_of,
    records,
    run_row,
)
from slm.charts import (
    INK,
    Axis,
    Figure,
    Series,
    data,
    layered,
    lines,
    literal_colour,
    literal_line,
    points,
    rule,
    tooltips,
)
from slm.formatting import short_count

if TYPE_CHECKING:
    from analysis.report.study_report import StudyReport


def shape_curve(report: StudyReport) -> Figure | None:
    """Plot loss against aspect ratio at equal FLOPs, one line per size, with the best aspect ratio of each size."""
    block = report.comparison.block
    if not block.is_curved or not block.is_matched or block.effects is None:
        return None
    fit = block.effects.fit
    blocks = fit.blocks
    losses = pd.DataFrame(
        {
            "y": left_side(blocks, fit.law, fit.columns),
            "block": blocks.block,
            "rung": blocks.rung,
            "shape": blocks.shape,
            "x": np.exp(blocks.u + blocks.mean_log_aspect),
        }
    )
    losses["y"] -= losses.groupby("block")["y"].transform("mean")
    means = losses.groupby(["rung", "shape"], as_index=False)[["x", "y"]].mean().sort_values("x")
    names = [short_count(n) for n in np.exp(blocks.log_n_rung)]
    sizes = Series(tuple(dict.fromkeys(names)), is_ordered=True, title="N")
    rows: list[dict[str, Any]] = [
        {
            "x": row["x"],
            "y": row["y"],
            "series": names[int(row["rung"])],
            "group": names[int(row["rung"])],
            "tip": {
                "shape": blocks.shape_names[int(row["shape"])],
                "d_model / n_layers": f"{row['x']:.3g}",
                f"loss minus mean of the size ({PER_TOKEN})": f"{row['y']:+.4f}",
                "N": names[int(row["rung"])],
            },
        }
        for row in records(means)
    ]
    x = Axis.around([row["x"] for row in rows], "aspect ratio d_model / n_layers", log=True)
    y = Axis.around([row["y"] for row in rows], f"loss minus its mean over shapes ({PER_TOKEN})")
    optima = [row for row in block.optima if row["low"] is not None]
    y = y.extended(0.045 * len(optima), 0)
    solid = {"strokeDash": literal_line(INK)["strokeDash"]}
    chart = layered(
        rule(y=0),
        _best_aspects(optima, sizes, x, y) if optima else None,
        lines(rows, x, y, sizes, width=1).encode(**solid),
        points(rows, x, y, sizes),
        series=sizes,
    )
    best = " Bars at the bottom: best aspect ratio and its 95% interval (Fieller)."
    return Figure(
        "shape_curve",
        "Loss against aspect ratio at equal FLOPs",
        "One line per size, mean over token budgets and seeds, corrected to equal FLOPs."
        + (best if optima else " No size has a significant interior optimum."),
        chart,
        360,
    )


def _best_aspects(optima: list[dict[str, Any]], sizes: Series, x: Axis, y: Axis) -> Any:
    """Return the best aspect ratio of each size with its interval, one row per size below the losses."""
    import altair

    rows = [
        {
            "x": row["best_aspect"],
            "low": row["low"],
            "high": row["high"],
            "y": y.share(0.03 + 0.04 * index * 24 / max(24, len(optima))),
            "colour": sizes.colour(short_count(row["n"])),
            "tip": {
                "N": short_count(row["n"]),
                "best d_model / n_layers": f"{row['best_aspect']:.3g} [{row['low']:.3g}, {row['high']:.3g}]",
            },
        }
        for index, row in enumerate(optima)
    ]
    base = altair.Chart(data(rows)).encode(y=y.y(), color=literal_colour(), tooltip=tooltips(rows))
    bars = base.mark_rule(strokeWidth=2.2).encode(x=x.x("low"), x2="high")
    marks = base.mark_point(filled=True, shape="diamond", size=60, opacity=1).encode(x=x.x())
    return altair.layer(bars, marks)


def residuals(report: StudyReport) -> Figure | None:
    """Plot the residuals of the block model: every run, and the mean of each shape."""
    table = report.table.dropna(subset=["residual"])
    if table.empty:
        return None
    families = families_of(report)
    runs = [{**run_row(row), "x": row["n"], "y": row["residual"]} for row in records(table)]
    means = table.groupby(["family", "shape"], sort=False).agg(
        n=("n", "mean"), residual=("residual", "mean"), runs=("residual", "size")
    )
    shapes = [
        {
            "x": row["n"],
            "y": row["residual"],
            "series": row["family"],
            "group": row["family"],
            "tip": {
                "family": row["family"],
                "shape": row["shape"],
                f"mean residual ({PER_TOKEN})": f"{row['residual']:+.4f}",
                "runs": str(row["runs"]),
            },
        }
        for row in records(means.reset_index())
    ]
    x = Axis.around(table["n"], "N", log=True, kind="count")
    y = Axis.around([0.0, *(row["y"] for row in runs)], f"residual ({PER_TOKEN})")
    return Figure(
        "residuals",
        "Noise: residuals by family and size",
        "Small marks: runs. Large marks: mean of a shape, positive if its loss is above the block model. A family or size "
        "with more scatter is noisier; a single shape far from 0 may have an unsuitable learning rate.",
        layered(
            rule(y=0),
            points(runs, x, y, families, size=14, opacity=0.4),
            lines(shapes, x, y, families, width=1),
            points(shapes, x, y, families, size=70),
            series=families,
        ),
        300,
    )
