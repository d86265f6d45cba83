"""Charts of a study report. Each function returns a `Figure`, or None if the study lacks its data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from analysis.compare.aspect_ratio import ShapeCurve
from analysis.compare.exponents import EQUIVALENT, ExponentDifference
from analysis.compare.matched_pairs import Contrast
from analysis.formatting import format_p_value, power_of_ten, short_count
from slm.charts import (
    INK,
    MUTED,
    Axis,
    Figure,
    Series,
    bands,
    data,
    finite_or_none,
    forest,
    intervals,
    labels,
    layered,
    lines,
    literal_colour,
    panels,
    points,
    rule,
    tint,
)

if TYPE_CHECKING:
    from analysis.report.study_report import StudyReport

MAX_BUDGETS = 5  # token budgets with lines in one chart; the lines of more would hide the runs
PER_TOKEN = "nats/token"
DOTTED = (2, 4)
RUN_TOOLTIP = {
    "run_id": "run id",
    "series": "family",
    "shape": "shape",
    "n": "N (FLOPs per token / 6)",
    "tokens": "tokens",
    "tokens_per_param": "tokens_per_param",
    "flops": "training FLOPs",
    "loss": f"loss ({PER_TOKEN})",
    "seed": "seed",
    "lr": "peak learning rate",
}
N_NAMES = {"params_non_embedding": "non-embedding", "params_total": "all parameters"}


def report_figures(report: StudyReport) -> list[Figure]:
    """Return the figures of a report in the order of its sections, without those that the study lacks."""
    figures = (
        loss_against_flops(report),
        differences(report),
        compute_multiplier(report),
        shape_curve(report),
        alphas(report),
        exponent_difference(report),
        isoflop(report),
        residuals(report),
        hold_out(report),
    )
    return [figure for figure in figures if figure is not None]


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
    table, families = report.table, _families(report, interactive=interactive)
    has_lines = len(report.tokens_per_param) <= MAX_BUDGETS
    curves = report.curves if has_lines else ()
    law = [
        {"x": x, "y": y, "low": low, "high": high, **_group(curve.family, curve.tokens_per_param)}
        for curve in curves
        for x, y, low, high in zip(curve.flops, curve.loss, curve.low, curve.high, strict=True)
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
            [_run_row(row) for row in _records(table)], x, y, families, _run_tooltip(table), size=34
        ),
        series=families,
    )
    law_text = (
        "Lines and bands: joint law and its 95% confidence interval (jackknife over shapes). "
        if law
        else "Lines: mean over seeds. "
        if trend
        else ""
    )
    return Figure(
        "loss_against_flops",
        "Loss against training FLOPs",
        f"One mark per run. {law_text}Labels: tokens_per_param of each token budget.",
        chart,
        360,
    )


def _budget_labels(table: pd.DataFrame, x: Axis, y: Axis) -> Any:
    """Return the tokens_per_param of each budget, beside its run with the fewest FLOPs.

    No run has fewer FLOPs and a lower loss, so the place below on the left is free; the label of the smallest
    budget is longer and stands above on the right, where no run has a higher loss.
    """
    import altair

    rows = []
    for budget, runs in table.groupby("tokens_per_param"):
        first = runs[runs["flops"] == runs["flops"].min()]["loss_nats_per_token"]
        rows.append({"x": runs["flops"].min(), "y": first.max(), "text": _number(budget)})
    smallest = {**rows[0], "text": f"tokens_per_param {rows[0]['text']}"}
    above = labels([smallest], x.x(), y.y(), dx=9, dy=-7)
    return altair.layer(above, labels(rows[1:], x.x(), y.y(), align="right", dx=-9, dy=10))


def differences(report: StudyReport, *, interactive: bool = True) -> Figure | None:
    """Plot the loss difference of every pair, and the interval at the largest FLOPs of each token budget."""
    matched = report.comparison.matched
    if matched is None:
        return None
    budgets = _budgets(matched.pairs["tokens_per_param"], interactive=interactive)
    pairs = [_pair_row(matched, row) for row in _records(matched.pairs)]
    values = [0.0, *(row["y"] for row in pairs)]
    limits = matched.summary[["largest_low", "largest_high"]].to_numpy().ravel().tolist()
    # an interval from very few pairs may be hundreds of times wider than the differences
    reach = 4 * max(map(abs, values)) or 1.0
    values += [min(max(value, -reach), reach) for value in limits if math.isfinite(value)]
    title = f"loss of {matched.deep} minus {matched.wide} ({PER_TOKEN})"
    x = Axis.around(matched.pairs["flops"], "training FLOPs", log=True, kind="flops")
    x = x.extended(0, 0.02 * min(len(matched.summary), 10))
    y = Axis.around(values, title).extended(0.09, 0.09)
    families = _families(report)
    chart = layered(
        tint(0, y.high, families.colour(matched.wide)),
        tint(y.low, 0, families.colour(matched.deep)),
        rule(y=0),
        lines(pairs, x, y, budgets, width=1),
        intervals(_endpoint_rows(matched, budgets, x, y), x, y, ENDPOINT_TOOLTIP),
        _side_label(f"{matched.wide} better", families.colour(matched.wide), "top"),
        _side_label(f"{matched.deep} better", families.colour(matched.deep), "bottom"),
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


def _pair_row(matched: Contrast, row: Mapping[str, Any]) -> dict[str, Any]:
    at_equal = row["difference_at_equal_flops"]
    budget = _number(row["tokens_per_param"])
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
    for row in _records(matched.summary):
        low, high, at = row["largest_low"], row["largest_high"], math.log(row["largest_flops"])
        if not math.isfinite(low):
            continue
        beside = sum(abs(at - other) < 0.01 for other in placed)
        placed.append(at)
        budget = _number(row["tokens_per_param"])
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


def _side_label(text: str, colour: str, side: str) -> Any:
    import altair

    place = altair.value(14) if side == "top" else altair.value({"expr": "height - 10"})
    return labels([{"text": text}], altair.value(8), place, colour, fontWeight="bold")


def alphas(report: StudyReport) -> Figure | None:
    """Plot the exponent of each family; if not identified, the accepted range without an estimate."""
    exponents, families = report.comparison.exponents, _families(report)
    if exponents.refused:
        return None
    is_identified = exponents.status != "UNIDENTIFIED"
    rows = []
    for name in (name for name in report.families if name in exponents.alpha):
        value = exponents.alpha[name] if is_identified else None
        ends = exponents.alpha_intervals[name] if is_identified else exponents.accepted_alpha(name)
        rows.append(_forest_row(name, value, ends, families.colour(name), families.shape(name)))
    values = [value for row in rows for value in (row["low"], row["high"], row["x"])]
    caption = (
        "Joint law with common E, B and beta; loss in nats against N = FLOPs per token / 6. Bars: 95% confidence "
        f"interval (jackknife over shapes). Status {exponents.status}."
        if is_identified
        else "Status UNIDENTIFIED: there is no estimate. Dashed: range of exponents that the runs accept."
    )
    axis = Axis.around(values, "alpha of the term A / N^alpha")
    return Figure(
        "alphas", "Exponent of each family", caption, _forest(rows, axis), _rows_height(rows)
    )


def exponent_difference(report: StudyReport) -> Figure | None:
    """Plot the exponent difference for each definition of N and each sensitivity analysis."""
    found, primary = report.comparison, report.comparison.exponents
    if primary.refused or primary.status == "UNIDENTIFIED":
        return None
    rows = [
        _definition_row(N_NAMES.get(name, name), one, INK if index == 0 else MUTED)
        for index, (name, one) in enumerate(found.by_definition.items())
    ]
    rows.append(_forest_row("profile likelihood", primary.difference, primary.profile, MUTED))
    if primary.without is not None:
        shape, value = primary.without
        rows.append(_forest_row(f"without {shape}", value, None, MUTED, "diamond"))
    if primary.fit is not None:
        for delta, law in primary.fit.by_delta.items():
            if math.isfinite(delta):
                value = law[f"alpha[{found.deep}]"] - law[f"alpha[{found.wide}]"]
                rows.append(_forest_row(f"Huber delta {delta:g}", value, None, MUTED, "diamond"))
    values = [0.0, *(row[key] for row in rows for key in ("low", "high", "x"))]
    axis = Axis.around(values, f"alpha of {found.deep} minus alpha of {found.wide}")
    rules = {0.0: (1, 0), -EQUIVALENT: DOTTED, EQUIVALENT: DOTTED}
    inside = {value: dash for value, dash in rules.items() if axis.low <= value <= axis.high}
    return Figure(
        "exponent_difference",
        "Exponent difference by definition of N and method",
        f"First row: primary estimate with its 95% confidence interval. Right of 0, {found.deep} gains with size. "
        f"Dotted lines: exponents within {EQUIVALENT:g} are equivalent. The other rows are sensitivity analyses and "
        "must agree with the first.",
        _forest(rows, axis, inside),
        _rows_height(rows),
    )


def _definition_row(label: str, one: ExponentDifference, colour: str) -> dict[str, Any]:
    if one.status == "UNIDENTIFIED":
        return _forest_row(label, None, one.profile, colour)
    return _forest_row(label, one.difference, one.interval, colour)


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
    drift = (
        ""
        if kappa.drift is None
        else f", of which different levels alone explain {kappa.drift:+.3f}"
    )
    law = (
        "Bar: joint law at the largest FLOPs of both families, 95% jackknife interval. "
        if by_law
        else ""
    )
    return Figure(
        "compute_multiplier",
        "Compute multiplier at equal loss",
        f"FLOPs of {found.wide} divided by FLOPs of {found.deep} at the same loss, interpolated between runs; above 1, "
        f"{found.deep} needs less compute. {law}Slope {kappa.slope:+.3f} per ln FLOPs{drift}.",
        chart,
        300,
    )


def shape_curve(report: StudyReport) -> Figure | None:
    """Plot loss against aspect ratio at matched FLOPs, one line per size and token budget."""
    import altair

    found = report.shape_curve
    if found is None or not found.rungs:
        return None
    budgets = _budgets(one.tokens_per_param for one in found.rungs)
    compute = Series(tuple(map(repr, sorted({one.flops for one in found.rungs}))), is_ordered=True)
    rows: list[dict[str, Any]] = [
        {
            "x": aspect,
            "y": loss - sum(one.losses) / len(one.losses),
            "series": _number(one.tokens_per_param),
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
        *_best_aspect(found, x),
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


def _best_aspect(found: ShapeCurve, x: Axis) -> list[Any]:
    """Return a line at the best aspect ratio, and its 95% interval at the lower edge of the plot."""
    import altair

    if found.best_aspect is None or found.best_interval is None or not found.interior:
        return []
    low, high = map(x.clip, found.best_interval)
    bar = altair.Chart(data([{}])).mark_rule(color=INK, strokeWidth=3)
    floor = altair.value({"expr": "height - 6"})
    return [
        rule(x=found.best_aspect, dash=(4, 3)),
        bar.encode(x=altair.datum(low), x2=altair.datum(high), y=floor),
    ]


def isoflop(report: StudyReport) -> Figure | None:
    """Plot the optimal size at each compute budget for each family."""
    rows: list[dict[str, Any]] = []
    texts = []
    for family, fit in report.isoflop.items():
        for one in fit.parabolas:
            if one.n_best is None:
                continue
            rows.append(
                {
                    "x": one.flops,
                    "y": one.n_best,
                    "series": family,
                    "group": family,
                    "flops": power_of_ten(one.flops, 3),
                    "n": short_count(one.n_best),
                    "loss": "" if one.loss_best is None else f"{one.loss_best:.4f}",
                }
            )
        if fit.exponent is None or fit.interval is None:
            texts.append(f"{family} {fit.status}: {'; '.join(fit.reasons)}")
        else:
            low, high = fit.interval
            texts.append(
                f"{family}: best N grows as C to the {fit.exponent:.2f} [{low:.2f}, {high:.2f}]"
            )
    if not rows:
        return None
    families = _families(report)
    tooltip = {
        "series": "family",
        "flops": "training FLOPs",
        "n": "best N",
        "loss": f"loss ({PER_TOKEN})",
    }
    x = Axis.around([row["x"] for row in rows], "training FLOPs", log=True, kind="flops")
    y = Axis.around(
        [row["y"] for row in rows], "best N (FLOPs per token / 6)", log=True, kind="count"
    )
    return Figure(
        "isoflop",
        "IsoFLOP: best size at each compute budget",
        f"{'. '.join(texts)}. A secondary estimate: parabolas are biased, and more so if their points lie far from "
        "the minimum.",
        layered(
            lines(rows, x, y, families), points(rows, x, y, families, tooltip), series=families
        ),
        300,
    )


def hold_out(report: StudyReport) -> Figure | None:
    """Plot the observed loss of the largest size relative to its prediction from the smaller sizes."""
    cells, families = report.comparison.hold_out.cells, _families(report)
    if not cells:
        return None
    rows = []
    for cell in sorted(cells, key=lambda c: (c.tokens, report.families.index(c.family))):
        low, high = (100 * (end / cell.predicted - 1) for end in (cell.low, cell.high))
        row = _forest_row(
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
        _forest(rows, axis),
        _rows_height(rows),
    )


def residuals(report: StudyReport) -> Figure | None:
    """Plot the residuals of the joint law: every run, and the mean of each shape."""
    table = report.table.dropna(subset=["residual"])
    if table.empty:
        return None
    families = _families(report)
    runs = [{**_run_row(row), "x": row["n"], "y": 100 * row["residual"]} for row in _records(table)]
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
        for row in _records(means.reset_index())
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
            points(runs, x, y, families, _run_tooltip(table), size=14, opacity=0.4),
            lines(shapes, x, y, families, width=1),
            points(shapes, x, y, families, tooltip, size=70),
            series=families,
        ),
        300,
    )


def _families(report: StudyReport, *, interactive: bool = True) -> Series:
    """Return the encodings of the families: the same colours in all charts of a study."""
    return Series(tuple(report.families), interactive=interactive)


def _budgets(values: Iterable[float], *, interactive: bool = True) -> Series:
    """Return the encodings of token budgets, in ascending order."""
    names = tuple(dict.fromkeys(map(_number, sorted(values))))
    return Series(names, is_ordered=True, title="tokens_per_param", interactive=interactive)


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    rows: list[Any] = table.to_dict("records")
    return rows


def _number(value: Any) -> str:
    return f"{float(value):g}"


def _group(family: Any, budget: Any) -> dict[str, str]:
    """Return the columns that separate lines by family and token budget."""
    return {"series": str(family), "group": f"{family} {_number(budget)}"}


def _run_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the chart data of a run: FLOPs, loss, and the texts of `RUN_TOOLTIP`."""
    lr = finite_or_none(row.get("peak_lr"))
    return {
        "x": row["flops"],
        "y": row["loss_nats_per_token"],
        "series": row["family"],
        "run_id": row["run_id"],
        "shape": row["shape"],
        "n": short_count(row["n"]),
        "tokens": short_count(row["tokens"]),
        "tokens_per_param": _number(row["tokens_per_param"]),
        "flops": power_of_ten(row["flops"], 3),
        "loss": f"{row['loss_nats_per_token']:.4f}",
        "seed": str(row["seed"]),
        "lr": None if lr is None else f"{lr:.3g}",
    }


