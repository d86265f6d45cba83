"""Marks of charts, their combination, and interactions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from slm.charts.encodings import (
    Axis,
    Rows,
    Series,
    data,
    literal_colour,
    series_choice,
    tooltips,
)
from slm.charts.theme import INK, MUTED, PAPER

GROUP_END = "\N{ZERO WIDTH SPACE}"  # between group and row in the key of a row; not drawn
LABEL_LIMIT = 300  # pixels of the names of rows
BAR = 2.2  # width of an interval in pixels
MODIFIER = "event.ctrlKey || event.metaKey || event.shiftKey"


def points(
    rows: Rows,
    x: Axis,
    y: Axis,
    series: Series,
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
            tooltip=tooltips(rows),
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


def intervals(rows: Rows, x: Axis, y: Axis) -> Any:
    """Return upright bars from the column `low` to `high`, a diamond at `y`, in the `colour` of each row."""
    import altair

    ends = [{**row, "y": row[end]} for row in rows for end in ("low", "high")]
    bars = altair.Chart(data(rows)).mark_rule(strokeWidth=BAR)
    ticks = altair.Chart(data(ends)).mark_tick(
        thickness=BAR, size=10, opacity=1, orient="horizontal"
    )
    marks = altair.Chart(data(rows)).mark_point(filled=True, shape="diamond", size=90, opacity=1)
    shared = {"color": literal_colour(), "tooltip": tooltips(rows)}
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


def forest(rows: Rows, x: Axis, rules: Mapping[float, Sequence[float]]) -> Any:
    """Return a forest plot: one row per estimate, with its interval.

    Columns: `row` (label), `x`, `low` and `high` (each may be None), `colour` of the bar, `mark` (colour), `shape`.
    An interval without an estimate is dashed, an estimate without an interval is hollow. With a column `group`, the
    rows of each group stand below its name; a value of the column `reference` is a grey tick.

    Args:
        rules: value of x -> dash of a vertical line there.
    """
    import altair

    rows = [{**row, "row": _row_name(row)} for row in rows]
    y = _forest_y(rows)
    references = [
        {"row": row["row"], "x": row["reference"]}
        for row in rows
        if row.get("reference") is not None
    ]
    shared = {"y": y, "tooltip": tooltips(rows)}
    with_interval = [
        {**row, "dash": [3, 4] if row["x"] is None else [1, 0]}
        for row in rows
        if row["low"] is not None
    ]
    ends = [{**row, "x": row[end]} for row in with_interval for end in ("low", "high")]
    marks = [
        {**row, "fill": PAPER if row["low"] is None else row["mark"]}
        for row in rows
        if row["x"] is not None
    ]
    bars = altair.Chart(data(with_interval)).mark_rule(strokeWidth=BAR)
    ticks = altair.Chart(data(ends)).mark_tick(thickness=BAR, size=10, opacity=1, orient="vertical")
    dash = altair.StrokeDash("dash", type="nominal", scale=None)
    shape = altair.Shape("shape", type="nominal", scale=None)
    fill = altair.Fill("fill", type="nominal", scale=None)
    stroke = altair.Stroke("mark", type="nominal", scale=None)
    return altair.layer(
        *(rule(x=value, dash=pattern) for value, pattern in rules.items()),
        altair.Chart(data(references))
        .mark_tick(thickness=BAR, size=18, color=MUTED, orient="vertical")
        .encode(x=x.x(), y=y),
        bars.encode(x=x.x("low"), x2="high", color=literal_colour(), strokeDash=dash, **shared),
        ticks.encode(x=x.x(), color=literal_colour(), **shared),
        altair.Chart(data(marks))
        .mark_point(size=70, strokeWidth=1.8, opacity=1)
        .encode(x=x.x(), shape=shape, fill=fill, stroke=stroke, **shared),
    )


def _row_name(row: Mapping[str, Any]) -> str:
    return f"{row['group']}{GROUP_END}{row['row']}" if "group" in row else str(row["row"])


def _forest_y(rows: Rows) -> Any:
    """Return the encoding of the rows, with a line for the name of each group above its rows."""
    import altair

    if not rows or "group" not in rows[0]:
        return altair.Y("row", type="nominal", sort=None, title=None, axis=altair.Axis(grid=True))
    names: dict[str, None] = {}
    for row in rows:
        names |= {row["group"]: None, row["row"]: None}
    is_group = f"indexof(datum.label, '{GROUP_END}') < 0"
    axis = altair.Axis(
        grid=True,
        labelExpr=f"{is_group} ? datum.label : split(datum.label, '{GROUP_END}')[1]",
        labelFontWeight={"condition": {"test": is_group, "value": "bold"}, "value": "normal"},
        labelLimit=LABEL_LIMIT,
    )
    scale = altair.Scale(domain=list(names))
    return altair.Y("row", type="nominal", sort=None, title=None, axis=axis, scale=scale)


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
