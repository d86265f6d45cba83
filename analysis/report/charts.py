"""The charts of the HTML report, each from a `StudyReport`; None where there is nothing to draw."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any

import pandas as pd

from analysis.compare.exponents import EQUIVALENT
from analysis.compare.matched_pairs import Contrast
from analysis.formatting import format_p_value, power_of_ten, short_count
from analysis.plotting import BLUE, GREEN, NEUTRAL, ORANGE, PURPLE, SKY, VERMILLION
from analysis.report.study_report import StudyReport
from analysis.report.svg import INK, WIDTH, Axis, Plot, shape

STYLES = (
    (BLUE, "o", ""),
    (VERMILLION, "s", "7 4"),
    (GREEN, "^", "2 3"),
    (PURPLE, "D", "9 3 2 3"),
    (ORANGE, "v", "4 2"),
    (SKY, "o", "1 2"),
)
BUDGET_MARKERS = ("^", "D", "s", "v", "o")
LIGHTEST, DARKEST = 176, 24  # grey of the smallest and the largest token budget
MOST_CURVES = 5  # token budgets; above, lines would hide the runs


@dataclass(frozen=True)
class Style:
    colour: str
    marker: str
    dash: str = ""


@dataclass(frozen=True, repr=False)
class Figure:
    """A chart with what stands around it. `legend`: label -> style."""

    name: str
    title: str
    caption: str
    svg: str
    legend: Mapping[str, Style]

    def __repr__(self) -> str:
        return f"Figure({self.title!r})"

    def _repr_html_(self) -> str:
        """In a notebook."""
        head = f"<b>{escape(self.title)}</b>{legend(self.legend)}"
        return f'<div style="max-width:560px">{head}{self.svg}<small>{escape(self.caption)}</small></div>'


def styles(names: Sequence[str]) -> dict[str, Style]:
    """A style for each family, the deep one's first."""
    return {name: Style(*STYLES[index % len(STYLES)]) for index, name in enumerate(names)}


def budget_styles(budgets: Sequence[float]) -> dict[float, Style]:
    """From light to dark with the token budget."""
    steps = max(len(budgets) - 1, 1)
    found = {}
    for index, budget in enumerate(budgets):
        grey = round(LIGHTEST + (DARKEST - LIGHTEST) * index / steps) if len(budgets) > 1 else 60
        marker = BUDGET_MARKERS[index % len(BUDGET_MARKERS)]
        found[budget] = Style(f"rgb({grey},{grey},{min(grey + 14, 255)})", marker)
    return found


def run_title(row: Mapping[Any, Any]) -> str:
    """What hovering a run says."""
    told = (
        f"{row['family']} {row['shape']}, seed {row['seed']}: {row['loss_nats_per_token']:.4f} nats"
    )
    told += f"\nN {short_count(row['n'])}, {short_count(row['tokens'])} tokens, "
    return f"{told}{power_of_ten(row['flops'], 3)} FLOPs\n{row['run_id']}"


def loss_against_flops(answer: StudyReport) -> Figure:
    table, kinds = answer.table, styles(answer.families)
    curves = answer.curves if len(answer.tokens_per_param) <= MOST_CURVES else ()
    losses = [*table["loss_nats_per_token"], *(v for c in curves for v in (*c.low, *c.high))]
    span = Axis.around(losses, "loss (nats per token)", log=True)
    plot = Plot(
        Axis.around(list(table["flops"]), "training FLOPs", log=True, kind="flops"),
        replace(
            span, high=span.high * (span.high / span.low) ** 0.05
        ),  # room for the budgets' names
        "Loss against training FLOPs, a mark a run",
    )
    for curve in curves:
        style = kinds[curve.family]
        plot.band(list(curve.flops), list(curve.low), list(curve.high), style.colour)
        plot.line(list(curve.flops), list(curve.loss), style.colour, style.dash, 1.6)
    if not curves and len(answer.tokens_per_param) <= MOST_CURVES:
        for (family, _), rows in table.groupby(["family", "tokens_per_param"], sort=False):
            cells = rows.groupby("shape", sort=False)[["flops", "loss_nats_per_token"]].mean()
            cells = cells.sort_values("flops")
            style = kinds[str(family)]
            plot.line(list(cells["flops"]), list(cells.iloc[:, 1]), style.colour, style.dash, 1.2)
    for row in table.to_dict("records"):
        style = kinds[row["family"]]
        plot.point(
            row["flops"],
            row["loss_nats_per_token"],
            style.colour,
            style.marker,
            run_title(row),
            3.6,
        )
    if len(answer.tokens_per_param) <= MOST_CURVES:
        _name_budgets(plot, table)
    band = "lines and bands: the joint law and its 95% interval (jackknife over shapes); " * bool(
        curves
    )
    return Figure(
        "loss",
        "Loss against compute",
        f"A mark a run, {band}D/N: tokens_per_param. Hover a mark for its shape and run id.",
        plot.svg(),
        kinds,
    )


