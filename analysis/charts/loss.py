"""Charts of losses and loss differences against training FLOPs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from analysis.charts.rows import (
    PER_TOKEN,
    budget_name,
    budgets_of,
    families_of,
    line_columns,
    records,
    run_row,
    run_tooltip,
)
from analysis.compare.matched_pairs import Contrast
from analysis.formatting import format_p_value, power_of_ten, short_count
from slm.charts import (
    INK,
    Axis,
    Figure,
    Series,
    bands,
    intervals,
    labels,
    layered,
    lines,
    panels,
    points,
    rule,
    tint,
)

if TYPE_CHECKING:
    from analysis.report.study_report import StudyReport

MAX_BUDGETS = 5  # token budgets with lines in one chart; the lines of more would hide the runs
PAIR_TOOLTIP = {
    "size": "size",
    "series": "tokens_per_param",
    "flops": "training FLOPs",
    "deep": "loss, deep",
    "wide": "loss, wide",
    "difference": f"difference at equal FLOPs ({PER_TOKEN})",
}
ENDPOINT_TOOLTIP = {
    "series": "tokens_per_param",
    "flops": "training FLOPs",
    "estimate": "difference and 95% interval",
    "p": "p value (Holm)",
}


def overview(report: StudyReport) -> Figure:
    """Return the loss and, beside it, the loss differences, as one picture for files."""
    figures = [
        loss_against_flops(report, interactive=False),
        differences(report, interactive=False),
    ]
    charts = {figure.title: figure.chart for figure in figures if figure is not None}
    caption = " ".join(figure.caption for figure in figures if figure is not None)
    return Figure(
        "overview", "Loss and loss differences", caption, panels(charts, width=460, height=320)
    )


def loss_against_flops(report: StudyReport, *, interactive: bool = True) -> Figure:
    """Plot the loss of every run against its training FLOPs, with the joint law and its confidence band."""
    table, families = report.table, families_of(report, interactive=interactive)
    has_lines = len(report.tokens_per_param) <= MAX_BUDGETS
    curves = report.curves if has_lines else ()
    law = [
        dict(zip(("x", "y", "low", "high"), values, strict=True))
        | line_columns(curve.family, curve.tokens_per_param)
        for curve in curves
        for values in zip(curve.flops, curve.loss, curve.low, curve.high, strict=True)
    ]
    trend = law or (_cell_means(table) if has_lines else [])
    losses = [*table["loss_nats_per_token"], *(row[end] for row in law for end in ("low", "high"))]
    x = Axis.around(table["flops"], "training FLOPs", log=True, kind="flops")
    y = Axis.around(losses, f"validation loss ({PER_TOKEN})", log=True).extended(0.04, 0)
    chart = layered(
        bands(law, x, y, families) if law else None,
        lines(trend, x, y, families) if trend else None,
        _budget_labels(table, x, y) if has_lines else None,
        points(
            [run_row(row) for row in records(table)], x, y, families, run_tooltip(table), size=34
        ),
        series=families,
    )
    caption = "One mark per run."
    if law:
        caption += (
            " Lines and bands: joint law and its 95% confidence interval (jackknife over shapes)."
        )
    elif trend:
        caption += " Lines: mean over seeds."
    if has_lines:
        caption += " Labels: tokens_per_param of each token budget."
    title = "Loss against training FLOPs"
    return Figure("loss_against_flops", title, caption, chart, 360)


def _cell_means(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the mean over seeds of each family, token budget and shape."""
    keys = ["family", "tokens_per_param", "shape"]
    means = table.groupby(keys, sort=False)[["flops", "loss_nats_per_token"]].mean().reset_index()
    return [
        {
            "x": row["flops"],
            "y": row["loss_nats_per_token"],
            **line_columns(row["family"], row["tokens_per_param"]),
        }
        for row in records(means)
    ]


def _budget_labels(table: pd.DataFrame, x: Axis, y: Axis) -> Any:
    """Return the tokens_per_param of each budget, beside its run with the fewest FLOPs.

    No run has fewer FLOPs and a lower loss, so the place below on the left is free; the label of the smallest
    budget is longer and stands above on the right, where no run has a higher loss.
    """
    import altair

    rows = []
    for budget, runs in table.groupby("tokens_per_param"):
        first = runs[runs["flops"] == runs["flops"].min()]["loss_nats_per_token"]
        rows.append({"x": runs["flops"].min(), "y": first.max(), "text": budget_name(budget)})
    smallest = {**rows[0], "text": f"tokens_per_param {rows[0]['text']}"}
    above = labels([smallest], x.x(), y.y(), dx=9, dy=-7)
    return altair.layer(above, labels(rows[1:], x.x(), y.y(), align="right", dx=-9, dy=10))


