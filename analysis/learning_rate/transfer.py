"""Report of a learning-rate sweep: optimal learning rate per shape, and the cost of one common learning rate.

It reads the runs of a study with `optimizer.lr` in its grid.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.formatting import count, format_dropped, format_nats
from analysis.learning_rate.audit import common_rate
from analysis.runs.sources import collect_runs
from slm.architecture.shapes import shape_label
from slm.charts import Axis, Figure, Series, layered, lines, panels, points
from slm.errors import DataError
from slm.files import write_json, write_text
from slm.parabola import minimum_on_grid
from slm.rounding import first_argmin
from slm.summary import Summarized

FIGURE = "lr_transfer.png"
ORDER = ("standard", "mup", "completep")


@dataclass(frozen=True, repr=False)
class Curve(Summarized):
    """Optimal learning rate of one parametrization and shape.

    Attributes:
        best_lr: vertex of the parabola in ln lr through the lowest loss and its two neighbours, or the edge
            of the grid if the lowest loss is there.
        interior: whether the lowest loss lies inside the grid.
        regret: loss at `common_rate` minus the lowest loss of this shape, in nats per token; None if no
            learning rate was run by all shapes.
    """

    parametrization: str
    shape: str
    n_layers: int
    d_model: int
    best_lr: float
    interior: bool
    best_loss: float
    regret: float | None

    def title(self) -> str:
        edge = "" if self.interior else " (edge of the grid)"
        return (
            f"{self.parametrization} {self.shape}: best learning rate {self.best_lr:.2e}{edge}, loss "
            f"{self.best_loss:.4f} nats/token, regret {format_nats(self.regret)}"
        )


def curves(table: pd.DataFrame) -> list[Curve]:
    """Return one `Curve` per parametrization and shape; losses are averaged over seeds."""
    found = []
    for kind in sorted(table["parametrization"].unique(), key=_rank):
        losses = loss_grid(table, kind)
        common = common_rate(losses)
        for n_layers, d_model in losses.index:
            row = losses.loc[(n_layers, d_model)]
            measured = row.dropna()
            best_lr, best_loss, interior = _vertex(measured)
            found.append(
                Curve(
                    parametrization=str(kind),
                    shape=shape_label(n_layers, d_model),
                    n_layers=int(n_layers),
                    d_model=int(d_model),
                    best_lr=best_lr,
                    interior=interior,
                    best_loss=best_loss,
                    regret=None if common is None else float(row[common] - measured.min()),
                )
            )
    return found


def loss_grid(table: pd.DataFrame, kind: str) -> pd.DataFrame:
    """Return the mean losses of one parametrization: one row per shape, one column per learning rate."""
    rows = table[table["parametrization"] == kind]
    return rows.pivot_table(
        index=["n_layers", "d_model"], columns="peak_lr", values="loss_nats_per_token"
    )


def _vertex(losses: pd.Series) -> tuple[float, float, bool]:
    log_lrs, values = [math.log(float(lr)) for lr in losses.index], losses.tolist()
    best = minimum_on_grid(log_lrs, values)
    if best is None:
        lowest = first_argmin(values)
        return math.exp(log_lrs[lowest]), values[lowest], False
    return math.exp(best.x), best.y, True


def summaries(found: list[Curve]) -> list[dict[str, Any]]:
    """Return one row per parametrization: the range of the best learning rates, and the largest regret."""
    rows: list[dict[str, Any]] = []
    for kind in dict.fromkeys(curve.parametrization for curve in found):
        of_kind = [curve for curve in found if curve.parametrization == kind]
        rates = [curve.best_lr for curve in of_kind]
        regrets = [curve.regret for curve in of_kind if curve.regret is not None]
        rows.append(
            {
                "parametrization": kind,
                "lowest_best_lr": min(rates),
                "highest_best_lr": max(rates),
                "spread_doublings": math.log2(max(rates) / min(rates)),
                "all_interior": all(curve.interior for curve in of_kind),
                "worst_regret_nats": max(regrets, default=None),
                "mean_best_loss": float(np.mean([curve.best_loss for curve in of_kind])),
            }
        )
    return rows


def loss_against_learning_rate(table: pd.DataFrame) -> Figure:
    """Plot the mean loss against the learning rate: one panel per parametrization, one line per shape."""
    rates, losses = sorted(table["peak_lr"].unique()), table["loss_nats_per_token"]
    x = Axis.around(rates, "peak learning rate", log=True, kind="scientific", ticks=rates)
    y = Axis.around(losses, "validation loss (nats/token)")
    charts = {}
    for kind in sorted(table["parametrization"].unique(), key=_rank):
        grid = loss_grid(table, kind)
        names = [shape_label(*shape) for shape in grid.index]
        rows, lowest = [], []
        for name, (_, row) in zip(names, grid.iterrows(), strict=True):
            measured = row.dropna()
            drawn = [
                {
                    "x": rate,
                    "y": loss,
                    "series": name,
                    "group": name,
                    "tip": {"shape": name, "learning rate": f"{rate:g}", "loss": f"{loss:.4f}"},
                }
                for rate, loss in measured.items()
            ]
            rows += drawn
            lowest.append(drawn[first_argmin(measured)])
        series = Series(tuple(names), interactive=False)
        charts[str(kind)] = layered(
            lines(rows, x, y, series),
            points(lowest, x, y, series, size=220, filled=False),
            points(rows, x, y, series),
            series=series,
        )
    return Figure(
        "lr_transfer",
        "Loss against learning rate by shape",
        "One line per shape, averaged over seeds; large mark: lowest loss of the shape.",
        panels(charts),
    )


def write_lr_report(folder: Path, out: Path, only: Collection[str] | None = None) -> None:
    """Write lr_transfer.md, .json, .csv and .png to `out`.

    Raises:
        DataError: if no run is finished, or runs differ in more than parametrization, shape, learning rate
            and seed.
    """
    table, dropped = collect_runs(folder, only)
    keys = ["parametrization", "n_layers", "d_model", "peak_lr", "seed"]
    if table.duplicated(keys).any():
        raise DataError(
            f"{folder}: several runs have the same shape, learning rate and seed, but differ in another "
            "setting such as the token budget; use one value of that setting in a learning-rate sweep"
        )
    found = curves(table)
    out.mkdir(parents=True, exist_ok=True)
    loss_against_learning_rate(table).save(out / FIGURE)
    report = markdown(found, len(table), dropped)
    write_text(out / "lr_transfer.md", report)
    columns = [*keys, "tokens"]
    chosen = table[[*columns, "flops", "loss_nats_per_token"]].sort_values(columns)
    write_text(out / "lr_transfer.csv", chosen.to_csv(index=False))
    results = {"summary": summaries(found), "curves": [asdict(curve) for curve in found]}
    write_json(out / "lr_transfer.json", results)
    print(report)


def markdown(found: list[Curve], runs: int, dropped: Counter[str]) -> str:
    """Return the content of lr_transfer.md."""
    lines = [
        "# Optimal learning rate per shape",
        "",
        f"![Loss against learning rate, per shape]({FIGURE})",
        "",
        "| parametrization | best LR | range | largest cost of a common LR | mean best loss |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in summaries(found):
        edge = "" if row["all_interior"] else ", some at the edge of the grid"
        lines.append(
            f"| {row['parametrization']} | {row['lowest_best_lr']:.1e} to {row['highest_best_lr']:.1e}{edge} "
            f"| {row['spread_doublings']:.1f} doublings | {format_nats(row['worst_regret_nats'])} nats/token "
            f"| {row['mean_best_loss']:.4f} |"
        )
    lines += ["", "| parametrization | shape | best LR | best loss | cost of the common LR |"]
    lines += ["| --- | --- | --- | --- | --- |"]
    for curve in found:
        edge = "" if curve.interior else " (edge of the grid)"
        lines.append(
            f"| {curve.parametrization} | {curve.shape} | {curve.best_lr:.1e}{edge} "
            f"| {curve.best_loss:.4f} | {format_nats(curve.regret)} |"
        )
    lines += ["", f"{count(runs, 'run')}; left out: {format_dropped(dropped)}.", ""]
    return "\n".join(lines)


def _rank(kind: str) -> int:
    return ORDER.index(kind) if kind in ORDER else len(ORDER)
