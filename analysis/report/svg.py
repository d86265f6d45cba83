"""Charts as inline SVG: a few marks on two axes, nothing more.

Written by hand instead of with a plotting library's JavaScript: a page with plotly inlined weighs 4.5 MB
and prints as what the screen last showed; this one weighs a tenth of a megabyte, prints as vectors, scales
to a phone, and every mark carries its text as <title>, so that it can be hovered and read aloud.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from analysis.formatting import power_of_ten, short_count

INK, FAINT = "#1f2933", "#d9dee4"
WIDTH, HEIGHT = 540.0, 350.0
Numbers = Sequence[float]


@dataclass(frozen=True)
class Axis:
    """`low` to `high` in data units, padded; `kind` of its tick labels."""

    low: float
    high: float
    label: str
    log: bool = False
    kind: str = "number"

    @classmethod
    def around(
        cls, values: Numbers, label: str, *, log: bool = False, kind: str = "number"
    ) -> Axis:
        """Over all finite values, with a margin."""
        finite = [value for value in values if math.isfinite(value) and (value > 0 or not log)]
        if not finite:
            finite = [1.0]
        ends = [math.log(v) if log else v for v in (min(finite), max(finite))]
        margin = 0.06 * (ends[1] - ends[0]) or (0.5 if log else abs(ends[0]) * 0.1 or 1.0)
        low, high = ends[0] - margin, ends[1] + margin
        if log:
            low, high = math.exp(low), math.exp(high)
        return cls(low, high, label, log, kind)

    def share(self, value: float) -> float:
        """Where a value lies, 0 at low and 1 at high."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self, most: int = 6) -> list[float]:
        if not self.log:
            return _linear_ticks(self.low, self.high, most)
        for factors, step in (((1, 2, 5), 1), ((1, 3), 1), ((1,), 1), ((1,), 2), ((1,), 3)):
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            found = [
                factor * 10.0**power for power in range(first, last + 1, step) for factor in factors
            ]
            found = [value for value in found if self.low <= value <= self.high]
            if len(found) <= most:
                break
        return found if len(found) > 1 else _linear_ticks(self.low, self.high, most)

    def text(self, value: float) -> str:
        if self.kind == "flops":
            return power_of_ten(value)
        if self.kind == "count":
            return short_count(value)
        return f"{value:.6g}".replace("-", "\N{MINUS SIGN}")


def _linear_ticks(low: float, high: float, most: int) -> list[float]:
    span = high - low
    raw = span / most
    scale = 10 ** math.floor(math.log10(raw))
    step = next(factor * scale for factor in (1, 2, 5, 10) if factor * scale >= raw)
    first, last = math.ceil(low / step), math.floor(high / step)
    return [round(index * step, 12) for index in range(first, last + 1)]


