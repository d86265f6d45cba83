"""Charts of the loss against training FLOPs, and of the loss difference against N."""

from __future__ import annotations

from collections.abc import Iterator
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
)
from analysis.formatting import power_of_ten
from slm.charts import (
    INK,
    MUTED,
    Axis,
    Figure,
    bands,
    intervals,
    labels,
    layered,
    lines,
    literal_line,
    panels,
    points,
    rule,
    tint,
)
from slm.formatting import short_count

if TYPE_CHECKING:
    from analysis.compare.matched_pairs import Contrast
    from analysis.report.study_report import Curve, StudyReport

MAX_BUDGETS = 5  # token budgets with lines in one chart; the lines of more would hide the runs


def overview(report: StudyReport) -> Figure:
    """Return the loss and, beside it, the loss differences, as one picture for files."""
    figures = [
        loss_against_flops(report, interactive=False),
        level(report, interactive=False),
    ]
    charts = {figure.title: figure.chart for figure in figures if figure is not None}
    caption = " ".join(figure.caption for figure in figures if figure is not None)
    return Figure(
        "overview", "Loss and loss difference", caption, panels(charts, width=460, height=320)
    )


def loss_against_flops(report: StudyReport, *, interactive: bool = True) -> Figure:
    """Plot the loss of every run against its training FLOPs, with the joint law and its band, or the pooled law."""
    table, families = report.table, families_of(report, interactive=interactive)
    has_lines = len(report.tokens_per_param) <= MAX_BUDGETS
    curves = report.curves if has_lines else ()
    law = [row for curve in curves if curve.family is not None for row in _curve_rows(curve)]
    pooled = [row for curve in curves if curve.family is None for row in _curve_rows(curve)]
    trend = law or (_cell_means(table) if has_lines and not pooled else [])
    losses = [*table["loss_nats_per_token"], *(row[end] for row in law for end in ("low", "high"))]
    x = Axis.around(table["flops"], "training FLOPs", log=True, kind="flops")
    y = Axis.around(losses, f"validation loss ({PER_TOKEN})", log=True).extended(0.04, 0)
    chart = layered(
        bands(law, x, y, families) if law else None,
        lines(trend, x, y, families) if trend else None,
        lines(pooled, x, y, families, width=1).encode(**literal_line(MUTED)) if pooled else None,
        _budget_labels(table, x, y) if has_lines else None,
        points([run_row(row) for row in records(table)], x, y, families, size=34),
        series=families,
    )
    caption = "One mark per run."
    if law:
        caption += (
            " Lines and bands: joint law and its 95% confidence interval (jackknife over shapes)."
        )
    elif pooled:
        caption += " Lines: law common to all shapes, from which the block model takes the size of differences."
    elif trend:
        caption += " Lines: mean over seeds."
    if has_lines:
        caption += " Labels: tokens_per_param of each token budget."
    title = "Loss against training FLOPs"
    return Figure("loss_against_flops", title, caption, chart, 360)


def _curve_rows(curve: Curve) -> list[dict[str, Any]]:
    table = {"x": curve.flops, "y": curve.loss}
    if curve.low is not None and curve.high is not None:
        table |= {"low": curve.low, "high": curve.high}
    columns = line_columns(curve.family, curve.tokens_per_param)
    return [row | columns for row in records(pd.DataFrame(table))]


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