def _name_budgets(plot: Plot, table: pd.DataFrame) -> None:
    """Each where fewest runs are in the way: before or after the first or the last run of its budget."""
    marks = [
        (plot.px(x), plot.py(y))
        for x, y in zip(table["flops"], table["loss_nats_per_token"], strict=True)
    ]
    for budget, rows in table.groupby("tokens_per_param"):
        ordered = rows.sort_values("flops")[["flops", "loss_nats_per_token"]].to_numpy()
        first, last = ((plot.px(x), plot.py(y)) for x, y in ordered[[0, -1]])
        said = f"D/N {float(str(budget)):g}"
        wide = 7.5 * len(said)
        places = [
            (first[0] - 14, first[1] - 14),
            (last[0] + 9, last[1] - 8),
            (last[0] - 14, last[1] - 16),
            (first[0] - wide, first[1] + 24),
            (last[0] - wide, last[1] + 26),
        ]
        inside = [
            (x, y)
            for x, y in places
            if plot.left < x < WIDTH - plot.right - wide and y < plot.height - plot.bottom - 4
        ]

        def crowd(place: tuple[float, float], wide: float = wide) -> int:
            x, y = place
            return sum(x - 6 < a < x + wide + 6 and y - 18 < b < y + 6 for a, b in marks)

        x, y = min(inside or places, key=crowd)
        plot.text(x, y, said, INK, pixels=True, size=12)


def differences(answer: StudyReport) -> Figure | None:
    matched = answer.comparison.matched
    if matched is None:
        return None
    kinds, grey = styles(answer.families), budget_styles(answer.tokens_per_param)
    summary = matched.summary
    shown = [*matched.pairs["difference_at_equal_flops"], 0.0]
    limits = summary[["largest_low", "largest_high"]].to_numpy().ravel()
    reach = 4 * max(abs(value) for value in shown) or 1.0
    shown += [float(min(max(v, -reach), reach)) for v in limits if math.isfinite(v)]
    xs = Axis.around(list(matched.pairs["flops"]), "training FLOPs", log=True, kind="flops")
    plot = Plot(
        replace(xs, high=xs.high * (xs.high / xs.low) ** (0.03 + 0.02 * min(len(summary), 10))),
        _roomy(Axis.around(shown, "difference (nats per token)")),
        "Paired differences of loss at matched FLOPs",
    )
    plot.area(0, plot.y.high, kinds[matched.wide].colour)
    plot.area(plot.y.low, 0, kinds[matched.deep].colour)
    plot.rule(y=0)
    at_top = plot.top + 15
    plot.text(
        plot.left + 6, at_top, f"{matched.wide} better", kinds[matched.wide].colour, pixels=True
    )
    plot.text(
        plot.left + 6,
        plot.height - plot.bottom - 7,
        f"{matched.deep} better",
        kinds[matched.deep].colour,
        pixels=True,
    )
    ends: list[float] = []
    for budget, rows in matched.pairs.groupby("tokens_per_param"):
        ends.append(plot.px(rows["flops"].max()))
        beside = sum(
            abs(ends[-1] - other) < 6 for other in ends
        )  # bars at one place stand side by side
        style = grey.get(float(str(budget)), Style(NEUTRAL, "o"))
        _one_budget(plot, matched, rows, style, 11.0 * beside)
    return Figure(
        "differences",
        "The same FLOPs, the other shape",
        f"Loss of {matched.deep} minus that of {matched.wide}. A mark a pair of shapes with equal tokens, corrected to equal FLOPs; seeds averaged. Bars: 95% "
        "interval at the largest FLOPs of each budget, from the scatter over pairs.",
        plot.svg(),
        {f"D/N {budget:g}": style for budget, style in grey.items()} if len(grey) < 10 else {},
    )


def _one_budget(
    plot: Plot, matched: Contrast, pairs: pd.DataFrame, style: Style, shift: float
) -> None:
    plot.line(
        list(pairs["flops"]), list(pairs["difference_at_equal_flops"]), style.colour, "2 3", 1.1
    )
    for row in pairs.to_dict("records"):
        at_equal = row["difference_at_equal_flops"]
        title = (
            f"size {short_count(row['size'])}, tokens_per_param {row['tokens_per_param']:g}\n{matched.deep} "
            f"{row['loss_nats_per_token_deep']:.4f}, {matched.wide} "
            f"{row['loss_nats_per_token_wide']:.4f}: {at_equal:+.4f} at equal FLOPs"
        )
        plot.point(row["flops"], at_equal, style.colour, style.marker, title)
    end = matched.summary[
        matched.summary["tokens_per_param"] == pairs["tokens_per_param"].iloc[0]
    ].iloc[0]
    if not math.isfinite(end["largest_low"]):
        return
    at, value, low, high = (
        end[key] for key in ("largest_flops", "largest", "largest_low", "largest_high")
    )
    plot.interval(at, value, low, high, style.colour, shift=shift)
    title = (
        f"D/N {end['tokens_per_param']:g}, at the largest FLOPs: {value:+.4f} [{low:+.4f}, {high:+.4f}], "
        f"{format_p_value(end['largest_p_holm'])} by Holm"
    )
    plot.point(at, value, style.colour, "o", title, 3, shift=(shift, 0))


