"""Chart of training losses during runs, one line per run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from slm.charts.encodings import Axis, Rows, Series, data, finite_or_none
from slm.charts.figure import Figure
from slm.charts.marks import layered
from slm.charts.theme import INK
from slm.formatting import short_count

MAX_POINTS = 15_000  # of all runs together: 0.2 MB in a page
MIN_POINTS_PER_RUN, MAX_POINTS_PER_RUN = 20, 150
MANY_RUNS = 40  # in a chart where lines are drawn more transparent
DIGITS = 5  # of the numbers in a page
HIT_WIDTH = 9  # pixels around a line in which the pointer finds it
PERCENTILE_SHOWN = 99.0  # of many losses; the first steps would stretch the axis
MANY_LOSSES = 200


@dataclass(frozen=True)
class LossCurve:
    """Logged training losses of a run in nats per token, after `tokens` training tokens each."""

    run_id: str
    name: str
    """Display name."""
    family: str
    flops_per_token: float
    tokens: Sequence[float]
    losses: Sequence[float | None]

    def points(self, count: int) -> list[tuple[float, float]]:
        """Return at most about `count` points (tokens, loss): means over intervals that are equal in ln(tokens)."""
        pairs = zip(self.tokens, map(finite_or_none, self.losses), strict=True)
        known = [(tokens, loss) for tokens, loss in pairs if loss is not None and tokens > 0]
        if len(known) <= count:
            return known
        tokens, losses = np.array(known, dtype=np.float64).T
        edges = np.geomspace(tokens[0], tokens[-1], count + 1)
        index = np.clip(np.searchsorted(edges, tokens, side="right") - 1, 0, count - 1)
        _, groups = np.unique(index, return_inverse=True)
        sizes = np.bincount(groups)
        means = (np.bincount(groups, weights=values) / sizes for values in (tokens, losses))
        return [(float(x), float(y)) for x, y in zip(*means, strict=True)]


def loss_curves(
    curves: Sequence[LossCurve],
    families: Sequence[str],
    *,
    against: Literal["tokens", "flops"] = "tokens",
    quantity: Literal["training loss", "validation loss"] = "training loss",
    name: str = "loss_curves",
) -> Figure | None:
    """Plot losses during runs, coloured by family, the run under the pointer with its name; None without any loss.

    `families` fixes the order of colours, so that all charts of a study agree.
    """
    count = min(MAX_POINTS_PER_RUN, max(MIN_POINTS_PER_RUN, MAX_POINTS // max(1, len(curves))))
    rows = [row for curve in curves if (row := _row(curve, count, against))["x"]]
    if not rows:
        return None
    series = Series(tuple(families))
    titles = {"tokens": "training tokens", "flops": "training FLOPs"}
    kind: Any = {"tokens": "count", "flops": "flops"}[against]
    tokens = [x for row in rows for x in (row["x"][0], row["x"][-1])]
    x = Axis.around(tokens, titles[against], log=True, kind=kind, margin=0.02)
    losses = np.concatenate([row["y"] for row in rows])
    shown = losses
    if len(losses) > MANY_LOSSES:
        shown = losses[losses <= np.percentile(losses, PERCENTILE_SHOWN)]
    y = Axis.around(shown, f"{quantity} (nats/token)", log=True)
    caption = "One line per run. Move the pointer over a line for its run."
    if quantity == "training loss":
        caption = "One line per run: logged losses, averaged over short intervals. Move the pointer over a line for its run."
    chart = layered(*_layers(rows, x, y, series), series=series)
    title = f"{quantity.capitalize()} against {titles[against]}"
    return Figure(name, title, caption, chart, 360)


def _row(curve: LossCurve, count: int, against: Literal["tokens", "flops"]) -> dict[str, Any]:
    """Return the chart data of a run; Vega-Lite makes a row of each point."""
    scale = curve.flops_per_token if against == "flops" else 1.0
    points = curve.points(count)
    last = [f"{loss:.4f} after {short_count(tokens)} tokens" for tokens, loss in points[-1:]]
    return {
        "x": [_rounded(tokens * scale) for tokens, _ in points],
        "y": [_rounded(loss) for _, loss in points],
        "series": curve.family,
        "group": curve.run_id,
        "text": [curve.name, *last, curve.run_id],
    }


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def _layers(rows: Rows, x: Axis, y: Axis, series: Series) -> tuple[Any, ...]:
    """Return the lines, the name of the run under the pointer, and invisible wide lines that find it.

    A tooltip of a line would only appear close to its points.
    """
    import altair

    hovered = altair.selection_point(
        name="hovered_run", fields=["group"], on="pointerover", clear="pointerout", empty=False
    )
    by_run: Any = altair.Chart(data(rows))
    points = by_run.transform_flatten(["x", "y"]).encode(
        x=x.x(), y=y.y(), detail=altair.Detail("group", type="nominal")
    )
    lines = points.mark_line(clip=True).encode(
        **series.encodings("color"),
        strokeWidth=altair.condition(hovered, altair.value(3.5), altair.value(1.2)),
        opacity=series.opacity(0.85 if len(rows) <= MANY_RUNS else 0.4),
    )
    label = by_run.transform_filter(hovered).mark_text(
        align="right", baseline="top", fontSize=13, lineHeight=18, color=INK
    )
    label = label.encode(
        x=altair.value("width"), y=altair.value(4), text=altair.Text("text", type="nominal")
    )
    wide = points.mark_line(clip=True, strokeWidth=HIT_WIDTH, opacity=0.001)
    return lines, label, wide.add_params(hovered)
