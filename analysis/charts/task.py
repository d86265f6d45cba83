"""Chart of a task's bits per byte against the loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from analysis.charts.rows import LOSS, records
from slm.charts import MUTED, Axis, Figure, Series, layered, lines, literal_line, points

if TYPE_CHECKING:
    from analysis.fit.task_line import TaskLine


def task_against_loss(fit: TaskLine) -> Figure:
    """Plot the bits per byte of a task against the loss of every run, with the common line."""
    families = Series(tuple(dict.fromkeys(fit.table["family"])))
    unit = f"{fit.task} (bits/byte of the gold answer)"
    ends = np.array([fit.table["loss"].min(), fit.table["loss"].max()])
    line = [
        {"x": x, "y": y, "series": "", "group": ""}
        for x, y in zip(ends.tolist(), fit.predict(ends).tolist(), strict=True)
    ]
    runs = [
        {
            "x": row["loss"],
            "y": row["y"],
            "series": row["family"],
            "tip": {
                "run id": str(row["run_id"]),
                "family": row["family"],
                LOSS: f"{row['loss']:.4f}",
                unit: f"{row['y']:.4f}",
                "residual": f"{row['residual']:+.4f}",
            },
        }
        for row in records(fit.table)
    ]
    x = Axis.around(fit.table["loss"], f"validation {LOSS}")
    y = Axis.around([*fit.table["y"], *(row["y"] for row in line)], unit)
    chart = layered(
        lines(line, x, y, families, width=1).encode(**literal_line(MUTED)),
        points(runs, x, y, families, size=34),
        series=families,
    )
    return Figure(
        "task_against_loss",
        f"{fit.task} against loss",
        f"One mark per run. Line: {fit.title()}.",
        chart,
    )
