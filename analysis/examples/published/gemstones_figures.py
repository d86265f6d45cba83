"""Figures of the page on Gemstones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.compare.families import Comparison
from analysis.examples.published.gemstones_estimates import JointExponents, columns_of
from analysis.examples.published.shape_laws import PowerTerms, aspect_costs
from slm.charts import (
    INK,
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

LABELS = {
    "n_flop": "N = FLOPs per token / 6",
    "params_non_embedding": "N without vocabulary matrices",
    "params_total": "N = all parameters",
}
FAMILIES = Series(("deep", "mid", "wide"))
Range = tuple[float, float]


def exponent_differences(
    joint: Sequence[JointExponents], by_name: Comparison, by_aspect: Comparison
) -> Figure:
    """Plot the exponent difference by definition of N and by what counts as a replicate."""
    rows = []
    for one in joint:
        name, aspect = by_name.by_definition[one.n_name], by_aspect.by_definition[one.n_name]
        estimates = (
            ("joint law, rows as replicates", one.difference, one.by_row, "var(--series-2)"),
            ("joint law, shapes as replicates", one.difference, one.by_shape, "var(--series-1)"),
            ("block model, by name", name.d_alpha, name.d_alpha_ci, "var(--series-1)"),
            ("block model, by aspect ratio", aspect.d_alpha, aspect.d_alpha_ci, "var(--series-1)"),
        )
        rows += [_bar(LABELS[one.n_name], *estimate) for estimate in estimates]
    axis = Axis.around(
        [row[end] for row in rows for end in ("low", "high")], "alpha deep - alpha wide"
    )
    return Figure(
        "exponent_differences",
        "In this figure, only intervals over rows exclude 0, on opposite sides",
        "Exponent of the deep minus that of the wide family, 95% intervals.",
        forest(rows, axis, {0.0: (1, 0)}),
        30 + 24 * (len(rows) + len(joint)),
    )


def aspect_ratios(points_at: pd.DataFrame) -> Figure:
    """Plot the loss of each shape minus the size term of the aspect law."""
    n, aspect, loss = columns_of(points_at, "n_flop", "aspect_ratio", "loss_nats_per_token")
    costs, fitted = aspect_costs(n, aspect, loss)
    shapes = [
        {
            "x": float(x),
            "y": float(y),
            "series": family,
            "tip": {"shape": shape, "width / depth": f"{x:.1f}", "cost": f"{y:+.1%}"},
        }
        for x, y, family, shape in zip(
            aspect, costs, points_at["family"], points_at["shape"], strict=True
        )
    ]
    grid = np.geomspace(aspect.min(), aspect.max(), 60)
    curve = np.polynomial.Polynomial.fit(np.log(aspect), fitted, 2)(np.log(grid))
    line = [
        {"x": float(x), "y": float(y), "series": "deep", "group": ""}
        for x, y in zip(grid, curve, strict=True)
    ]
    name = [{"x": 5.7, "y": 0.08, "text": "fitted parabola"}]
    x = Axis.around(aspect, "width / depth", log=True, ticks=(3, 10, 30, 100, 300))
    y = Axis.around(
        [row["y"] for row in [*shapes, *line]], "extra loss, share of the size term", kind="percent"
    )
    return Figure(
        "aspect_ratios",
        "Both extremes of width / depth cost loss, at 99 billion tokens",
        "Loss at 99 billion tokens minus constant, size term in N_flop and drift, divided by the size term.",
        layered(
            rule(y=0, colour=MUTED),
            lines(line, x, y, FAMILIES).encode(**literal_line(INK)),
            labels(name, x.x(), y.y()),
            points(shapes, x, y, FAMILIES, size=60),
            series=FAMILIES,
        ),
        300,
    )  # fmt: skip


def width_and_depth(
    fits: Mapping[str, PowerTerms], ranges: Mapping[str, Mapping[str, Range]]
) -> Figure:
    """Plot the accepted exponents of width and depth by the form of the law."""
    rows = [
        _bar(
            form,
            f"exponent of {name}",
            fit.exponents[name],
            ranges[form][name],
            f"var(--series-{colour})",
        )
        for form, fit in fits.items()
        for name, colour in (("width", 1), ("depth", 2))
    ]
    axis = Axis.around(
        [0.0, *(row[end] for row in rows for end in ("low", "high"))], "exponent, loss in nats"
    )
    return Figure(
        "width_and_depth",
        "The exponents of width and depth depend on the form of the law",
        "Exponents that the 20 shapes accept at 99 billion tokens (95%, profile).",
        forest(rows, axis, {}),
        30 + 24 * (len(rows) + len(fits)),
    )


def _bar(
    group: str, row: str, value: float | None, ends: Range | None, colour: str
) -> dict[str, Any]:
    low, high = ends or (None, None)
    tip = {"estimate": row, "value": "-" if value is None else f"{value:+.4f}"}
    return {
        "group": group, "row": row, "x": value, "low": low, "high": high, "colour": colour,
        "mark": colour, "shape": "circle", "tip": tip,
    }  # fmt: skip
