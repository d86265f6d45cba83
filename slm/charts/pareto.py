"""Chart of models by quality and cost, with the models that no other model beats in both."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from slm.charts.encodings import Axis, Kind, Rows, Series, data, literal_line
from slm.charts.figure import WIDTH, Figure
from slm.charts.marks import labels, layered, points
from slm.charts.theme import MUTED
from slm.rounding import exceeds

DIGITS = 5
MAX_LABELLED = 10  # points; with more, only those of the frontier have labels
FONT_SIZE, CHARACTER, LINE = 11, 6.4, 14  # pixels of a label
POINT = 8  # pixels
DISTANCE = (9, 11)  # pixels from a point to its label
# Places of a label relative to its point, the preferred first: alignment, and 1 above or -1 below.
PLACES: tuple[tuple[Literal["left", "right"], int], ...] = (
    ("left", 1), ("right", 1), ("left", -1), ("right", -1),
)  # fmt: skip
HEIGHT = 340  # pixels of the plot
Box = tuple[float, float, float, float]
Place = tuple[float, float]
P = TypeVar("P")


@dataclass(frozen=True)
class ParetoPoint:
    """A model: its cost `x`, its loss or perplexity `y`, its family, a short label, and the texts of its tooltip.

    `y_error` is the standard error of y, drawn as a bar of ±1 standard error.
    """

    x: float
    y: float
    family: str
    label: str
    tip: Mapping[str, str] = field(default_factory=dict)
    y_error: float | None = None

    @property
    def bar(self) -> Place | None:
        return None if self.y_error is None else (self.y - self.y_error, self.y + self.y_error)


def frontier(
    models: Sequence[P],
    place: Callable[[P], tuple[float, float]],
    *,
    tolerance: tuple[float, float] = (0.0, 0.0),
) -> list[P]:
    """Return the models that no other beats, by ascending x; in x and y smaller is better.

    A model beats another if it is clearly better in x or y and not clearly worse in the other one. Clearly: by more
    than the relative `tolerance` of x and of y. Of equal models all are returned.

    Args:
        place: returns x and y of a model, both above 0.
    """
    found = [
        model
        for model in models
        if not any(_beats(place(one), place(model), tolerance) for one in models)
    ]
    return sorted(found, key=place)


def _beats(one: Place, other: Place, tolerance: Place) -> bool:
    is_worse = any(exceeds(a, b * (1 + t)) for a, b, t in zip(one, other, tolerance, strict=True))
    return not is_worse and any(
        exceeds(b, a * (1 + t)) for a, b, t in zip(one, other, tolerance, strict=True)
    )


def frontier_steps(
    places: Sequence[Place], x: Axis, y: Axis, *, width: float = 1.5, opacity: float = 1.0
) -> Any:
    """Return the line below which there is no model: steps through the places, to the end of the x axis."""
    import altair

    # A place that is on the frontier within the tolerance only would make the line rise.
    best = frontier(places, lambda place: place)
    corners = [*best, (x.high, best[-1][1])]
    rows = [{"x": corner[0], "y": corner[1], "group": ""} for corner in corners]
    mark = altair.Chart(data(rows)).mark_line(
        interpolate="step-after", strokeWidth=width, opacity=opacity
    )
    return mark.encode(x=x.x(), y=y.y(), **literal_line(MUTED))


def _place(point: ParetoPoint) -> tuple[float, float]:
    """Return x and y without the digits in which equal models differ by rounding."""
    return float(f"{point.x:.{DIGITS}g}"), float(f"{point.y:.{DIGITS}g}")


def pareto(
    models: Sequence[ParetoPoint],
    families: Sequence[str],
    *,
    name: str,
    title: str,
    caption: str,
    x_title: str,
    y_title: str,
    x_kind: Kind = "number",
    tolerance: tuple[float, float] = (0.0, 0.0),
) -> Figure:
    """Plot points coloured by family and the Pareto frontier as a step line; `families` fixes the colours, `tolerance` is that of `frontier`.

    The area above the line can be reached: each of its points has a model that costs no more and is no worse.
    """
    best = frontier(models, _place, tolerance=tolerance)
    series = Series(tuple(families))
    x = Axis.around([point.x for point in models], x_title, log=True, kind=x_kind)
    bars = [point.bar for point in models if point.bar is not None and point.bar[0] > 0]
    ends = [end for bar in bars for end in bar]
    y = Axis.around([*(point.y for point in models), *ends], y_title, log=True).extended(0.06, 0.06)
    is_labelled = {id(point) for point in (models if len(models) <= MAX_LABELLED else best)}
    is_best = {id(point) for point in best}
    rows = [
        {
            "x": point.x,
            "y": point.y,
            "low": None if point.bar is None else point.bar[0],
            "high": None if point.bar is None else point.bar[1],
            "series": point.family,
            "group": point.family,
            "tip": {"model": point.label, "family": point.family, **point.tip},
        }
        for point in models
    ]
    marked = [row for row, point in zip(rows, models, strict=True) if id(point) in is_best]
    labelled = sorted(
        (point for point in models if id(point) in is_labelled),
        key=lambda one: id(one) not in is_best,
    )
    texts = _place_labels(labelled, models, x, y)
    chart = layered(
        frontier_steps([_place(point) for point in best], x, y),
        _error_bars([row for row in rows if row["low"] is not None], x, y, series)
        if bars
        else None,
        *(
            labels(
                rows_of_place, x.x(), y.y(), align=align, fontSize=FONT_SIZE, **_offset(align, side)
            )
            for (align, side), rows_of_place in texts.items()
        ),
        points(marked, x, y, series, size=190, filled=False),
        points(rows, x, y, series, size=60),
        series=series,
    )
    return Figure(name, title, caption, chart, HEIGHT)


def _error_bars(rows: Rows, x: Axis, y: Axis, series: Series) -> Any:
    import altair

    return (
        altair.Chart(data(rows))
        .mark_rule(strokeWidth=1.2)
        .encode(
            x=x.x(),
            y=y.y("low"),
            y2="high",
            **series.encodings("color"),
            opacity=series.opacity(0.6),
        )
    )


def _offset(align: str, side: int) -> dict[str, Any]:
    right, below = DISTANCE
    return {"dx": right if align == "left" else -right, "dy": -side * below}


def _place_labels(
    labelled: Sequence[ParetoPoint], models: Sequence[ParetoPoint], x: Axis, y: Axis
) -> dict[tuple[Literal["left", "right"], int], list[dict[str, Any]]]:
    """Return the labels by their place; one that would cover another label or a point in all places is left out.

    Points at the same place share a label. The boxes are those of a chart of the usual size.
    """
    by_place: dict[tuple[float, float], list[str]] = {}
    for point in labelled:
        by_place.setdefault(_place(point), []).append(point.label)
    taken = [_box(_pixels(p.x, x, WIDTH), _pixels(p.y, y, HEIGHT), 0, POINT) for p in models]
    placed: dict[tuple[Literal["left", "right"], int], list[dict[str, Any]]] = {}
    for (at_x, at_y), names in by_place.items():
        text = " = ".join(names)
        for align, side in PLACES:
            offset = _offset(align, side)
            left = _pixels(at_x, x, WIDTH) + offset["dx"]
            left -= 0 if align == "left" else CHARACTER * len(text)
            box = _box(left, _pixels(at_y, y, HEIGHT) - offset["dy"], CHARACTER * len(text))
            is_inside = box[0] >= 0 and box[1] <= WIDTH
            if is_inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                row = {"x": at_x, "y": at_y, "text": text}
                placed.setdefault((align, side), []).append(row)
                break
    return placed


def _pixels(value: float, axis: Axis, length: int) -> float:
    return length * math.log(value / axis.low) / math.log(axis.high / axis.low)


def _box(left: float, middle: float, width: float, height: float = LINE) -> Box:
    """Return left, right, bottom and top of a label."""
    return left, left + width, middle - height / 2, middle + height / 2


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[1] and other[0] < one[1] and one[2] < other[3] and other[2] < one[3]
