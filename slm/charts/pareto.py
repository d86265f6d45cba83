"""Chart of models by quality and cost, with the models that no other model beats in both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from slm.charts.encodings import Axis, Kind, Series, literal_line
from slm.charts.figure import Figure
from slm.charts.marks import labels, layered, lines, points
from slm.charts.theme import MUTED

MAX_LABELLED = 10  # points; with more, only those of the frontier have labels
LABEL_SPACE = 0.22  # of the axis, right of the last point


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
    for point in sorted(models, key=lambda one: (one.x, one.y)):
        is_equal = bool(best) and (point.x, point.y) == (best[-1].x, best[-1].y)
        if not best or point.y < best[-1].y or is_equal:
            best.append(point)
    return best


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
    x = x.extended(0.0, LABEL_SPACE)
    y = Axis.around([point.y for point in models], y_title, log=True).extended(0.0, 0.06)
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
    texts = [
        {"x": point.x, "y": point.y, "text": point.label}
        for point in models
        if id(point) in is_labelled
    ]
    step = _steps(best, x)
    chart = layered(
        lines(step, x, y, series, width=1.5).encode(**literal_line(MUTED)),
        labels(texts, x.x(), y.y(), dx=9, dy=-7, fontSize=11),
        points(marked, x, y, series, size=190, filled=False),
        points(rows, x, y, series, size=60),
        series=series,
    )
    return Figure(name, title, caption, chart, 340)


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
