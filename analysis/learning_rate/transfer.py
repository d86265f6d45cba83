"""Where the best learning rate of each shape lies, and what one rate for all shapes would cost.

For the runs of a study with `optimizer.lr` in its grid.
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
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from analysis.formatting import count, format_dropped, format_nats
from analysis.plotting import COLOURS, LINES, MARKERS
from analysis.runs.load import collect_runs
from slm.architecture.shapes import shape_label
from slm.errors import DataError
from slm.files import write_json, write_text
from slm.parabola import minimum_on_grid
from slm.rounding import first_argmin, snap_to_zero

FIGURE = "lr_transfer.png"
ORDER = ("standard", "mup", "completep")


@dataclass(frozen=True)
class Curve:
    """Loss of one shape over learning rates. `best_lr` is the vertex of the parabola in ln lr through
    the lowest point and its neighbours; at an edge of the grid it is that edge, and not interior.
    `regret` is what the rate that suits all shapes best costs this one, in nats per token.
    """

    parametrization: str
    shape: str
    n_layers: int
    d_model: int
    best_lr: float
    interior: bool
    best_loss: float
    regret: float | None


def curves(table: pd.DataFrame) -> list[Curve]:
    """One curve per parametrization and shape; seeds are averaged."""
    found = []
    for kind in sorted(table["parametrization"].unique(), key=_rank):
        losses = loss_grid(table, kind)
        common = common_rate(losses)
        for n_layers, d_model in losses.index:
            row = losses.loc[(n_layers, d_model)]
            seen = row.dropna()
            best_lr, best_loss, interior = _vertex(seen)
            found.append(
                Curve(
                    parametrization=str(kind),
                    shape=shape_label(n_layers, d_model),
                    n_layers=int(n_layers),
                    d_model=int(d_model),
                    best_lr=best_lr,
                    interior=interior,
                    best_loss=best_loss,
                    regret=None if common is None else float(row[common] - seen.min()),
                )
            )
    return found


def loss_grid(table: pd.DataFrame, kind: str) -> pd.DataFrame:
    """Mean losses of one parametrization: a row a shape, a column a learning rate."""
    rows = table[table["parametrization"] == kind]
    return rows.pivot_table(
        index=["n_layers", "d_model"], columns="peak_lr", values="loss_nats_per_token"
    )


def common_rate(losses: pd.DataFrame) -> float | None:
    """The rate, run by every shape, whose worst excess over a shape's own best is smallest."""
    excess = losses.sub(losses.min(axis=1), axis=0).dropna(axis=1)
    worst = snap_to_zero(excess.max())
    return float(excess.columns[first_argmin(worst)]) if excess.shape[1] else None


def _vertex(losses: pd.Series) -> tuple[float, float, bool]:
    rates, values = [math.log(float(rate)) for rate in losses.index], losses.tolist()
    best = minimum_on_grid(rates, values)
    if best is None:
        at = first_argmin(values)
        return math.exp(rates[at]), values[at], False
    return math.exp(best.x), best.y, True


def summaries(found: list[Curve]) -> list[dict[str, Any]]:
    """Per parametrization: how far the best rates lie apart, and the worst regret."""
    rows: list[dict[str, Any]] = []
    for kind in dict.fromkeys(curve.parametrization for curve in found):
        own = [curve for curve in found if curve.parametrization == kind]
        rates = [curve.best_lr for curve in own]
        rows.append(
            {
                "parametrization": kind,
                "lowest_best_lr": min(rates),
                "highest_best_lr": max(rates),
                "spread_doublings": math.log2(max(rates) / min(rates)),
                "all_interior": all(curve.interior for curve in own),
                "worst_regret_nats": max(
                    (curve.regret for curve in own if curve.regret is not None), default=None
                ),
                "mean_best_loss": float(np.mean([curve.best_loss for curve in own])),
            }
        )
    return rows


