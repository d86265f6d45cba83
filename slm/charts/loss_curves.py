"""Chart of training losses during runs, one line per run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from slm.charts.encodings import Axis, Rows, Series, data, finite_or_none, tooltips
from slm.charts.figure import Figure
from slm.charts.marks import layered
from slm.formatting import short_count

MAX_POINTS = 20_000  # of all runs together; Vega redraws them at every movement of the pointer
MIN_POINTS_PER_RUN = 20
PERCENTILE_SHOWN = 99.0  # of the losses; the first steps would stretch the axis


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
    name: str = "loss_curves",
) -> Figure | None:
    """Plot training losses, coloured by family, the hovered run with its name; None without any loss.

    `families` fixes the order of colours, so that all charts of a study agree.
    """
    count = max(MIN_POINTS_PER_RUN, MAX_POINTS // max(1, len(curves)))
    rows = [row for curve in curves for row in _rows(curve, count, against)]
    if not rows:
        return None
    series = Series(tuple(families))
    titles = {"tokens": "training tokens", "flops": "training FLOPs"}
    kind: Any = {"tokens": "count", "flops": "flops"}[against]
    x = Axis.around([row["x"] for row in rows], titles[against], log=True, kind=kind, margin=0.02)
    losses = np.array([row["y"] for row in rows])
    shown = losses[losses <= np.percentile(losses, PERCENTILE_SHOWN)]
    y = Axis.around(shown, "training loss (nats/token)", log=True)
    caption = "One line per run: logged training losses, averaged over short intervals."
    chart = layered(*_layers(rows, x, y, series), series=series)
    return Figure(name, f"Training loss against {titles[against]}", caption, chart, 360)


def _rows(curve: LossCurve, count: int, against: Literal["tokens", "flops"]) -> Rows:
    scale = curve.flops_per_token if against == "flops" else 1.0
    return [
        {
            "x": tokens * scale,
            "y": loss,
            "series": curve.family,
            "group": curve.run_id,
            "tip": {
                "run": curve.name,
                "training tokens": short_count(tokens),
                "loss (nats/token)": f"{loss:.4f}",
            },
        }
        for tokens, loss in curve.points(count)
    ]


def _layers(rows: Rows, x: Axis, y: Axis, series: Series) -> tuple[Any, Any]:
    """Return the lines, and invisible points that find the run nearest to the pointer."""
    import altair

    hovered = altair.selection_point(
        name="hovered_run", fields=["group"], on="pointerover", nearest=True, empty=False
    )
    base = altair.Chart(data(rows)).encode(
        x=x.x(), y=y.y(), detail=altair.Detail("group", type="nominal")
    )
    lines = base.mark_line(clip=True).encode(
        **series.encodings("color", "strokeDash"),
        strokeWidth=altair.condition(hovered, altair.value(3), altair.value(1.2)),
        opacity=series.opacity(0.85),
    )
    points = base.mark_point(filled=True, size=60, clip=True).encode(
        **series.encodings("color"),
        opacity=altair.condition(hovered, altair.value(1), altair.value(0)),
        tooltip=tooltips(rows),
    )
    return points.add_params(hovered), lines
