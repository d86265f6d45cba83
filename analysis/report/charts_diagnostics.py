"""Further charts of the HTML report; most a study has only if its design allows them."""

from __future__ import annotations

import math

import pandas as pd

from analysis.formatting import power_of_ten, short_count
from analysis.report.charts import MOST_CURVES, Figure, budget_styles, run_title, styles
from analysis.report.study_report import StudyReport
from analysis.report.svg import INK, Axis, Plot


def kappa(answer: StudyReport) -> Figure | None:
    """The compute multiplier over the losses that both families reach."""
    found, one = answer.comparison, answer.comparison.kappa
    if one is None:
        return None
    ends = one.interval or (1.0, 1.0)
    plot = Plot(
        Axis.around([*one.flops, one.at_flops], "training FLOPs", log=True, kind="flops"),
        Axis.around([*one.values, *ends, 1.0], "FLOPs of wide / FLOPs of deep", log=True),
        "Compute multiplier",
        height=300,
    )
    plot.rule(y=1)
    colour = styles(answer.families)[found.deep].colour
    plot.line(one.flops, one.values, colour)
    for flops, value, loss in zip(one.flops, one.values, one.loss, strict=True):
        title = f"loss {loss:.4f}: kappa {value:.3f} at {power_of_ten(flops)} FLOPs"
        plot.point(flops, value, colour, "o", title, 3.5)
    if one.interval is not None and one.by_law is not None:
        plot.interval(one.at_flops, one.by_law, *one.interval, INK)
        title = f"by the law: {one.by_law:.3f} [{ends[0]:.3f}, {ends[1]:.3f}]"
        plot.point(one.at_flops, one.by_law, INK, "D", title)
    return Figure(
        "kappa",
        "What the deeper shape saves",
        f"FLOPs that {found.wide} needs over those that {found.deep} needs for the same loss, from the runs "
        f"themselves; above 1, {found.deep} is cheaper. Bar: at the largest FLOPs that both reach, by the joint law, "
        f"95% jackknife. Slope {one.slope:+.3f} per ln FLOPs, of which levels alone explain "
        f"{one.drift or 0.0:+.3f}.",
        plot.svg(),
        {},
    )


def shape_curve(answer: StudyReport) -> Figure | None:
    """Loss against aspect ratio at matched FLOPs, a line a rung and budget."""
    found = answer.shape_curve
    if found is None or not found.rungs:
        return None
    curves = [
        (one, [loss - sum(one.losses) / len(one.losses) for loss in one.losses])
        for one in sorted(found.rungs, key=lambda one: one.flops)
    ]
    grey = budget_styles([one.flops for one, _ in curves])  # from light to dark with FLOPs
    markers = budget_styles(answer.tokens_per_param)
    plot = Plot(
        Axis.around([a for one, _ in curves for a in one.aspects], "d_model / n_layers", log=True),
        Axis.around([v for _, values in curves for v in values], "loss less its mean (nats)"),
        "Loss against aspect ratio",
    )
    plot.rule(y=0)
    for one, values in curves:
        colour, marker = grey[one.flops].colour, markers[one.tokens_per_param].marker
        plot.line(one.aspects, values, colour, "", 1.1)
        for aspect, value in zip(one.aspects, values, strict=True):
            title = (
                f"rung {one.rung}, D/N {one.tokens_per_param:g}, {power_of_ten(one.flops)} FLOPs: {value:+.4f} nats at "
                f"an aspect of {aspect:.3g}"
            )
            plot.point(aspect, value, colour, marker, title, 3.5)
    if found.best_aspect is not None and found.best_interval is not None and found.interior:
        plot.rule(x=found.best_aspect, dash="4 3")
        low, high = found.best_interval
        at = plot.y.low + 0.04 * (plot.y.high - plot.y.low)
        plot.interval(found.best_aspect, at, low, high, INK, across=True)
        title = f"best aspect {found.best_aspect:.3g} [{low:.3g}, {high:.3g}]"
        plot.point(found.best_aspect, at, INK, "D", title)
    few = len(answer.tokens_per_param) <= MOST_CURVES
    return Figure(
        "shape",
        "Which shape is best",
        f"{found.status}: {found.sentence} A line a size and token budget, at equal FLOPs; the darker, the more "
        "FLOPs.",
        plot.svg(),
        {f"D/N {budget:g}": style for budget, style in markers.items()} if few else {},
    )