def draw(table: pd.DataFrame) -> Figure:
    kinds = sorted(table["parametrization"].unique(), key=_rank)
    figure = Figure(figsize=(3.6 * len(kinds), 3.8), layout="constrained")
    panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    rates = sorted(table["peak_lr"].unique())
    for axes, kind in zip(panels, kinds, strict=True):
        losses = loss_grid(table, kind)
        for (n_layers, d_model), colour, marker, line in zip(
            losses.index, cycle(COLOURS), cycle(MARKERS), cycle(LINES), strict=False
        ):
            row = losses.loc[(n_layers, d_model)].dropna()
            label = shape_label(n_layers, d_model)
            axes.plot(row.index, row, color=colour, marker=marker, ls=line, ms=4, label=label)
            best = first_argmin(row)
            axes.plot([row.index[best]], [row.iloc[best]], marker, color=colour, ms=9, mfc="none")
        axes.set(xscale="log", xlabel="peak learning rate")
        axes.set_title(str(kind), loc="left", fontsize=10)
        axes.xaxis.set_major_locator(FixedLocator(rates))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate * 1e3:g}e-3"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.tick_params(axis="x", labelsize=6)
        axes.grid(alpha=0.25)
        axes.legend(fontsize=7, frameon=False)
    panels[0].set_ylabel("validation loss (nats/token)")
    return figure


def write_lr_report(folder: Path, out: Path, only: Collection[str] | None = None) -> None:
    """Write the curves as text and as data, the runs as a table, and the figure to `out`.

    Raises:
        DataError: if there is no finished run, or runs differ in more than shape, rate and seed.
    """
    table, dropped = collect_runs(folder, only)
    own = ["parametrization", "n_layers", "d_model", "peak_lr", "seed"]
    if table.duplicated(own).any():
        raise DataError(
            f"{folder}: runs of one shape, learning rate and seed differ in something else, such as "
            "their token budget; keep one value of it in a study of learning rates"
        )
    found = curves(table)
    out.mkdir(parents=True, exist_ok=True)
    draw(table).savefig(out / FIGURE, dpi=150)
    told = markdown(found, len(table), dropped)
    write_text(out / "lr_transfer.md", told)
    columns = ["parametrization", "n_layers", "d_model", "peak_lr", "seed", "tokens"]
    chosen = table[[*columns, "flops", "loss_nats_per_token"]].sort_values(columns)
    write_text(out / "lr_transfer.csv", chosen.to_csv(index=False))
    results = {"summary": summaries(found), "curves": [asdict(curve) for curve in found]}
    write_json(out / "lr_transfer.json", results)
    print(told)


def markdown(found: list[Curve], runs: int, dropped: Counter[str]) -> str:
    lines = [
        "# Where the best learning rate lies, shape by shape",
        "",
        f"![Loss against learning rate, per shape]({FIGURE})",
        "",
        "| parametrization | best rates | apart by | worst cost of one rate for all | mean best loss |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in summaries(found):
        edge = "" if row["all_interior"] else ", some at the grid's edge"
        lines.append(
            f"| {row['parametrization']} | {row['lowest_best_lr']:.1e} to {row['highest_best_lr']:.1e}{edge} "
            f"| {row['spread_doublings']:.1f} doublings | {format_nats(row['worst_regret_nats'])} nats/token "
            f"| {row['mean_best_loss']:.4f} |"
        )
    lines += ["", "| parametrization | shape | best rate | best loss | cost of the common rate |"]
    lines += ["| --- | --- | --- | --- | --- |"]
    for curve in found:
        edge = "" if curve.interior else " (edge)"
        lines.append(
            f"| {curve.parametrization} | {curve.shape} | {curve.best_lr:.1e}{edge} "
            f"| {curve.best_loss:.4f} | {format_nats(curve.regret)} |"
        )
    lines += ["", f"{count(runs, 'run')}; left out: {format_dropped(dropped)}.", ""]
    return "\n".join(lines)


def _rank(kind: str) -> int:
    return ORDER.index(kind) if kind in ORDER else len(ORDER)
