"""Chart theme, encodings and rendering, for Vega-Lite charts that are built with Altair.

Charts name their colours as CSS variables, e.g. `var(--series-1)`. A page defines the variables once
(`css_variables`), so that its charts follow the light, dark and print themes; files and notebooks get literal
colours (`literal`). Rows of chart data have fixed column names (`x`, `y`, `low`, `high`, `series`, ...) because
Vega-Lite interprets dots and brackets in a field name. Altair and vl_convert are imported inside functions:
both are slow to import.
"""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, Self

Theme = Literal["light", "dark"]
Kind = Literal["number", "flops", "count", "scientific"]
Rows = Sequence[Mapping[str, Any]]
Tooltip = Mapping[str, str]
"""Column name -> title in the tooltip."""

INK, MUTED, GRID, PAPER = "var(--ink)", "var(--muted)", "var(--grid)", "var(--paper)"
# Okabe-Ito colours, distinguishable with colour blindness; orange and sky blue are darkened, or lightened in the
# dark theme, so that each has a contrast of at least 3:1 with the paper. `budget`: from small to large budgets.
LIGHT = {
    "paper": "#ffffff",
    "ink": "#1f2933",
    "muted": "#52606d",
    "grid": "#d9dee4",
    "series-1": "#0072b2",
    "series-2": "#d55e00",
    "series-3": "#009e73",
    "series-4": "#c2649a",
    "series-5": "#a87400",
    "series-6": "#2e8fc7",
    "budget-1": "#8393a4",
    "budget-2": "#728292",
    "budget-3": "#627181",
    "budget-4": "#526070",
    "budget-5": "#414f5f",
    "budget-6": "#313e4e",
    "budget-7": "#202d3c",
    "budget-8": "#101c2b",
}
DARK = {
    "paper": "#12171d",
    "ink": "#e6ebf0",
    "muted": "#9aa7b4",
    "grid": "#2d3741",
    "series-1": "#4fa8e0",
    "series-2": "#f2884b",
    "series-3": "#2cc29a",
    "series-4": "#e6a5c8",
    "series-5": "#e8b84a",
    "series-6": "#a9dbfa",
    "budget-1": "#607387",
    "budget-2": "#728395",
    "budget-3": "#8493a4",
    "budget-4": "#95a3b2",
    "budget-5": "#a7b4c0",
    "budget-6": "#b9c4cf",
    "budget-7": "#dce4ec",
    "budget-8": "#eef4fa",
}
SERIES, BUDGETS = 6, 8  # numbers of series and budget colours
SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross")
DASHES = ((1, 0), (7, 4), (2, 3), (9, 3, 2, 3), (4, 2), (1, 2))
MAX_LEGEND = 12  # entries; a longer legend is larger than the chart
LEGEND_COLUMNS = 4
FADED = 0.12  # relative opacity of the series that are not selected in the legend
WIDTH, HEIGHT = 540, 320  # pixels, without the axes
PIXEL_SCALE = 2
DIGITS = 7  # of the numbers in a chart; more make pages larger and are not visible
CAPTION_CHARACTERS = 92  # per line of a caption under the title
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
FILE_FONT = "DejaVu Sans, Liberation Sans, Arial, sans-serif"  # with superscript digits
MODIFIER = "event.ctrlKey || event.metaKey || event.shiftKey"


def css_variables() -> str:
    """Return the CSS that defines the colours of charts for the light, dark and print themes."""

    def block(colours: Mapping[str, str]) -> str:
        return ":root{" + "".join(f"--{name}:{value};" for name, value in colours.items()) + "}"

    light, dark = block(LIGHT), block(DARK)
    return f"{light}\n@media (prefers-color-scheme:dark){{{dark}}}\n@media print{{{light}}}\n"


def literal(spec: Any, theme: Theme = "light") -> Any:
    """Return a copy of a chart specification with literal colours instead of CSS variables."""
    colours = LIGHT if theme == "light" else DARK
    if isinstance(spec, Mapping):
        return {key: literal(value, theme) for key, value in spec.items()}
    if isinstance(spec, list | tuple):
        return [literal(value, theme) for value in spec]
    if isinstance(spec, str) and spec.startswith("var(--") and spec.endswith(")"):
        return colours.get(spec[6:-1], spec)
    return spec