def differences(report: StudyReport, *, interactive: bool = True) -> Figure | None:
    """Plot the loss difference of every pair, and the interval at the largest FLOPs of each token budget."""
    matched = report.comparison.matched
    if matched is None:
        return None
    budgets = budgets_of(matched.pairs["tokens_per_param"], interactive=interactive)
    pairs = [_pair_row(matched, row) for row in records(matched.pairs)]
    values = [0.0, *(row["y"] for row in pairs)]
    limits = matched.summary[["largest_low", "largest_high"]].to_numpy().ravel().tolist()
    # an interval from very few pairs may be hundreds of times wider than the differences
    reach = 4 * max(map(abs, values)) or 1.0
    values += [min(max(value, -reach), reach) for value in limits if math.isfinite(value)]
    title = f"loss of {matched.deep} minus {matched.wide} ({PER_TOKEN})"
    x = Axis.around(matched.pairs["flops"], "training FLOPs", log=True, kind="flops")
    x = x.extended(0, 0.02 * min(len(matched.summary), 10))
    y = Axis.around(values, title).extended(0.09, 0.09)
    families = families_of(report)
    chart = layered(
        tint(0, y.high, families.colour(matched.wide)),
        tint(y.low, 0, families.colour(matched.deep)),
        rule(y=0),
        lines(pairs, x, y, budgets, width=1),
        intervals(_endpoint_rows(matched, budgets, x, y), x, y, ENDPOINT_TOOLTIP),
        _side_label(f"{matched.wide} better", families.colour(matched.wide), y, 0.95),
        _side_label(f"{matched.deep} better", families.colour(matched.deep), y, 0.04),
        points(pairs, x, y, budgets, PAIR_TOOLTIP),
        series=budgets,
    )
    return Figure(
        "differences",
        "Loss difference at matched FLOPs",
        "One mark per pair of shapes with equal tokens, corrected to equal FLOPs, averaged over seeds. Bars: 95% "
        "confidence interval at the largest FLOPs of each token budget, from the scatter over pairs.",
        chart,
        360,
    )


def _pair_row(matched: Contrast, row: Mapping[str, Any]) -> dict[str, Any]:
    at_equal = row["difference_at_equal_flops"]
    budget = budget_name(row["tokens_per_param"])
    return {
        "x": row["flops"],
        "y": at_equal,
        "series": budget,
        "group": budget,
        "size": short_count(row["size"]),
        "flops": power_of_ten(row["flops"], 3),
        "deep": f"{row['loss_nats_per_token_deep']:.4f} ({matched.deep})",
        "wide": f"{row['loss_nats_per_token_wide']:.4f} ({matched.wide})",
        "difference": f"{at_equal:+.4f}",
    }


def _endpoint_rows(matched: Contrast, budgets: Series, x: Axis, y: Axis) -> list[dict[str, Any]]:
    """Return the intervals at the largest FLOPs; those at the same FLOPs stand side by side."""
    rows: list[dict[str, Any]] = []
    placed: list[float] = []
    for row in records(matched.summary):
        low, high, at = row["largest_low"], row["largest_high"], math.log(row["largest_flops"])
        if not math.isfinite(low):
            continue
        beside = sum(abs(at - other) < 0.01 for other in placed)
        placed.append(at)
        budget = budget_name(row["tokens_per_param"])
        rows.append(
            {
                "x": row["largest_flops"] * (x.high / x.low) ** (0.02 * (beside + 1)),
                "y": y.clip(row["largest"]),
                "low": y.clip(low),
                "high": y.clip(high),
                "colour": budgets.colour(budget),
                "series": budget,
                "flops": power_of_ten(row["largest_flops"], 3),
                "estimate": f"{row['largest']:+.4f} [{low:+.4f}, {high:+.4f}]",
                "p": format_p_value(row["largest_p_holm"]),
            }
        )
    return rows


def _side_label(text: str, colour: str, y: Axis, share: float) -> Any:
    """Return a label at the left edge, at a share of the height."""
    import altair

    rows = [{"text": text, "y": y.share(share)}]
    return labels(rows, altair.value(8), y.y(), colour, fontWeight="bold")


def compute_multiplier(report: StudyReport) -> Figure | None:
    """Plot the compute multiplier over the losses that both families reach."""
    found, kappa = report.comparison, report.comparison.kappa
    if kappa is None:
        return None
    series = Series((found.deep,))
    ends = kappa.interval or (1.0, 1.0)
    rows = [
        {
            "x": flops,
            "y": value,
            "series": found.deep,
            "group": "runs",
            "loss": f"{loss:.4f}",
            "flops": power_of_ten(flops, 3),
            "kappa": f"{value:.3f}",
        }
        for flops, value, loss in zip(kappa.flops, kappa.values, kappa.loss, strict=True)
    ]
    tooltip = {
        "kappa": "compute multiplier",
        "loss": f"loss ({PER_TOKEN})",
        "flops": "training FLOPs",
    }
    x = Axis.around([*kappa.flops, kappa.at_flops], "training FLOPs", log=True, kind="flops")
    y = Axis.around(
        [*kappa.values, *ends, 1.0], f"FLOPs of {found.wide} / FLOPs of {found.deep}", log=True
    )
    by_law = []
    if kappa.interval is not None and kappa.by_law is not None:
        by_law.append(
            {
                "x": kappa.at_flops,
                "y": kappa.by_law,
                "low": y.clip(ends[0]),
                "high": y.clip(ends[1]),
                "colour": INK,
                "flops": power_of_ten(kappa.at_flops, 3),
                "kappa": f"{kappa.by_law:.3f} [{ends[0]:.3f}, {ends[1]:.3f}] by the joint law",
            }
        )
    chart = layered(
        rule(y=1),
        lines(rows, x, y, series),
        intervals(by_law, x, y, tooltip) if by_law else None,
        points(rows, x, y, series, tooltip),
        series=series,
    )
    law = f"Slope {kappa.slope:+.3f} per ln FLOPs"
    if kappa.drift is not None:
        law += f", of which different levels alone explain {kappa.drift:+.3f}"
    if by_law:
        law = f"Bar: joint law at the largest FLOPs of both families, 95% jackknife interval. {law}"
    return Figure(
        "compute_multiplier",
        "Compute multiplier at equal loss",
        f"FLOPs of {found.wide} divided by FLOPs of {found.deep} at the same loss, interpolated between runs; above 1, "
        f"{found.deep} needs less compute. {law}.",
        chart,
        300,
    )