def level(report: StudyReport, *, interactive: bool = True) -> Figure | None:
    """Plot deep minus wide against N: every pair, the block model with its band, and its estimate."""
    found, block, matched = report.comparison, report.comparison.block, report.comparison.matched
    if block.level is None and matched is None:
        return None
    pairs = [] if matched is None else list(_pair_rows(matched))
    curve: list[dict[str, Any]] = [
        {"x": row["n"], "y": row["level"], "low": row["low"], "high": row["high"], "group": "", "series": ""}
        for row in block.curve
    ]  # fmt: skip
    budgets = budgets_of(
        (row["budget"] for row in pairs) if pairs else report.tokens_per_param,
        interactive=interactive,
    )
    inner = [0.0, *(row["y"] for row in [*pairs, *curve]), *(block.level_ci or ())]
    reach = 2.5 * max(map(abs, inner)) or 1.0
    ends = [max(min(row[end], reach), -reach) for row in curve for end in ("low", "high")]
    sizes = [row["x"] for row in [*pairs, *curve]]
    x = Axis.around(sizes, "N (FLOPs per token / 6)", log=True, kind="count").extended(0, 0.03)
    title = f"loss of {found.deep} minus {found.wide} ({PER_TOKEN})"
    y = Axis.around([*inner, *ends], title).extended(0.09, 0.09)
    curve = [row | {end: y.clip(row[end]) for end in ("low", "high")} for row in curve]
    families = families_of(report)
    line = literal_line(INK)
    chart = layered(
        tint(0, y.high, families.colour(found.wide)),
        tint(y.low, 0, families.colour(found.deep)),
        rule(y=0),
        bands(curve, x, y, budgets).encode(color=line["color"]) if curve else None,
        lines(curve, x, y, budgets).encode(**line) if curve else None,
        _side_label(f"{found.wide} better", families.colour(found.wide), y, 0.95),
        _side_label(f"{found.deep} better", families.colour(found.deep), y, 0.04),
        points(pairs, x, y, budgets) if pairs else None,
        intervals(_level_row(report, x), x, y) if curve else None,
        series=budgets if pairs else None,
    )
    title = "Loss difference at equal FLOPs and tokens"
    marks = (
        "Line and band: block model and its 95% confidence band. Diamond: estimate and 95% interval at the largest "
        "common size, which the verdict uses. Other marks: pairs of shapes with equal tokens, corrected to equal FLOPs."
    )
    if block.level is None and matched is not None and not matched.is_corrected:
        title = "Raw loss difference at equal tokens"
        marks = "Pairs of shapes with equal tokens, not corrected for unequal FLOPs. No verdict follows from them."
    return Figure(
        "level",
        title,
        marks,
        chart,
        360,
    )


def _pair_rows(matched: Contrast) -> Iterator[dict[str, Any]]:
    """Yield the mark of each pair."""
    for row in records(matched.pairs):
        value, budget = row["difference_at_equal_flops"], budget_name(row["tokens_per_param"])
        n = row["flops"] / (6 * row["tokens"])
        tip = {
            "N (FLOPs per token / 6)": short_count(n),
            "tokens_per_param": budget,
            "training FLOPs": power_of_ten(row["flops"], 3),
            "loss, deep": f"{row['loss_nats_per_token_deep']:.4f}",
            "loss, wide": f"{row['loss_nats_per_token_wide']:.4f}",
            f"{matched.difference_name} ({PER_TOKEN})": f"{value:+.4f}",
        }
        columns = {"series": budget, "group": budget, "budget": row["tokens_per_param"]}
        yield {"x": n, "y": value, "tip": tip} | columns


def _level_row(report: StudyReport, x: Axis) -> list[dict[str, Any]]:
    """Return the estimate at the largest common size, placed a little to the right of the pairs there."""
    block = report.comparison.block
    assert block.at_n is not None and block.at_flops is not None and block.level_ci is not None
    low, high = block.level_ci
    tip = {
        "N (FLOPs per token / 6)": short_count(block.at_n),
        "training FLOPs": power_of_ten(block.at_flops, 3),
        "difference [95% CI]": block.level_text,
    }
    at = block.at_n * (x.high / x.low) ** 0.02
    return [{"x": at, "y": block.level, "low": low, "high": high, "colour": INK, "tip": tip}]


def _side_label(text: str, colour: str, y: Axis, share: float) -> Any:
    """Return a label at the left edge, at a share of the height."""
    import altair

    rows = [{"text": text, "y": y.share(share)}]
    return labels(rows, altair.value(8), y.y(), colour, fontWeight="bold")
