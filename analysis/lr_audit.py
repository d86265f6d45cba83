"""Does one learning rate serve every family? The gate that a verdict about architecture must pass.

Per family, size and token budget, the final loss over rates a factor of 2 apart. A family passes if each
of its optima lies inside of the grid and within a factor of 2 of the common rate; what the common rate
still costs it, curvature / 2 * (ln(lr / vertex))^2, is a part of the misfit tau of its shapes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.figures import COLOURS, LINES, MARKERS
from analysis.runs import collect_runs
from slm.errors import DataError
from slm.files import write_json, write_text

FIGURE = "lr_audit.png"
SCHEMA_VERSION = 1
MIN_RATES = 3
MAX_FACTOR = 2.0
CURVE = ["family", "rung", "shape", "budget"]


@dataclass(frozen=True)
class RateCurve:
    """Loss of one shape at one budget over learning rates, seeds averaged.

    `vertex` is that of the parabola in ln lr through the lowest point and its neighbours, None at an
    edge of the grid; `curvature_nats` is its second derivative. `penalty_nats` is what the common rate
    costs against the vertex, `cost_of_2x_nats` what a rate off by a factor of 2 costs.
    """

    family: str
    rung: str
    shape: str
    budget: float
    rates: tuple[float, ...]
    losses: tuple[float, ...]
    best_lr: float
    is_interior: bool
    vertex: float | None = None
    curvature_nats: float | None = None
    penalty_nats: float | None = None
    cost_of_2x_nats: float | None = None

    @property
    def passed(self) -> bool:
        return self.is_interior and self.vertex is not None and self.penalty_nats is not None


@dataclass(frozen=True)
class LrAudit:
    """`families` by name: whether it passed, and the worst of its curves."""

    recipe_id: str
    common_lr: float
    curves: tuple[RateCurve, ...]
    families: dict[str, dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """For JSON; what `study.lr_audit` names."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}


def audit_rates(table: pd.DataFrame, common_lr: float) -> LrAudit:
    """Judge one common rate by runs over rates, a row a run as `analysis.runs` makes them.

    Raises:
        DataError: if runs differ in more than family, size, budget, seed and rate, or a curve has fewer
            than 3 rates or lacks the common one.
    """
    recipes = table["recipe_id"].unique()
    if len(recipes) > 1:
        listed = ", ".join(map(str, recipes))
        raise DataError(f"runs of {len(recipes)} recipes ({listed}); an audit is of one")
    curves = tuple(_curve(key, rows, common_lr) for key, rows in table.groupby(CURVE))
    families = {
        name: _family([curve for curve in curves if curve.family == name], common_lr)
        for name in dict.fromkeys(curve.family for curve in curves)
    }
    return LrAudit(str(recipes[0]), common_lr, curves, families)


def _curve(key: Any, rows: pd.DataFrame, common_lr: float) -> RateCurve:
    family, rung, shape, budget = key
    losses = rows.groupby("peak_lr")["loss_nats_per_token"].mean().sort_index()
    rates = losses.index.to_numpy(dtype=float)
    named = f"{family}, {shape}, {budget:g} tokens per parameter"
    if len(rates) < MIN_RATES:
        raise DataError(f"{named}: {len(rates)} learning rates, at least {MIN_RATES} are needed")
    if not np.isclose(rates, common_lr).any():
        listed = ", ".join(f"{rate:g}" for rate in rates)
        raise DataError(f"{named}: no run at the common rate {common_lr:g}, only {listed}")
    values = losses.to_numpy()
    lowest = int(values.argmin())
    known: dict[str, Any] = {"is_interior": 0 < lowest < len(rates) - 1}
    if known["is_interior"]:
        near = slice(lowest - 1, lowest + 2)
        a, b, _ = np.polyfit(np.log(rates[near] / rates[lowest]), values[near], 2)
        offset = math.log(common_lr / rates[lowest]) + b / (2 * a)  # from the vertex, in ln lr
        known |= {
            "vertex": common_lr * math.exp(-offset),
            "curvature_nats": 2 * a,
            "penalty_nats": a * offset**2,
            "cost_of_2x_nats": a * math.log(2) ** 2,
        }
    return RateCurve(
        family=str(family),
        rung=str(rung),
        shape=str(shape),
        budget=float(budget),
        rates=tuple(rates.tolist()),
        losses=tuple(values.tolist()),
        best_lr=float(rates[lowest]),
        **known,
    )


