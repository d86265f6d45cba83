"""Charts of single shapes: aspect ratios, residuals, and the prediction of the largest size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from analysis.charts.rows import (
    PER_TOKEN,
    budget_name,
    budgets_of,
    families_of,
    forest_plot,
    forest_row,
    records,
    rows_height,
    run_row,
    run_tooltip,
)
from analysis.compare.aspect_ratio import ShapeCurve
from analysis.formatting import power_of_ten, short_count
from slm.charts import (
    INK,
    MUTED,
    Axis,
    Figure,
    Series,
    data,
    layered,
    lines,
    literal_colour,
    points,
    rule,
)

if TYPE_CHECKING:
    from analysis.report.study_report import StudyReport


def shape_curve(report: StudyReport) -> Figure | None:
    """Plot loss against aspect ratio at matched FLOPs, one line per size and token budget."""
    import altair

    found = report.shape_curve
    if found is None or not found.rungs:
        return None
    budgets = budgets_of(one.tokens_per_param for one in found.rungs)
    compute = Series(tuple(map(repr, sorted({one.flops for one in found.rungs}))), is_ordered=True)
    rows: list[dict[str, Any]] = [
        {
            "x": aspect,
            "y": loss - sum(one.losses) / len(one.losses),
            "series": budget_name(one.tokens_per_param),
            "group": f"{one.rung} {one.tokens_per_param:g}",
            "colour": compute.colour(repr(one.flops)),
            "rung": str(one.rung),
            "flops": power_of_ten(one.flops, 3),
            "aspect": f"{aspect:.3g}",
            "loss": f"{loss:.4f}",
        }
        for one in found.rungs
        for aspect, loss in zip(one.aspects, one.losses, strict=True)
    ]
    tooltip = {
        "aspect": "d_model / n_layers",
        "loss": f"loss ({PER_TOKEN})",
        "rung": "rung",
        "series": "tokens_per_param",
        "flops": "training FLOPs",
    }
    x = Axis.around([row["x"] for row in rows], "aspect ratio d_model / n_layers", log=True)
    y = Axis.around([row["y"] for row in rows], f"loss minus its mean over shapes ({PER_TOKEN})")
    solid = altair.value([1, 0])
    chart = layered(
        rule(y=0),
        *_best_aspect(found, x, y),
        lines(rows, x, y, budgets, width=1).encode(color=literal_colour(), strokeDash=solid),
        points(rows, x, y, budgets, tooltip).encode(color=literal_colour()),
        series=budgets,
    )
    return Figure(
        "shape_curve",
        "Loss against aspect ratio at matched FLOPs",
        f"{found.status}: {found.sentence} One line per size and token budget, corrected to equal FLOPs; a stronger "
        "contrast means more FLOPs.",
        chart,
        360,
    )


def _best_aspect(found: ShapeCurve, x: Axis, y: Axis) -> list[Any]:
    """Return a line at the best aspect ratio, and its 95% interval at the lower edge of the plot."""
    import altair

    if found.best_aspect is None or found.best_interval is None or not found.interior:
        return []
    low, high = map(x.clip, found.best_interval)
    bar = altair.Chart(data([{}])).mark_rule(color=INK, strokeWidth=3)
    return [
        rule(x=found.best_aspect, dash=(4, 3)),
        bar.encode(x=altair.datum(low), x2=altair.datum(high), y=altair.datum(y.share(0.02))),
    ]


def residuals(report: StudyReport) -> Figure | None:
    """Plot the residuals of the joint law: every run, and the mean of each shape."""
    table = report.table.dropna(subset=["residual"])
    if table.empty:
        return None
    families = families_of(report)
    runs = [{**run_row(row), "x": row["n"], "y": 100 * row["residual"]} for row in records(table)]
    means = table.groupby(["family", "shape"], sort=False).agg(
        n=("n", "mean"), residual=("residual", "mean"), runs=("residual", "size")
    )
    shapes = [
        {
            "x": row["n"],
            "y": 100 * row["residual"],
            "series": row["family"],
            "group": row["family"],
            "shape": row["shape"],
            "mean": f"{row['residual']:+.2%}",
            "runs": str(row["runs"]),
        }
        for row in records(means.reset_index())
    ]
    tooltip = {"series": "family", "shape": "shape", "mean": "mean residual", "runs": "runs"}
    x = Axis.around(table["n"], "N (FLOPs per token / 6)", log=True, kind="count")
    y = Axis.around([0.0, *(row["y"] for row in runs)], "residual of the loss (%)")
    return Figure(
        "residuals",
        "Residuals of the joint law",
        "Small marks: runs. Large marks: mean of a shape, positive if observed above the law. A trend within a family "
        "means that the law does not fit it; a single shape far from 0 may have an unsuitable learning rate.",
        layered(
            rule(y=0),
            points(runs, x, y, families, run_tooltip(table), size=14, opacity=0.4),
            lines(shapes, x, y, families, width=1),
            points(shapes, x, y, families, tooltip, size=70),
            series=families,
        ),
        300,
    )


def hold_out(report: StudyReport) -> Figure | None:
    """Plot the observed loss of the largest size relative to its prediction from the smaller sizes."""
    cells, families = report.comparison.hold_out.cells, families_of(report)
    if not cells:
        return None
    rows = []
    for cell in sorted(cells, key=lambda c: (c.tokens, report.families.index(c.family))):
        low, high = (100 * (end / cell.predicted - 1) for end in (cell.low, cell.high))
        row = forest_row(
            f"{cell.family}, {short_count(cell.tokens)} tokens",
            cell.error_percent,
            (low, high),
            MUTED,
            families.shape(cell.family),
        )
        row["value"] = (
            f"{cell.observed:.4f} observed, {cell.predicted:.4f} [{cell.low:.4f}, {cell.high:.4f}] predicted"
        )
        rows.append({**row, "mark": families.colour(cell.family)})
    values = [0.0, *(row[key] for row in rows for key in ("low", "high", "x"))]
    axis = Axis.around(values, "observed relative to predicted loss (%)")
    return Figure(
        "hold_out",
        "Largest size, predicted from the smaller sizes",
        "Grey: 95% prediction interval for the loss of a new shape. Marks: observed loss.",
        forest_plot(rows, axis),
        rows_height(rows),
    )
