"""Marks of charts, their combination, and interactions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from slm.charts.encodings import (
    Axis,
    Rows,
    Series,
    Tooltip,
    data,
    literal_colour,
    series_choice,
    tooltips,
)
from slm.charts.theme import INK, PAPER

MODIFIER = "event.ctrlKey || event.metaKey || event.shiftKey"


def points(
    rows: Rows,
    x: Axis,
    y: Axis,
    series: Series,
    tooltip: Tooltip,
    *,
    size: float = 45,
    opacity: float = 1,
    filled: bool = True,
) -> Any:
    """Return points at the columns `x` and `y`, coloured and shaped by series."""
    import altair

    return (
        altair.Chart(data(rows))
        .mark_point(filled=filled, size=size, strokeWidth=1.5)
        .encode(
            x=x.x(),
            y=y.y(),
            **series.encodings("color", "shape"),
            opacity=series.opacity(opacity),
            tooltip=tooltips(tooltip),
        )
    )


def lines(rows: Rows, x: Axis, y: Axis, series: Series, *, width: float = 1.5) -> Any:
    """Return one line per value of the column `group`, coloured and dashed by series."""
    import altair

    return (
        altair.Chart(data(rows))
        .mark_line(strokeWidth=width)
        .encode(
            x=x.x(),
            y=y.y(),
            **series.encodings("color", "strokeDash"),
            detail=altair.Detail("group", type="nominal"),
            opacity=series.opacity(1),
        )
    )


def bands(rows: Rows, x: Axis, y: Axis, series: Series) -> Any:
    """Return uncertainty bands between the columns `low` and `high`, one per value of `group`."""
    import altair

    return (
        altair.Chart(data(rows))
        .mark_area()
        .encode(
            x=x.x(),
            y=y.y("low"),
            y2="high",
            **series.encodings("color"),
            detail=altair.Detail("group", type="nominal"),
            opacity=series.opacity(0.16),
        )
    )


def rule(
    *,
    x: float | None = None,
    y: float | None = None,
    dash: Sequence[float] = (1, 0),
    colour: str = INK,
) -> Any:
    """Return a line across the plot at a value of x or y."""
    import altair

    place = {"x": altair.datum(x)} if x is not None else {"y": altair.datum(y)}
    mark = altair.Chart(data([{}])).mark_rule(color=colour, strokeDash=list(dash), strokeWidth=1)
    return mark.encode(**place)


def tint(low: float, high: float, colour: str) -> Any:
    """Return a tint between two values of y over the whole width."""
    import altair

    mark = altair.Chart(data([{}])).mark_rect(color=colour, opacity=0.07)
    return mark.encode(y=altair.datum(low), y2=altair.datum(high))


def intervals(rows: Rows, x: Axis, y: Axis, tooltip: Tooltip) -> Any:
    """Return upright bars from the column `low` to `high`, a diamond at `y`, in the `colour` of each row."""
    import altair

    ends = [{**row, "y": row[end]} for row in rows for end in ("low", "high")]
    bars = altair.Chart(data(rows)).mark_rule(strokeWidth=2.2)
    ticks = altair.Chart(data(ends)).mark_tick(thickness=2.2, size=10, orient="horizontal")
    marks = altair.Chart(data(rows)).mark_point(filled=True, shape="diamond", size=90, opacity=1)
    shared = {"color": literal_colour(), "tooltip": tooltips(tooltip)}
    return altair.layer(
        bars.encode(x=x.x(), y=y.y("low"), y2="high", **shared),
        ticks.encode(x=x.x(), y=y.y(), color=literal_colour()),
        marks.encode(x=x.x(), y=y.y(), **shared),
    )


def labels(rows: Rows, x: Any, y: Any, colour: str = INK, **options: Any) -> Any:
    """Return the text of the column `text` with an outline, so that it is readable over lines."""
    import altair

    base = altair.Chart(data(rows)).encode(x=x, y=y, text=altair.Text("text", type="nominal"))
    settings = {"fontSize": 12, "align": "left", **options}
    outline = base.mark_text(stroke=PAPER, strokeWidth=3, strokeJoin="round", **settings)
    return altair.layer(outline, base.mark_text(color=colour, **settings))


def forest(rows: Rows, x: Axis, tooltip: Tooltip, *, rules: Mapping[float, Sequence[float]]) -> Any:
    """Return a forest plot: one row per estimate, with its interval.

    Columns: `row` (label), `x`, `low` and `high` (each may be None), `colour` of the bar, `mark` (colour), `shape`,
    `hollow`, and those of the tooltip. An interval without an estimate is dashed.

    Args:
        rules: value of x -> dash of a vertical line there.
    """
    import altair

    y = altair.Y("row", type="nominal", sort=None, title=None, axis=altair.Axis(grid=True))
    with_interval = [row for row in rows if row.get("low") is not None]
    ends = [{**row, "x": row[end]} for row in with_interval for end in ("low", "high")]
    layers = [rule(x=value, dash=dash) for value, dash in rules.items()]
    for dashed in (False, True):
        shown = [row for row in with_interval if (row.get("x") is None) == dashed]
        bars = altair.Chart(data(shown)).mark_rule(
            strokeWidth=2.2, strokeDash=[3, 4] if dashed else [1, 0]
        )
        layers.append(
            bars.encode(
                x=x.x("low"), x2="high", y=y, color=literal_colour(), tooltip=tooltips(tooltip)
            )
        )
    ticks = altair.Chart(data(ends)).mark_tick(thickness=2.2, size=10, orient="vertical")
    layers.append(ticks.encode(x=x.x(), y=y, color=literal_colour()))
    for hollow in (False, True):
        shown = [
            row for row in rows if row.get("x") is not None and bool(row.get("hollow")) == hollow
        ]
        marks = altair.Chart(data(shown)).mark_point(
            filled=not hollow, size=70, strokeWidth=1.8, opacity=1
        )
        shape = altair.Shape("shape", type="nominal", scale=None)
        layers.append(
            marks.encode(
                x=x.x(),
                y=y,
                color=literal_colour("mark"),
                shape=shape,
                tooltip=tooltips(tooltip),
            )
        )
    return altair.layer(*layers)


def panels(
    charts: Mapping[str, Any], *, columns: int = 4, width: int = 300, height: int = 240
) -> Any:
    """Return charts side by side, each with its title and its own legend; for files, not for pages."""
    import altair

    sized = [
        chart.properties(title=title, width=width, height=height) for title, chart in charts.items()
    ]
    chart = altair.concat(*sized, columns=columns)
    return chart.resolve_scale(color="independent", shape="independent", strokeDash="independent")


def layered(*layers: Any, series: Series | None = None) -> Any:
    """Return the layers as one chart; the last layer has the interactions and the legend."""
    import altair

    drawn = [layer for layer in layers if layer is not None]
    if series is None or series.interactive:
        drawn[-1] = interactive(drawn[-1], series)
    # else the absent legend of dashes would remove that of colours
    return altair.layer(*drawn).resolve_legend(strokeDash="independent")


def interactive(chart: Any, series: Series | None = None) -> Any:
    """Add interactions to a chart with one view.

    A click on a legend entry highlights its series. With Ctrl, Cmd or Shift, the wheel zooms and a drag moves the
    plot; a double click resets it. Without them, the wheel scrolls the page.
    """
    import altair

    zoom = altair.selection_interval(
        name="zoom",
        bind="scales",
        zoom=f"wheel![{MODIFIER}]",
        on=f"[pointerdown[{MODIFIER}], window:pointerup] > window:pointermove!",
        translate=f"[pointerdown[{MODIFIER}], window:pointerup] > window:pointermove!",
    )
    params = [zoom]
    if series is not None and series.is_selectable:
        params.append(series_choice())
    return chart.properties(name="marks").add_params(*params)