def theme_config() -> dict[str, Any]:
    """Return the Vega-Lite config of all charts: fonts, sizes, and colours of axes and legends."""
    text = {"labelColor": INK, "titleColor": INK, "labelFontSize": 12, "titleFontSize": 13}
    title = {"anchor": "start", "color": INK, "fontSize": 15, "subtitleColor": MUTED, "offset": 12}
    return {
        "background": "transparent",
        "font": FONT,
        "view": {"stroke": None},
        "axis": {
            **text,
            "gridColor": GRID,
            "tickColor": GRID,
            "domainColor": MUTED,
            "titleFontWeight": "normal",
            "titlePadding": 8,
            "labelLimit": 260,
            "titleLimit": 420,
        },
        "legend": {
            **text,
            "orient": "top",
            "titleOrient": "left",
            "titlePadding": 10,
            "titleFontWeight": "normal",
            "title": None,
            "symbolSize": 90,
            "symbolStrokeWidth": 1.5,
            "symbolOpacity": 1,
            "symbolBaseFillColor": INK,
            "symbolBaseStrokeColor": INK,
            "offset": 8,
            "labelLimit": 240,
        },
        "title": {**title, "subtitleFontSize": 12, "subtitlePadding": 6},
        "header": {"labelColor": INK, "labelFontSize": 13, "labelFontWeight": "bold"},
    }


@dataclass(frozen=True, repr=False)
class Figure:
    """A chart with its title and caption; a notebook displays it.

    Attributes:
        name: id in a page and file stem.
        chart: an Altair chart, without size if a single view or layers; panels side by side have a size.
    """

    name: str
    title: str
    caption: str
    chart: Any
    height: int = HEIGHT

    def __repr__(self) -> str:
        return f"Figure({self.name!r}: {self.title})"

    def spec(self) -> dict[str, Any]:
        """Return the Vega-Lite JSON for a page: as wide as its element, colours as CSS variables.

        Panels side by side keep their fixed width, because Vega-Lite cannot fit them to an element.
        """
        return self._spec("container")

    def file_spec(self, theme: Theme = "light", *, titled: bool = True) -> dict[str, Any]:
        """Return the Vega-Lite JSON with fixed size and literal colours, for a file or a notebook."""
        spec = literal(self._spec(WIDTH), theme)
        config = spec["config"]
        config.update(background=literal(PAPER, theme), padding=12, font=FILE_FONT)
        if titled:
            spec["title"] = {"text": self.title}
        return dict(spec)

    def save(self, path: Path, theme: Theme = "light", *, titled: bool = True) -> None:
        """Write the chart to a .png or .svg file."""
        import vl_convert

        spec = self.file_spec(theme, titled=titled)
        version = _vega_lite_version()
        if path.suffix == ".svg":
            path.write_text(vl_convert.vegalite_to_svg(spec, vl_version=version), encoding="utf-8")
        else:
            path.write_bytes(
                vl_convert.vegalite_to_png(spec, vl_version=version, scale=PIXEL_SCALE)
            )

    def _spec(self, width: int | Literal["container"]) -> dict[str, Any]:
        spec: dict[str, Any] = self.chart.to_dict()
        spec["config"] = theme_config()
        if not spec.keys() & {"hconcat", "vconcat", "concat", "facet"}:
            spec.update(width=width, height=self.height)
        return spec

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        """Return an interactive chart, and a picture for viewers without Vega-Lite such as GitHub."""
        import vl_convert

        spec = self.file_spec()
        lines = textwrap.wrap(self.caption, CAPTION_CHARACTERS)
        spec["title"] = {"text": self.title, "subtitle": lines}
        version = _vega_lite_version()
        picture = vl_convert.vegalite_to_png(spec, vl_version=version, scale=PIXEL_SCALE)
        major = version.partition(".")[0]
        return {
            f"application/vnd.vegalite.v{major}+json": spec,
            "image/png": picture,
            "text/plain": repr(self),
        }


def _vega_lite_version() -> str:
    """Return the Vega-Lite version that the installed Altair writes, e.g. `6.1`."""
    import altair

    return altair.SCHEMA_VERSION.lstrip("v").rpartition(".")[0]


@cache
def page_script() -> str:
    """Return JavaScript that defines `vegaEmbed`, with Vega and Vega-Lite: 0.9 MB, no network needed.

    A page inlines it once, and draws each chart with
    `vegaEmbed(element, spec, {renderer: "svg", actions: false})`.
    """
    import vl_convert

    snippet = "window.vegaEmbed = vegaEmbed;"
    return vl_convert.javascript_bundle(snippet, vl_version=_vega_lite_version())


