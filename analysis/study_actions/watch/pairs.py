"""Paired differences of finished cells: rows, summary and chart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slm.charts import Axis, Figure, Series, layered, points, rule
from slm.run.display_name import size_label
from slm.studies.cells import Cell
from slm.tracking.result import RunResult

MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Pair:
    """Validation losses of the two compared families at the same rung, budget and seed."""

    rung: str
    budget: str
    seed: int
    flops: float
    deep: float
    wide: float

    @property
    def difference(self) -> float:
        return self.deep - self.wide


def budget_label(cell: Cell) -> str:
    """Return the amount of the token budget, in the unit of the study."""
    return f"{cell.spec.config.budget.amount:g}".replace("e+", "e")


def pairs_of(
    results: Sequence[RunResult], cells: dict[str, Cell], deep: str, wide: str
) -> list[Pair]:
    """Return the finished pairs of the two families with the same rung, budget, seed and grid values."""
    sides: dict[tuple[Any, ...], dict[str, RunResult]] = defaultdict(dict)
    for result in results:
        cell = cells[result.run_id]
        key = (
            cell.spec.reference_flops_per_token,
            cell.spec.tokens,
            cell.spec.config.seed,
            cell.varied,
        )
        sides[key][cell.family] = result
    pairs = []
    for key in sorted(sides):
        losses = {family: one.val_loss_nats_per_token for family, one in sides[key].items()}
        a, b = losses.get(deep), losses.get(wide)
        if deep != wide and a is not None and b is not None:
            cell = cells[sides[key][deep].run_id]
            flops = float(cell.spec.flops)
            pairs.append(Pair(size_label(cell.spec), budget_label(cell), key[2], flops, a, b))
    return pairs


def pair_rows(pairs: Sequence[Pair]) -> list[list[str]]:
    return [
        [
            p.rung,
            p.budget,
            str(p.seed),
            f"{p.deep:.4f}",
            f"{p.wide:.4f}",
            f"{p.difference:+.4f}".replace("-", MINUS),
        ]
        for p in pairs
    ]


def pair_summary(pairs: Sequence[Pair], unit: str) -> list[str]:
    """Return mean and range of the differences per token budget."""
    by_budget: dict[str, list[float]] = defaultdict(list)
    for pair in pairs:
        by_budget[pair.budget].append(pair.difference)
    lines = []
    for budget, values in sorted(by_budget.items(), key=lambda one: float(one[0])):
        text = f"{unit} {budget}: mean {sum(values) / len(values):+.4f} nats/token"
        span = f"{min(values):+.4f} to {max(values):+.4f}, {len(values)} pairs"
        line = f"{text} ({span})" if len(values) > 1 else f"{text} (1 pair)"
        lines.append(line.replace("-", MINUS))
    return lines


def pairs_figure(pairs: Sequence[Pair], deep: str, wide: str, unit: str) -> Figure | None:
    """Plot deep minus wide against FLOPs, coloured by token budget; None without a pair."""
    if not pairs:
        return None
    budgets = Series(
        tuple(sorted({pair.budget for pair in pairs}, key=float)), is_ordered=True, title=unit
    )
    rows: list[Mapping[str, Any]] = [
        {
            "x": pair.flops,
            "y": pair.difference,
            "series": pair.budget,
            "tip": {
                "size": pair.rung,
                unit: pair.budget,
                "seed": str(pair.seed),
                "difference": f"{pair.difference:+.4f} nats/token",
            },
        }
        for pair in pairs
    ]
    x = Axis.around([pair.flops for pair in pairs], "training FLOPs", log=True, kind="flops")
    y = Axis.around([0.0, *(pair.difference for pair in pairs)], "difference (nats/token)")
    chart = layered(rule(y=0), points(rows, x, y, budgets, size=60), series=budgets)
    caption = f"Validation loss of {deep} minus that of {wide}, a mark per pair. Below 0: {deep} is better."
    return Figure("pairs", "Paired differences", caption, chart, 260)