def _roomy(axis: Axis) -> Axis:
    """With room for words above and below."""
    span = axis.high - axis.low
    return replace(axis, low=axis.low - 0.09 * span, high=axis.high + 0.09 * span)


def alphas(answer: StudyReport) -> Figure | None:
    """Exponents per family. Where they are not identified, the accepted range and no estimate."""
    one, kinds = answer.comparison.exponents, styles(answer.families)
    if one.refused:
        return None
    told = one.status != "UNIDENTIFIED"
    ends = {
        name: one.alpha_intervals[name] if told else one.accepted_alpha(name)
        for name in answer.families
        if name in one.alpha
    }
    values = [value for pair in ends.values() for value in pair]
    plot = Plot(
        Axis.around(values, "alpha (loss falls as N to the minus alpha)"),
        Axis(len(ends) - 0.5, -0.5, ""),
        "Exponent of each family",
        height=84 + 40.0 * len(ends),
        rows=list(ends),
    )
    for index, (name, (low, high)) in enumerate(ends.items()):
        style = kinds[name]
        if not told:
            plot.interval(0, index, low, high, style.colour, across=True, dash="3 4")
            plot.text(
                plot.px(low) + 6,
                plot.py(index) - 8,
                "not identified: all of this is accepted",
                style.colour,
                pixels=True,
            )
            continue
        plot.interval(0, index, low, high, style.colour, across=True)
        title = f"alpha {name} = {one.alpha[name]:.4f} [{low:.4f}, {high:.4f}]"
        plot.point(one.alpha[name], index, style.colour, style.marker, title, 5)
    return Figure(
        "alphas",
        "Exponent of each family",
        f"Joint law, E, B and beta shared; loss in nats against N = FLOPs per token / 6. 95% by the "
        f"jackknife over shapes. Status {one.status}."
        if told
        else "Status UNIDENTIFIED: there is no estimate. Dashed: the range of exponents that the runs accept.",
        plot.svg(),
        {},
    )


def exponent_difference(answer: StudyReport) -> Figure | None:
    """The difference of exponents, and how it fares under every other way to take it."""
    found = answer.comparison
    one = found.exponents
    if one.refused or one.status == "UNIDENTIFIED":
        return None
    rows: list[tuple[str, float | None, tuple[float, float] | None, str]] = []
    for name, other in found.by_definition.items():
        usable = other.status != "UNIDENTIFIED"
        called = {"params_non_embedding": "non-embedding", "params_total": "all parameters"}.get(
            name, name
        )
        value, ends = (other.difference, other.interval) if usable else (None, other.profile)
        rows.append((called, value, ends, f"{name}: {other.difference_text}"))
    rows.append(
        ("profile", one.difference, one.profile, "profile likelihood, widened to the jackknife")
    )
    if one.without is not None:
        left_out, value = one.without
        rows.append(("one shape less", value, None, f"without {left_out}: {value:+.4f}"))
    if one.fit is not None:
        for delta, values in one.fit.by_delta.items():
            if math.isfinite(delta):
                value = values[f"alpha[{found.deep}]"] - values[f"alpha[{found.wide}]"]
                rows.append(
                    (f"Huber {delta:g}", value, None, f"Huber's delta {delta:g}: {value:+.4f}")
                )
    marks = [v for _, value, ends, _ in rows for v in (value, *(ends or ())) if v is not None]
    plot = Plot(
        Axis.around([*marks, 0.0], f"alpha {found.deep} minus alpha {found.wide}"),
        Axis(len(rows) - 0.5, -0.5, ""),
        "Difference of exponents under every definition",
        height=70 + 27.0 * len(rows),
        rows=[row[0] for row in rows],
    )
    plot.rule(x=0)
    for edge in (-EQUIVALENT, EQUIVALENT):
        plot.rule(x=edge, dash="2 4")
    for index, (_, value, ends, title) in enumerate(rows):
        colour = INK if index == 0 else "#6b7682"
        if ends is not None:
            dash = "" if value is not None else "3 4"
            plot.interval(0, index, *ends, colour, across=True, dash=dash)
        if value is not None:
            plot.point(value, index, colour, "o" if ends else "D", title, 4.5, hollow=ends is None)
    return Figure(
        "difference",
        "Their difference, however it is taken",
        f"First row: the primary estimate. Right of 0 {found.deep} gains with size. Dotted: within "
        f"{EQUIVALENT:g} exponents count as equal. The definitions of N must agree; they are not further "
        "chances.",
        plot.svg(),
        {},
    )


def legend(entries: Mapping[str, Style]) -> str:
    """As HTML, so that it wraps on a phone."""
    items = []
    for label, style in entries.items():
        line = f'<line x1="1" y1="8" x2="31" y2="8" stroke="{style.colour}" stroke-width="2"'
        mark = shape(style.marker, 16, 8, 4.5, style.colour, style.colour)
        items.append(
            f'<span style="margin-right:1em"><svg class="key" width="32" height="16" viewBox="0 0 32 16" aria-hidden="true">{line} '
            f'stroke-dasharray="{style.dash}"/>{mark}</svg>{escape(label)}</span>'
        )
    return f'<div class="legend">{"".join(items)}</div>' if items else ""