def _family(curves: list[RateCurve], common_lr: float) -> dict[str, Any]:
    inside = [curve for curve in curves if curve.vertex is not None]
    factors = [max(c.vertex / common_lr, common_lr / c.vertex) for c in inside if c.vertex]
    is_interior = len(inside) == len(curves)
    worst_factor = max(factors, default=math.inf)
    reasons = []
    if not is_interior:
        reasons.append(f"{len(curves) - len(inside)} of {len(curves)} optima at the grid's edge")
    if factors and worst_factor > MAX_FACTOR:
        reasons.append(f"an optimum {worst_factor:.1f} times off the common rate")
    return {
        "passed": not reasons,
        "interior": is_interior,
        "reasons": reasons,
        "worst_factor": worst_factor if factors else None,
        "worst_penalty_nats": max((c.penalty_nats or 0.0 for c in inside), default=None),
        "worst_cost_of_2x_nats": max((c.cost_of_2x_nats or 0.0 for c in inside), default=None),
    }


def draw(audit: LrAudit) -> Figure:
    names = list(audit.families)
    figure = Figure(figsize=(3.6 * len(names), 3.8), layout="constrained")
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        own = [curve for curve in audit.curves if curve.family == name]
        styles = zip(own, cycle(COLOURS), cycle(MARKERS), cycle(LINES), strict=False)
        for curve, colour, marker, line in styles:
            excess = np.array(curve.losses) - min(curve.losses)
            label = f"{curve.shape}, {curve.budget:g} tok/par"
            axes.plot(curve.rates, excess, color=colour, marker=marker, ls=line, ms=4, label=label)
            if curve.vertex is not None:
                axes.axvline(curve.vertex, color=colour, ls=line, lw=0.8, alpha=0.6)
        axes.axvline(audit.common_lr, color="black", lw=1.2)
        axes.set(xscale="log", xlabel="peak learning rate")
        verdict = "passed" if audit.families[name]["passed"] else "FAILED"
        axes.set_title(f"{name}: {verdict}", loc="left", fontsize=10)
        axes.grid(alpha=0.25)
        axes.legend(fontsize=7, frameon=False)
    panels[0].set_ylabel("loss above the best rate's (nats/token)")
    return figure


def write_lr_audit(
    folder: Path, out: Path, only: Collection[str] | None, common_lr: float
) -> LrAudit:
    """Write the audit as JSON (the gate), text, and a figure to `out`.

    Raises:
        DataError: if there is no finished run, or what is there is no audit.
    """
    table, dropped = collect_runs(folder, only)
    audit = audit_rates(table, common_lr)
    out.mkdir(parents=True, exist_ok=True)
    draw(audit).savefig(out / FIGURE, dpi=150)
    write_json(out / "lr_audit.json", audit.to_dict())
    told = markdown(audit, len(table), dropped)
    write_text(out / "lr_audit.md", told)
    print(told)
    return audit


def markdown(audit: LrAudit, runs: int, dropped: Counter[str]) -> str:
    left_out = ", ".join(f"{count} {reason}" for reason, count in dropped.items()) or "none"
    lines = [
        f"# Does a learning rate of {audit.common_lr:g} serve every family?",
        "",
        f"![Loss above the best rate's, per family, size and budget; black: the common rate]({FIGURE})",
        "",
        "| family | audit | worst distance of an optimum | the common rate costs at most | a rate off by 2x costs |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, family in audit.families.items():
        verdict = "passed" if family["passed"] else f"FAILED: {'; '.join(family['reasons'])}"
        lines.append(
            f"| {name} | {verdict} | {_shown(family['worst_factor'], '.2f')}x "
            f"| {_shown(family['worst_penalty_nats'], '.4f')} nats/token "
            f"| {_shown(family['worst_cost_of_2x_nats'], '.4f')} |"
        )
    lines += [
        "",
        "| family | size | shape | tokens per parameter | best rate | optimum | 2x costs |",
    ]
    lines += ["| --- | --- | --- | --- | --- | --- | --- |"]
    for curve in audit.curves:
        edge = "" if curve.is_interior else " (edge)"
        lines.append(
            f"| {curve.family} | {curve.rung} | {curve.shape} | {curve.budget:g} "
            f"| {curve.best_lr:.1e}{edge} | {_shown(curve.vertex, '.2e')} "
            f"| {_shown(curve.cost_of_2x_nats, '.4f')} |"
        )
    lines += ["", f"{runs} runs; left out: {left_out}. Recipe {audit.recipe_id}.", ""]
    return "\n".join(lines)


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