def script_json(value: Any) -> str:
    """Return JSON that is safe inside an HTML script element, whatever its strings contain."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


@dataclass(frozen=True)
class Axis:
    """Title, range and tick labels of an axis, and the encodings of the columns it shows.

    `kind` of tick labels: a plain number, FLOPs in powers of ten, a count such as 25k, or `2e-3`.
    `ticks`: values of the ticks; empty: chosen by Vega.
    """

    title: str
    low: float
    high: float
    log: bool = False
    kind: Kind = "number"
    ticks: tuple[float, ...] = ()

    @classmethod
    def around(
        cls,
        values: Iterable[float | None],
        title: str,
        *,
        log: bool = False,
        kind: Kind = "number",
        ticks: Sequence[float] = (),
        margin: float = 0.06,
    ) -> Self:
        """Return an axis over all finite values (above 0 if logarithmic), with a relative margin."""
        finite = [value for value in map(finite_or_none, values) if value is not None]
        ends = [math.log(value) if log else value for value in finite if value > 0 or not log]
        low, high = min(ends, default=0.0), max(ends, default=0.0)
        space = margin * (high - low) or (0.5 if log else abs(low) * 0.1 or 1.0)
        low, high = low - space, high + space
        if log:
            low, high = math.exp(low), math.exp(high)
        return cls(title, low, high, log, kind, tuple(map(float, ticks)))

    def share(self, share: float) -> float:
        """Return the value at a share of the axis: `low` at 0, `high` at 1."""
        if self.log:
            return float(self.low * (self.high / self.low) ** share)
        return self.low + share * (self.high - self.low)

    def extended(self, below: float, above: float) -> Self:
        """Return the axis with more space at its ends, as shares of its length."""
        return replace(self, low=self.share(-below), high=self.share(1 + above))

    def x(self, column: str = "x", **options: Any) -> Any:
        """Return the Altair encoding of a column on the horizontal axis."""
        import altair

        return altair.X(column, **self._options(), **options)

    def y(self, column: str = "y", **options: Any) -> Any:
        """Return the Altair encoding of a column on the vertical axis."""
        import altair

        return altair.Y(column, **self._options(), **options)

    def clip(self, value: float) -> float:
        """Return the value, or the end of the axis that it exceeds, as infinite intervals do."""
        return min(max(float(value), self.low), self.high)

    def _options(self) -> dict[str, Any]:
        import altair

        scale = altair.Scale(
            type="log" if self.log else "linear",
            domain=[self.low, self.high],
            nice=False,
            **(
                {} if self.log else {"zero": False}
            ),  # Vega-Lite warns about it on a logarithmic scale
        )
        axis: dict[str, Any] = {
            "grid": True,
            "tickCount": 6,
            "labelOverlap": True,
            "labelFlush": False,
        }
        if self.ticks:
            axis.update(values=list(self.ticks), labelExpr=self._label())
        elif self.log:
            is_labelled = self._is_labelled()
            axis["labelExpr"] = f"{is_labelled} ? {self._label()} : ''"
            axis["gridOpacity"] = {"condition": {"test": is_labelled, "value": 1}, "value": 0}
        elif self.kind != "number":
            axis["labelExpr"] = self._label()
        return {"type": "quantitative", "title": self.title, "scale": scale, "axis": axis}

    def _label(self) -> str:
        """Return the Vega expression of a tick label."""
        if self.kind == "flops":
            return f"({_MANTISSA} == 1 ? '' : {_MANTISSA} + '·') + '10' + {_SUPERSCRIPT}"
        if self.kind == "scientific":
            return "format(datum.value, '.2~e')"
        if self.kind == "count":
            return "replace(format(datum.value, '.3~s'), 'G', 'B')"
        return "replace(format(datum.value, '.6~g'), '-', '\N{MINUS SIGN}')"

    def _is_labelled(self) -> str:
        """Return a Vega expression: whether a tick of a logarithmic axis has a label.

        Vega draws a tick at 1, 2, ..., 9 times each power of ten, or at equal steps on a short axis.
        """
        decades = math.log10(self.high / self.low)
        if decades < 0.75:
            return "true"
        mantissas = [1, 2, 5] if decades < 2 else [1, 3] if decades < 3 else [1]
        step = math.ceil(decades / 7)
        return f"(indexof({mantissas}, {_MANTISSA}) >= 0 && {_EXPONENT} % {step} == 0)"


# Vega expressions of a tick's value: exponent, mantissa and exponent in superscript digits
_EXPONENT = "floor(log(datum.value) / LN10 + 1e-9)"
_MANTISSA = f"(round(datum.value / pow(10, {_EXPONENT}) * 1000) / 1000)"
_DIGITS = "['⁰','¹','²','³','⁴','⁵','⁶','⁷','⁸','⁹']"
_SUPERSCRIPT = (
    f"(({_EXPONENT} < 0 ? '⁻' : '') + (abs({_EXPONENT}) < 10 ? '' : "
    f"{_DIGITS}[floor(abs({_EXPONENT}) / 10)]) + {_DIGITS}[abs({_EXPONENT}) % 10])"
)


@dataclass(frozen=True)
class Series:
    """Encodings of the column `series` as colour, point shape and dash, in a stable order of names.

    Attributes:
        is_ordered: whether the series are token budgets or compute budgets: coloured from light to dark (from dark
            to light in the dark theme).
        title: title of the legend.
        interactive: whether a click on a legend entry highlights its series.
    """

    names: tuple[str, ...]
    is_ordered: bool = False
    title: str = ""
    interactive: bool = True

    @property
    def has_legend(self) -> bool:
        return 1 < len(self.names) <= MAX_LEGEND

    @property
    def is_selectable(self) -> bool:
        return self.interactive and self.has_legend

    def colour(self, name: str) -> str:
        """Return the colour of a series as a CSS variable."""
        index = self.names.index(name)
        if not self.is_ordered:
            return f"var(--series-{index % SERIES + 1})"
        last = len(self.names) - 1
        return f"var(--budget-{BUDGETS if last == 0 else 1 + index * (BUDGETS - 1) // last})"

    def shape(self, name: str) -> str:
        return SHAPES[self.names.index(name) % len(SHAPES)]

    def encodings(self, *channels: Literal["color", "shape", "strokeDash"]) -> dict[str, Any]:
        """Return the Altair encodings; colour and shape share one legend, a dash has none."""
        import altair

        classes = {
            "color": altair.Color,
            "shape": altair.Shape,
            "strokeDash": altair.StrokeDash,
        }
        ranges: dict[str, Any] = {
            "color": [self.colour(name) for name in self.names],
            "shape": [self.shape(name) for name in self.names],
            "strokeDash": [DASHES[index % len(DASHES)] for index in range(len(self.names))],
        }
        columns = MAX_LEGEND if self.is_ordered else LEGEND_COLUMNS
        legend = (
            altair.Legend(title=self.title or None, columns=columns) if self.has_legend else None
        )
        return {
            channel: classes[channel](
                "series",
                type="nominal",
                scale=altair.Scale(domain=list(self.names), range=ranges[channel]),
                legend=None if channel == "strokeDash" else legend,
            )
            for channel in channels
        }

    def opacity(self, value: float) -> Any:
        """Return an opacity that falls for series that are not selected in the legend."""
        import altair

        if not self.is_selectable:
            return altair.value(value)
        return altair.condition(_series_choice(), altair.value(value), altair.value(value * FADED))


def _series_choice() -> Any:
    import altair

    return altair.selection_point(name="series_choice", fields=["series"], bind="legend")


def finite_or_none(value: Any) -> float | None:
    """Return a number as a float, or None for None, nan and infinities."""
    return None if value is None or not math.isfinite(value) else float(value)


def data(rows: Rows) -> Any:
    """Return chart data from rows; numbers that are not finite become null, which is not drawn."""
    import altair

    return altair.InlineData(
        values=[
            {key: _plain(value) for key, value in row.items() if value is not None} for row in rows
        ]
    )


def _plain(value: Any) -> Any:
    if isinstance(value, str | bool):
        return value
    number = finite_or_none(value)
    return None if number is None else float(f"{number:.{DIGITS}g}")


def tooltips(columns: Tooltip) -> list[Any]:
    """Return the tooltip of a mark: the columns with their titles, in order."""
    import altair

    return [
        altair.Tooltip(column, type="nominal", title=title) for column, title in columns.items()
    ]


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


def literal_colour(column: str = "colour") -> Any:
    """Return the encoding of a column that contains colours."""
    import altair

    return altair.Color(column, type="nominal", scale=None, legend=None)


def literal_line(colour: str) -> dict[str, Any]:
    """Return encodings that make `lines` solid and of one colour."""
    import altair

    return {"color": altair.value(colour), "strokeDash": altair.value([1, 0])}


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
        shape = altair.Shape("shape", type="nominal", scale=None, legend=None)
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
    lines = [altair.hconcat(*sized[at : at + columns]) for at in range(0, len(sized), columns)]
    chart = lines[0] if len(lines) == 1 else altair.vconcat(*lines)
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
        params.append(_series_choice())
    return chart.properties(name="marks").add_params(*params)
