"""Chart of models by quality and cost, with the models that no other model beats in both."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

from slm.charts.encodings import Axis, Kind, Series, literal_line
from slm.charts.figure import WIDTH, Figure
from slm.charts.marks import labels, layered, lines, points
from slm.charts.theme import MUTED

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


@dataclass(frozen=True)
class ParetoPoint:
    """A model: its cost `x`, its loss or perplexity `y`, its family, a short label, and the texts of its tooltip."""

    x: float
    y: float
    family: str
    label: str
    tip: Mapping[str, str] = field(default_factory=dict)


def frontier(models: Sequence[ParetoPoint]) -> list[ParetoPoint]:
    """Return the points that no other point beats in x and y, both smaller is better, by ascending x.

    Of equal points all are returned.
    """
    best: list[ParetoPoint] = []
    for point in sorted(models, key=_place):
        if not best or _place(point)[1] < _place(best[-1])[1] or _place(point) == _place(best[-1]):
            best.append(point)
    return best


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
) -> Figure:
    """Plot points coloured by family and the Pareto frontier as a step line; `families` fixes the colours.

    The area above the line can be reached: each of its points has a model that costs no more and is no worse.
    """
    best = frontier(models)
    series = Series(tuple(families))
    x = Axis.around([point.x for point in models], x_title, log=True, kind=x_kind)
    y = Axis.around([point.y for point in models], y_title, log=True).extended(0.06, 0.06)
    is_labelled = {id(point) for point in (models if len(models) <= MAX_LABELLED else best)}
    is_best = {id(point) for point in best}
    rows = [
        {
            "x": point.x,
            "y": point.y,
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
    step = _steps(best, x)
    chart = layered(
        lines(step, x, y, series, width=1.5).encode(**literal_line(MUTED)),
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


def _steps(best: Sequence[ParetoPoint], x: Axis) -> list[dict[str, Any]]:
    """Return the corners of the frontier, to the end of the axis."""
    corners = [(best[0].x, best[0].y)]
    for one, other in pairwise(best):
        corners += [(other.x, one.y), (other.x, other.y)]
    corners.append((x.high, best[-1].y))
    return [
        {"x": corner[0], "y": corner[1], "series": best[0].family, "group": "frontier"}
        for corner in corners
    ]
