"""Encodings of chart data: axes, series, colours and tooltips."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

Kind = Literal["number", "flops", "count", "scientific", "percent"]
Rows = Sequence[Mapping[str, Any]]
"""Chart data. The value at the key `tip` is the tooltip of the row: title -> text. Vega-Lite copies titles into an
expression, therefore they contain no names of families or other text from outside."""
SERIES, BUDGETS = 6, 8  # numbers of series and budget colours
SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross")
DASHES = ((1, 0), (7, 4), (2, 3), (9, 3, 2, 3), (4, 2), (1, 2))
MAX_LEGEND = 12  # entries; a longer legend is larger than the chart
LEGEND_CHARACTERS, PANEL_LEGEND_CHARACTERS = 64, 48  # per line
FADED = 0.12  # relative opacity of the series that are not selected in the legend
DIGITS = 7  # of the numbers in a chart; more make pages larger and are not visible


@dataclass(frozen=True)
class Axis:
    """Title, range and tick labels of an axis, and the encodings of the columns it shows.

    `kind` of tick labels: a plain number, FLOPs in powers of ten, a count such as 25k, `2e-3`, or a share in percent.
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
        scale: dict[str, Any] = {"domain": [self.low, self.high], "nice": False}
        scale |= {"type": "log"} if self.log else {"zero": False}
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
        if self.kind == "percent":
            return "format(datum.value, '.3~p')"
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
        interactive: whether the chart is a view of its own, where a click on a legend entry highlights its series;
            False for one of several panels.
    """

    names: tuple[str, ...]
    is_ordered: bool = False
    title: str = ""
    interactive: bool = True

    @property
    def has_legend(self) -> bool:
        is_needed = len(self.names) > 1 or not self.interactive
        return is_needed and len(self.names) <= MAX_LEGEND

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
        return SHAPES[_shifted(self.names.index(name))]

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
            "strokeDash": [DASHES[_shifted(index)] for index in range(len(self.names))],
        }
        legend = None
        if self.has_legend:
            characters = LEGEND_CHARACTERS if self.interactive else PANEL_LEGEND_CHARACTERS
            columns = max(1, characters // (4 + max(map(len, self.names))))
            legend = altair.Legend(title=self.title or None, columns=columns)
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
        return altair.condition(series_choice(), altair.value(value), altair.value(value * FADED))


def _shifted(index: int) -> int:
    """Return the index of a shape or dash, shifted by one whenever the colours repeat."""
    return (index + index // SERIES) % SERIES


def series_choice() -> Any:
    """Return the parameter that holds the series selected in the legend."""
    import altair

    return altair.selection_point(name="series_choice", fields=["series"], bind="legend")


def finite_or_none(value: Any) -> float | None:
    """Return a number as a float, or None for None, nan and infinities."""
    return None if value is None or not math.isfinite(value) else float(value)


def data(rows: Rows) -> Any:
    """Return chart data from rows; numbers that are not finite are left out and not drawn."""
    import altair

    values = []
    for row in rows:
        tip = {f"tip_{index}": text for index, text in enumerate(row.get("tip", {}).values())}
        columns = {key: _plain(value) for key, value in row.items() if key != "tip"} | tip
        values.append({key: value for key, value in columns.items() if value is not None})
    return altair.InlineData(values=values)


def _plain(value: Any) -> Any:
    if isinstance(value, str | list):
        return value
    number = finite_or_none(value)
    return None if number is None else float(f"{number:.{DIGITS}g}")


def tooltips(rows: Rows) -> list[Any]:
    """Return the tooltip of the marks of rows, which have the same titles in the same order."""
    import altair

    titles = rows[0].get("tip", {}) if rows else {}
    return [
        altair.Tooltip(f"tip_{index}", type="nominal", title=title)
        for index, title in enumerate(titles)
    ]


def literal_colour(column: str = "colour") -> Any:
    """Return the encoding of a column that contains colours."""
    import altair

    return altair.Color(column, type="nominal", scale=None)


def literal_line(colour: str) -> dict[str, Any]:
    """Return encodings that make `lines` solid and of one colour."""
    import altair

    return {"color": altair.value(colour), "strokeDash": altair.value([1, 0])}
