"""Loss against aspect ratio at matched FLOPs: which shape is best, how much it matters, and where.

Per rung and token budget the losses of three or more aspect ratios, corrected to equal FLOPs, are a
parabola in ln(d_model / n_layers). "Shape hardly matters" (Kaplan et al. 2001.08361) and "deep and thin
below 1B" (MobileLLM 2402.14905) are two readings of this curve; whether its optimum moves with scale is
the test of which regime holds. Shapes are clusters: intervals are delete-one-shape jackknife.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.arrays import Floats
from analysis.design.identifiability import count_distinct
from analysis.fit.diagnostics import Status
from analysis.fit.profile_likelihood import quantile_t
from analysis.fit.resampling import codes, jackknife_error
from analysis.formatting import count, format_interval, format_number, power_of_ten
from slm.parabola import parabola_minimum
from slm.rounding import ROUNDING_TOLERANCE, condition_number, snap_to_zero, stable_argsort
from slm.summary import Rows, Summarized

MIN_ASPECTS = 3
LN2_SQUARED = math.log(2) ** 2
Interval = tuple[float, float]


@dataclass(frozen=True)
class RungCurve:
    """One rung and budget, by its own parabola (no interval with 3 aspects: nothing is left over).

    `best_aspect` None where the parabola has no minimum inside the aspects measured. `cost_of_two`: nats
    that an aspect twice, or half, the best costs; `cost_in_flops`: by how much more compute it would be
    made up for, as a factor.
    """

    rung: Any
    tokens_per_param: float
    flops: float
    aspects: tuple[float, ...]
    losses: tuple[float, ...]
    best_aspect: float | None
    cost_of_two: float | None
    cost_in_flops: float | None


@dataclass(frozen=True, repr=False)
class ShapeCurve(Summarized):
    """All rungs together: a level per rung and budget, one curvature, an optimum that may move with ln C.

    `best_aspect` at the geometric mean of FLOPs and `trend` = d ln(best aspect) / d ln C, with 95%
    intervals; `interior`: whether the optimum lies among the aspects measured at that scale.
    """

    status: Status
    reasons: tuple[str, ...]
    rungs: tuple[RungCurve, ...] = ()
    shapes: int = 0
    best_aspect: float | None = None
    best_interval: Interval | None = None
    trend: float | None = None
    trend_interval: Interval | None = None
    cost_of_two: float | None = None
    cost_interval: Interval | None = None
    cost_in_flops: float | None = None
    interior: bool | None = None

    def title(self) -> str:
        shapes = count(self.shapes, "shape")
        return f"loss against d_model / n_layers at equal FLOPs, {shapes}: {self.status}"

    def details(self) -> Iterator[tuple[str, str]]:
        for name, value, ends, signed in (
            ("best d_model / n_layers [95% CI]", self.best_aspect, self.best_interval, False),
            ("d ln(best) / d ln C [95% CI]", self.trend, self.trend_interval, True),
            (
                "cost of twice or half of it, nats [95% CI]",
                self.cost_of_two,
                self.cost_interval,
                False,
            ),
        ):
            if value is not None and ends is not None:
                yield name, format_interval(value, *ends, signed=signed)
        for reason in self.reasons:
            yield "reason", reason

    def rows(self) -> Rows:
        """Return one row per rung and token budget, each by its own parabola."""
        return [
            {
                "rung": str(one.rung),
                "tokens_per_param": f"{one.tokens_per_param:g}",
                "FLOPs": power_of_ten(one.flops),
                "aspect ratios": ", ".join(f"{aspect:.3g}" for aspect in one.aspects),
                "best": "-" if one.best_aspect is None else f"{one.best_aspect:.3g}",
                "cost of a factor 2, nats": format_number(one.cost_of_two),
            }
            for one in self.rungs
        ]

    @property
    def sentence(self) -> str:
        """The curve in words."""
        if self.best_aspect is None or self.trend is None or self.trend_interval is None:
            return f"No shape curve: {'; '.join(self.reasons)}."
        low, high = self.trend_interval
        moves = "moves with scale" if low > 0 or high < 0 else "is not shown to move with scale"
        return (
            f"The best d_model / n_layers is {self.best_aspect:.0f}, twice or half of it costs "
            f"{self.cost_of_two:.4f} nats; the optimum {moves} (d ln aspect / d ln C = {self.trend:+.3f} "
            f"[{low:+.3f}, {high:+.3f}])."
        )


def fit_shape_curve(table: pd.DataFrame) -> ShapeCurve:
    """Fit the curve to runs of a prepared table with `aspect_ratio`, `rung`, `tokens_per_param`, `tokens`,
    `flops`, `n`, `shape`, `family` and `loss_nats_per_token`. Seeds are averaged.
    """
    keys = ["family", "shape", "rung", "tokens_per_param", "tokens"]
    cells = table.groupby(keys, as_index=False, sort=False).agg(
        {"aspect_ratio": "mean", "flops": "mean", "n": "mean", "loss_nats_per_token": "mean"}
    )
    cells = cells.groupby(["rung", "tokens_per_param"], sort=False).filter(
        lambda rows: count_distinct(rows["aspect_ratio"].to_numpy()) >= MIN_ASPECTS
    )
    cells = cells.reset_index(drop=True)
    if cells.empty:
        reason = f"no rung has {MIN_ASPECTS} aspect ratios at one token budget; run a third family"
        return ShapeCurve("REFUSED", (reason,))
    slope = _saved(cells)
    cells["group"] = cells.groupby(["rung", "tokens_per_param"], sort=False).ngroup()
    middle = cells.groupby("group")["flops"].transform(lambda c: np.exp(np.log(c).mean()))
    cells["corrected"] = cells["loss_nats_per_token"] + slope * np.log(cells["flops"] / middle)
    curves = tuple(_curve(rows, slope) for _, rows in cells.groupby("group", sort=False))
    shape = codes(np.array(list(cells["family"] + " " + cells["shape"]), dtype=object))
    found = _pooled(cells, np.ones(len(cells), dtype=bool))
    parameters = int(cells["group"].nunique()) + 3
    df = int(shape.max()) + 1 - 3 - int(cells["rung"].nunique())
    if len(cells) <= parameters or df < 1 or found is None:
        reason = (
            "too few shapes for one curve, or no minimum; more rungs with three aspects are needed"
        )
        return ShapeCurve("REFUSED", (reason,), curves, int(shape.max()) + 1)
    deleted = [_pooled(cells, shape != one) for one in range(int(shape.max()) + 1)]
    if any(one is None for one in deleted):
        reason = "without one shape the curve has no minimum"
        return ShapeCurve("UNIDENTIFIED", (reason,), curves, len(deleted))
    half = quantile_t(df) * snap_to_zero(jackknife_error(np.array(deleted)))
    return _result(cells, found, half, curves, slope)


def _saved(cells: pd.DataFrame) -> float:
    """Nats saved per unit of ln FLOPs at equal tokens, over all cells."""
    x, z = np.log(cells["n"].to_numpy()), np.log(cells["tokens"].to_numpy())
    design = np.column_stack([np.ones(len(x)), x - x.mean(), z - z.mean()])
    if math.isinf(condition_number(design)):
        return 0.0
    return float(
        snap_to_zero(-np.linalg.lstsq(design, cells["loss_nats_per_token"].to_numpy())[0][1])
    )


def _curve(rows: pd.DataFrame, slope: float) -> RungCurve:
    x, y = np.log(rows["aspect_ratio"].to_numpy()), rows["corrected"].to_numpy()
    order = stable_argsort(rows["aspect_ratio"])
    best = parabola_minimum(x, y)
    cost = None if best is None else best.cost_of_two
    return RungCurve(
        rung=rows["rung"].iloc[0],
        tokens_per_param=float(rows["tokens_per_param"].iloc[0]),
        flops=float(np.exp(np.log(rows["flops"]).mean())),
        aspects=tuple(float(value) for value in np.exp(x[order])),
        losses=tuple(float(value) for value in y[order]),
        best_aspect=math.exp(best.x) if best is not None and _is_inside(best.x, x) else None,
        cost_of_two=cost,
        cost_in_flops=math.exp(cost / slope) if cost is not None and slope > 0 else None,
    )


def _pooled(cells: pd.DataFrame, kept: Any) -> Floats | None:
    """ln best aspect at the mean ln C, its trend and a: y = level[group] + (b + d w) x + a x^2, w = ln C
    centred; the optimum is -(b + d w) / 2a. None without a minimum.
    """
    x = np.log(cells["aspect_ratio"].to_numpy())
    w = np.log(cells["flops"].to_numpy())
    x, w = x - x.mean(), w - w.mean()
    group = cells["group"].to_numpy()
    levels = (group[:, None] == np.unique(group)).astype(float)
    design = np.column_stack([levels, x, x * w, x**2])[kept]
    losses = cells["corrected"].to_numpy()[kept]
    (b, d, a) = snap_to_zero(np.linalg.lstsq(design, losses, rcond=ROUNDING_TOLERANCE)[0][-3:])
    if a <= 0:
        return None
    centre = float(np.log(cells["aspect_ratio"]).mean())
    return np.array([centre - b / (2 * a), snap_to_zero(-d / (2 * a)), a])


def _is_inside(best: float, x: Floats) -> bool:
    """Whether the optimum lies between the ends of what was measured, and not at one of them."""
    return bool(snap_to_zero(best - x.min()) > 0 and snap_to_zero(x.max() - best) > 0)


def _result(
    cells: pd.DataFrame, found: Floats, half: Floats, curves: tuple[RungCurve, ...], slope: float
) -> ShapeCurve:
    low, high = found - half, found + half
    interior = _is_inside(found[0], np.log(cells["aspect_ratio"].to_numpy()))
    cost = float(found[2] * LN2_SQUARED)
    flat = snap_to_zero(low[2]) <= 0
    reasons = [] if interior else ["the optimum lies outside of the aspects measured"]
    if flat:
        reasons.append("the curvature is not shown to differ from 0: shape hardly matters here")
    return ShapeCurve(
        status="WEAK" if reasons else "OK",
        reasons=tuple(reasons),
        rungs=curves,
        shapes=int(cells.groupby(["family", "shape"]).ngroups),
        best_aspect=float(np.exp(found[0])),
        best_interval=(float(np.exp(low[0])), float(np.exp(high[0]))),
        trend=float(found[1]),
        trend_interval=(float(low[1]), float(high[1])),
        cost_of_two=cost,
        cost_interval=(float(low[2] * LN2_SQUARED), float(high[2] * LN2_SQUARED)),
        cost_in_flops=math.exp(cost / slope) if slope > 0 else None,
        interior=interior,
    )