@dataclass
class Plot:
    """Marks in data units, in the order they are added; `svg()` draws them."""

    x: Axis
    y: Axis
    title: str
    height: float = HEIGHT
    left: float = 0.0  # 0: as the labels need
    rows: Sequence[str] = ()
    """Labels of a categorical y axis, from the top; `y` is then their index."""
    marks: list[str] = field(default_factory=list)
    top: float = 12.0
    bottom: float = 52.0
    right: float = 16.0

    def __post_init__(self) -> None:
        if not self.left:
            said = self.rows or [self.y.text(value) for value in self.y.ticks()]
            self.left = (
                14.0 + 9.3 * max(map(len, said))
                if self.rows
                else (36.0 + 8.0 * max(map(len, said), default=0))
            )

    def px(self, value: float) -> float:
        return self.left + self.x.share(value) * (WIDTH - self.left - self.right)

    def py(self, value: float) -> float:
        return (
            self.height - self.bottom - self.y.share(value) * (self.height - self.top - self.bottom)
        )

    def line(
        self, xs: Numbers, ys: Numbers, colour: str, dash: str = "", width: float = 2.0
    ) -> None:
        points = " ".join(f"{self.px(a):.1f},{self.py(b):.1f}" for a, b in zip(xs, ys, strict=True))
        self.marks.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="{width:g}"'
            f' stroke-dasharray="{dash}"/>'
        )

    def band(self, xs: Numbers, low: Numbers, high: Numbers, colour: str) -> None:
        there = [f"{self.px(a):.1f},{self.py(b):.1f}" for a, b in zip(xs, high, strict=True)]
        back = [f"{self.px(a):.1f},{self.py(b):.1f}" for a, b in zip(xs, low, strict=True)]
        points = " ".join([*there, *reversed(back)])
        self.marks.append(f'<polygon points="{points}" fill="{colour}" fill-opacity=".16"/>')

    def area(self, y_low: float, y_high: float, colour: str) -> None:
        """A tint over the whole width."""
        top, bottom = self.py(min(y_high, self.y.high)), self.py(max(y_low, self.y.low))
        self.marks.append(
            f'<rect x="{self.left:g}" y="{top:.1f}" width="{WIDTH - self.left - self.right:g}"'
            f' height="{max(bottom - top, 0):.1f}" fill="{colour}" fill-opacity=".07"/>'
        )

    def rule(self, *, x: float | None = None, y: float | None = None, dash: str = "") -> None:
        """A line across the plot."""
        if x is not None and self.x.low <= x <= self.x.high:
            self._segment(self.px(x), self.top, self.px(x), self.height - self.bottom, INK, 1, dash)
        if y is not None and self.y.low <= y <= self.y.high:
            self._segment(self.left, self.py(y), WIDTH - self.right, self.py(y), INK, 1, dash)

    def interval(
        self,
        x: float,
        y: float,
        low: float,
        high: float,
        colour: str,
        *,
        across: bool = False,
        shift: float = 0.0,
        width: float = 2.4,
        dash: str = "",
    ) -> None:
        """An interval with ends: upright, or `across` from left to right. `shift` in pixels."""
        if across:
            a, b = self.px(max(low, self.x.low)), self.px(min(high, self.x.high))
            at = self.py(y) + shift
            self._segment(a, at, b, at, colour, width, dash)
            for end in (a, b):
                self._segment(end, at - 5, end, at + 5, colour, width)
            return
        a, b, at = (
            self.py(max(low, self.y.low)),
            self.py(min(high, self.y.high)),
            self.px(x) + shift,
        )
        self._segment(at, a, at, b, colour, width, dash)
        for end in (a, b):
            self._segment(at - 5, end, at + 5, end, colour, width)

    def point(  # noqa: PLR0917
        self,
        x: float,
        y: float,
        colour: str,
        marker: str,
        title: str,
        size: float = 4.5,
        *,
        hollow: bool = False,
        shift: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        """A mark that says `title` when it is hovered, tapped or read aloud."""
        at = (self.px(x) + shift[0], self.py(y) + shift[1])
        fill = "#fff" if hollow else colour
        self.marks.append(
            f'<g class="m">{shape(marker, *at, size, fill, colour)}<title>{escape(title)}</title></g>'
        )

    def text(
        self,
        x: float,
        y: float,
        said: str,
        colour: str = INK,
        anchor: str = "start",
        *,
        pixels: bool = False,
        size: float = 13,
    ) -> None:
        at = (x, y) if pixels else (self.px(x), self.py(y))
        self.marks.append(
            f'<text class="over" x="{at[0]:.1f}" y="{at[1]:.1f}" fill="{colour}" text-anchor="{anchor}"'
            f' font-size="{size:g}">{escape(said)}</text>'
        )

    def _segment(  # noqa: PLR0917
        self,
        x1: float,
        y1: float,
        x2: float,
        y2: float,
        colour: str,
        width: float = 1.0,
        dash: str = "",
    ) -> None:
        self.marks.append(
            f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"'
            f' stroke-width="{width:g}" stroke-dasharray="{dash}"/>'
        )

    def svg(self) -> str:
        marks, self.marks = self.marks, []
        self._axes()
        frame, self.marks = self.marks, marks
        return (
            f'<svg viewBox="0 0 {WIDTH:g} {self.height:g}" font-family="sans-serif" role="img" aria-label="{escape(self.title)}">'
            f"{''.join(frame)}{''.join(marks)}</svg>"
        )

    def _axes(self) -> None:
        floor, middle = self.height - self.bottom, (self.left + WIDTH - self.right) / 2
        for value in self.x.ticks():
            self._segment(self.px(value), self.top, self.px(value), floor, FAINT)
            self.text(self.px(value), floor + 18, self.x.text(value), anchor="middle", pixels=True)
        self.text(middle, self.height - 10, self.x.label, anchor="middle", pixels=True, size=14)
        if self.rows:
            for index, name in enumerate(self.rows):
                self._segment(self.left, self.py(index), WIDTH - self.right, self.py(index), FAINT)
                self.text(self.left - 8, self.py(index) + 4, name, anchor="end", pixels=True)
            return
        for value in self.y.ticks():
            self._segment(self.left, self.py(value), WIDTH - self.right, self.py(value), FAINT)
            self.text(
                self.left - 7, self.py(value) + 4, self.y.text(value), anchor="end", pixels=True
            )
        at = (self.top + floor) / 2
        self.marks.append(
            f'<text transform="translate(15 {at:.1f}) rotate(-90)" text-anchor="middle" font-size="14"'
            f' fill="{INK}">{escape(self.y.label)}</text>'
        )


def shape(  # noqa: PLR0917
    marker: str, x: float, y: float, size: float, fill: str, stroke: str
) -> str:
    """o s ^ D v, as in matplotlib."""
    style = f'fill="{fill}" stroke="{stroke}" stroke-width="1.5"'
    if marker == "o":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size:g}" {style}/>'
    if marker == "s":
        side = 1.8 * size
        return (
            f'<rect x="{x - side / 2:.1f}" y="{y - side / 2:.1f}" width="{side:.1f}"'
            f' height="{side:.1f}" {style}/>'
        )
    reach = 1.3 * size
    corners = {
        "^": ((0, -1), (0.95, 0.7), (-0.95, 0.7)),
        "v": ((0, 1), (0.95, -0.7), (-0.95, -0.7)),
        "D": ((0, -1), (1, 0), (0, 1), (-1, 0)),
    }[marker]
    points = " ".join(f"{x + reach * a:.1f},{y + reach * b:.1f}" for a, b in corners)
    return f'<polygon points="{points}" {style}/>'