def isoflop(answer: StudyReport) -> Figure | None:
    """The best size at each compute budget, per family."""
    good = {
        family: [one for one in found.parabolas if one.n_best is not None]
        for family, found in answer.isoflop.items()
    }
    marks = [one for parabolas in good.values() for one in parabolas]
    if not marks:
        return None
    kinds = styles(answer.families)
    plot = Plot(
        Axis.around([one.flops for one in marks], "training FLOPs", log=True, kind="flops"),
        Axis.around(
            [one.n_best for one in marks if one.n_best is not None],
            "best N",
            log=True,
            kind="count",
        ),
        "IsoFLOP: best size at each compute budget",
        height=300,
    )
    told = []
    for family, parabolas in good.items():
        style, found = kinds[family], answer.isoflop[family]
        plot.line(
            [one.flops for one in parabolas],
            [one.n_best or math.nan for one in parabolas],
            style.colour,
            style.dash,
            1.2,
        )
        for one in parabolas:
            best = one.n_best or math.nan
            title = (
                f"{family}: N {short_count(best)} at {power_of_ten(one.flops)} FLOPs, loss "
                f"{one.loss_best:.4f}"
            )
            plot.point(one.flops, best, style.colour, style.marker, title)
        if found.exponent is None or found.interval is None:
            told.append(f"{family} {found.status}: {'; '.join(found.reasons)}")
        else:
            low, high = found.interval
            told.append(
                f"{family}: best N grows as C to the {found.exponent:.2f} [{low:.2f}, {high:.2f}]"
            )
    return Figure(
        "isoflop",
        "IsoFLOP: best size at each compute budget",
        f"{'. '.join(told)}. A secondary estimate: parabolas are biased, the more so the farther their "
        "points lie from the minimum.",
        plot.svg(),
        {name: kinds[name] for name in good},
    )


def hold_out(answer: StudyReport) -> Figure | None:
    """The largest size as observed, and as predicted from the smaller ones."""
    cells = answer.comparison.hold_out.cells
    if not cells:
        return None
    kinds = styles(answer.families)
    order = sorted(cells, key=lambda c: (c.tokens, answer.families.index(c.family)))
    values = [
        v
        for cell in order
        for v in (
            100 * (cell.low / cell.predicted - 1),
            100 * (cell.high / cell.predicted - 1),
            cell.error_percent,
        )
    ]
    plot = Plot(
        Axis.around([*values, 0.0], "observed over predicted loss (%)"),
        Axis(len(order) - 0.5, -0.5, ""),
        "The largest size predicted from the smaller ones",
        height=70 + 25.0 * len(order),
        rows=[f"{cell.family}, {short_count(cell.tokens)} tok" for cell in order],
    )
    plot.rule(x=0)
    for index, cell in enumerate(order):
        style = kinds[cell.family]
        low, high = (100 * (end / cell.predicted - 1) for end in (cell.low, cell.high))
        plot.interval(0, index, low, high, "#9aa5b1", across=True)
        title = (
            f"{cell.family} N {short_count(cell.n)}: observed {cell.observed:.4f}, predicted "
            f"{cell.predicted:.4f} [{cell.low:.4f}, {cell.high:.4f}]"
        )
        plot.point(cell.error_percent, index, style.colour, style.marker, title, 5)
    return Figure(
        "hold_out",
        "The largest size, predicted from the others",
        "Grey: 95% interval of a new shape's loss around the prediction at 0. Marks: what was observed.",
        plot.svg(),
        {},
    )


def residuals(answer: StudyReport) -> Figure | None:
    """Mean residual of each shape: what the law does not explain."""
    table = answer.table.dropna(subset=["residual"])
    if table.empty:
        return None
    kinds = styles(answer.families)
    means = table.groupby(["family", "shape"], sort=False).agg(
        n=("n", "mean"), residual=("residual", "mean"), runs=("residual", "size")
    )
    percent = 100 * table["residual"]
    plot = Plot(
        Axis.around(list(table["n"]), "N = FLOPs per token / 6", log=True, kind="count"),
        Axis.around([*percent, 0.0], "residual of the loss (%)"),
        "Residuals by shape",
        height=300,
    )
    plot.rule(y=0)
    for row in table.to_dict("records"):
        plot.point(
            row["n"],
            100 * row["residual"],
            kinds[row["family"]].colour + "66",
            kinds[row["family"]].marker,
            run_title(row),
            2,
        )
    for name in answer.families:
        if name not in means.index.get_level_values(0):
            continue
        own = pd.DataFrame(means.loc[name]).sort_values("n")
        style = kinds[name]
        plot.line(list(own["n"]), list(100 * own["residual"]), style.colour, style.dash, 1.1)
        for label, n, mean, runs in own.itertuples():
            title = f"{name} {label}: {mean:+.2%} on average over {runs} runs"
            plot.point(n, 100 * mean, style.colour, style.marker, title, 5)
    return Figure(
        "residuals",
        "Residuals by shape",
        "Small: runs. Large: mean of a shape, observed above the joint law if positive. A trend within a "
        "family says that the law does not fit it; one shape far off, that its learning rate may not.",
        plot.svg(),
        kinds,
    )