def _run_tooltip(table: pd.DataFrame) -> dict[str, str]:
    return {key: title for key, title in RUN_TOOLTIP.items() if key != "lr" or "peak_lr" in table}


def _cell_means(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the mean over seeds of each family, token budget and shape."""
    keys = ["family", "tokens_per_param", "shape"]
    means = table.groupby(keys, sort=False)[["flops", "loss_nats_per_token"]].mean().reset_index()
    return [
        {
            "x": row["flops"],
            "y": row["loss_nats_per_token"],
            **_group(row["family"], row["tokens_per_param"]),
        }
        for row in _records(means)
    ]


def _forest_row(
    label: str,
    value: float | None,
    ends: tuple[float, float] | None,
    colour: str,
    shape: str = "circle",
) -> dict[str, Any]:
    text = "no estimate" if value is None else f"{value:+.4f}"
    if ends is not None:
        text += f" [{ends[0]:+.4f}, {ends[1]:+.4f}]"
    return {
        "row": label,
        "x": value,
        "low": None if ends is None else ends[0],
        "high": None if ends is None else ends[1],
        "colour": colour,
        "mark": colour,
        "shape": shape,
        "hollow": ends is None,
        "value": text,
    }


def _forest(
    rows: list[dict[str, Any]], axis: Axis, rules: Mapping[float, tuple[int, int]] | None = None
) -> Any:
    clipped = [
        {**row, **{end: axis.clip(row[end]) for end in ("low", "high") if row[end] is not None}}
        for row in rows
    ]
    zero = {0.0: (1, 0)} if axis.low <= 0 <= axis.high else {}
    return forest(
        clipped, axis, {"row": "", "value": axis.title}, rules=zero if rules is None else rules
    )


def _rows_height(rows: list[dict[str, Any]]) -> int:
    return 30 + 26 * len(rows)
