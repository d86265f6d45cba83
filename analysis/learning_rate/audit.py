"""Audit of learning rates: check that no family is compared at a learning rate far from its optimum.

An audit trains some shapes of each family over a grid of learning rates. A parabola in ln lr through the
lowest loss of a shape and its two neighbours gives the optimal learning rate lr_best. The learning rate of
the study has the penalty curvature / 2 * (ln lr - ln lr_best)^2 in nats. If several learning rates have the
same lowest loss, the smallest of them counts as the best.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from analysis.formatting import count, format_number
from slm.errors import DataError
from slm.parabola import minimum_on_grid
from slm.rounding import exceeds, first_argmin, snap_to_zero
from slm.summary import Rows, Summarized

MAX_PENALTY = 0.01  # nats: the default random effect of a shape
MIN_SIZES = 2  # of a family: one size does not show that a rate transfers
SAME_SIZE = math.log(1.1)  # ln N: shapes closer than this are of one size
SAME_BUDGET = math.log(1.3)  # ln(tokens / N)
REQUIRED_COLUMNS = ("family", "shape", "peak_lr", "loss_nats_per_token")


@dataclass(frozen=True)
class ShapeAudit:
    """Optimal learning rate of one shape.

    Attributes:
        interior: whether the optimum lies inside the grid; the next three are None if it does not.
        curvature: second derivative of the loss, in nats per (ln lr)^2.
        cost_of_two: loss increase in nats at twice or half the optimal learning rate.
        used_lr: learning rate of the study; penalty: loss increase in nats there.
    """

    family: str
    shape: str
    interior: bool
    best_lr: float
    used_lr: float
    curvature: float | None = None
    cost_of_two: float | None = None
    penalty: float | None = None


@dataclass(frozen=True, repr=False)
class Audit(Summarized):
    """Result of a learning-rate audit.

    `failed` maps each family that failed to the reason, `cells` each family to the sizes and tokens it was audited at,
    as pairs (N_flop, tokens). A summary written by hand has no cells.
    """

    families: tuple[str, ...]
    failed: dict[str, str]
    shapes: tuple[ShapeAudit, ...] = ()
    cells: dict[str, tuple[tuple[float, float], ...]] = field(default_factory=dict)

    def passed(self, *families: str) -> bool:
        """Return whether all given families were audited and passed."""
        return all(name in self.families and name not in self.failed for name in families)

    def reasons(self, *families: str) -> list[str]:
        """Return the reasons why the given families do not pass; empty if they pass."""
        missing = [name for name in families if name not in self.families]
        return [
            *(f"{name}: {self.failed[name]}" for name in families if name in self.failed),
            *(
                f"{name}: not in the audit; run its shapes over a grid of learning rates"
                for name in missing
            ),
        ]

    def gaps(self, runs: pd.DataFrame, *families: str) -> list[str]:
        """Return what the audit does not cover of each given family; empty if it suffices or has no cells.

        It needs two sizes, and in one of them the smallest and the largest token budget of the study (a factor of 1.3
        apart is the same): the best rate may change with both.

        Args:
            runs: the study's, with the columns family, tokens and flops.
        """
        found = []
        for family in families:
            own = runs[runs["family"] == family]
            if family not in self.cells or own.empty:
                continue
            sizes = _by_size(self.cells[family])
            studied = _by_size(zip(own["flops"] / (6 * own["tokens"]), own["tokens"], strict=True))
            if len(sizes) < MIN_SIZES <= len(studied):
                found.append(f"{family}: only one size is audited, {MIN_SIZES} are needed")
            wanted = [ratio for ratios in studied for ratio in ratios]
            if not any(
                exceeds(min(wanted) + SAME_BUDGET, min(ratios))
                and exceeds(max(ratios) + SAME_BUDGET, max(wanted))
                for ratios in sizes
            ):
                low, high = (math.exp(end) for end in (min(wanted), max(wanted)))
                found.append(
                    f"{family}: no size is audited at the study's smallest and largest token budget "
                    f"(tokens_per_param {low:.3g} and {high:.3g})"
                )
        return found

    def title(self) -> str:
        families = count(len(self.families), "family", "families")
        return f"learning-rate audit of {families}: {'FAILED' if self.failed else 'passed'}"

    def details(self) -> Iterator[tuple[str, str]]:
        for family in self.families:
            failed = family in self.failed
            yield family, f"FAILED: {self.failed[family]}" if failed else "passed"

    def rows(self) -> Rows:
        """Return one row per shape, or per family if only a summary was given."""
        if not self.shapes:
            return [{"family": family, "audit": text} for family, text in self.details()]
        return [
            {
                "family": one.family,
                "shape": one.shape,
                "best LR": f"{one.best_lr:.2e}" + ("" if one.interior else " (edge of the grid)"),
                "penalty of the LR used, nats/token": format_number(one.penalty),
                "cost of a factor 2, nats/token": format_number(one.cost_of_two),
            }
            for one in self.shapes
        ]


def audit_learning_rates(
    runs: pd.DataFrame, used_lr: Mapping[str, float] | float | None = None
) -> Audit:
    """Fit the optimal learning rate of every shape, and check the learning rate of the study against it.

    Args:
        runs: table with the columns family, shape, peak_lr and loss_nats_per_token; losses are averaged
            over seeds.
        used_lr: learning rate of the study, or one per family. None: the column `used_lr` of each shape; without
            that column, the learning rate of the grid with the smallest worst-case excess loss over shapes.

    Raises:
        DataError: if a column is missing, the grid has fewer than 3 learning rates, or the learning rate of the study
            is not given and no rate was run by all shapes.
    """
    missing = [name for name in REQUIRED_COLUMNS if name not in runs]
    if missing:
        raise DataError(
            f"the audit table has no column {', '.join(missing)}; its columns are {list(runs)}"
        )
    grid = runs.pivot_table(
        index=["family", "shape"], columns="peak_lr", values=REQUIRED_COLUMNS[-1]
    )
    if grid.shape[1] < 3:
        raise DataError(f"the audit has {grid.shape[1]} learning rates; run at least 3")
    common = common_rate(grid)
    shapes = []
    for key, row in grid.iterrows():
        family, shape = str(key[0]), str(key[1])  # type: ignore[index]
        lr = common
        if isinstance(used_lr, Mapping):
            lr = used_lr.get(family, common)
        elif used_lr is not None:
            lr = float(used_lr)
        elif "used_lr" in runs:
            own = (runs["family"] == family) & (runs["shape"] == shape)
            lr = float(runs.loc[own, "used_lr"].iloc[0])
        if lr is None:
            raise DataError(
                "no learning rate was run by all shapes of the audit, so give the one to audit: the column used_lr"
            )
        shapes.append(_audit_shape(family, shape, row.dropna(), lr))
    failed = {}
    for audited in shapes:
        if not audited.interior:
            failed[audited.family] = (
                f"the best learning rate of {audited.shape}, {audited.best_lr:.2g}, is at the edge of the "
                "grid; widen the grid"
            )
        elif audited.penalty is not None and exceeds(audited.penalty, MAX_PENALTY):
            failed[audited.family] = (
                f"the learning rate of {audited.shape} costs {audited.penalty:.3f} nats, more than "
                f"{MAX_PENALTY:g}; run it again at {audited.best_lr:.2g}"
            )
    families = tuple(dict.fromkeys(audited.family for audited in shapes))
    return Audit(families, failed, tuple(shapes), _cells_of(runs))


def _cells_of(runs: pd.DataFrame) -> dict[str, tuple[tuple[float, float], ...]]:
    if not {"n_flop", "tokens"} <= set(runs):
        return {}
    return {
        str(family): tuple(
            sorted(
                {(float(n), float(d)) for n, d in zip(own["n_flop"], own["tokens"], strict=True)}
            )
        )
        for family, own in runs.groupby("family")
    }


def _by_size(cells: Iterable[tuple[float, float]]) -> list[list[float]]:
    """Return ln(tokens / N) of the cells of each size."""
    sizes: list[list[float]] = []
    last = -math.inf
    for n, tokens in sorted(cells):
        if exceeds(math.log(n) - last, SAME_SIZE):
            sizes.append([])
        last = math.log(n)
        sizes[-1].append(math.log(tokens / n))
    return sizes


def common_rate(losses: pd.DataFrame) -> float | None:
    """Return the learning rate, run by all shapes, with the smallest worst-case excess loss over shapes.

    The excess loss is the loss minus the lowest loss of the shape. None if no learning rate was run by all.

    Args:
        losses: one row per shape, one column per learning rate; nan if it was not run.
    """
    excess = losses.sub(losses.min(axis=1), axis=0).dropna(axis=1)
    worst = snap_to_zero(excess.max())
    return float(excess.columns[first_argmin(worst)]) if excess.shape[1] else None


def by_budget(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the runs with the token budget in the name of the shape, so that each budget is audited by itself."""
    cells = runs.groupby(["family", "shape", "tokens"])
    budgets = cells["tokens_per_param"].transform("median")
    return runs.assign(shape=runs["shape"] + budgets.map(" at tokens_per_param {:g}".format))


def _audit_shape(family: str, shape: str, losses: pd.Series, used_lr: float) -> ShapeAudit:
    log_lrs, values = [math.log(float(lr)) for lr in losses.index], losses.tolist()
    best = minimum_on_grid(log_lrs, values)
    if best is None:
        return ShapeAudit(family, shape, False, math.exp(log_lrs[first_argmin(values)]), used_lr)
    return ShapeAudit(
        family=family,
        shape=shape,
        interior=True,
        best_lr=math.exp(best.x),
        used_lr=used_lr,
        curvature=best.curvature,
        cost_of_two=best.cost_of_two,
        penalty=best.cost(math.log(used_lr) - best.x),
    )


def middle_learning_rate(learning_rates: Iterable[float]) -> float:
    """Return the middle learning rate of a grid, which is the one that the audited study uses."""
    grid = sorted(set(learning_rates))
    return grid[len(grid) // 2]


def parse_audit(
    source: pd.DataFrame | Mapping[str, Mapping[str, Any]] | Audit | None,
) -> Audit | None:
    """Return an `Audit` from audit runs or from a summary {family: {"interior": bool, "penalty": nats}}.

    A summary may have `cells`, [{"n_flop": .., "tokens": ..}, ..]: where the family was audited. An `Audit` and None are returned unchanged.

    Raises:
        DataError: if the summary of a family has no key `interior`, or the table of runs is incomplete.
    """
    if source is None or isinstance(source, Audit):
        return source
    if isinstance(source, pd.DataFrame):
        return audit_learning_rates(source)
    failed = {}
    for family, summary in source.items():
        if not isinstance(summary, Mapping) or "interior" not in summary:
            raise DataError(
                f"audit of {family}: {summary!r} must have the keys interior (true or false) and penalty (nats)"
            )
        penalty = summary.get("penalty", summary.get("residual_penalty"))
        if not summary["interior"]:
            failed[str(family)] = "its best learning rate is not inside the grid; widen the grid"
        elif penalty is not None and exceeds(penalty, MAX_PENALTY):
            failed[str(family)] = (
                f"its learning rate costs {penalty:.3f} nats; run it again at its best learning rate"
            )
    cells = {str(family): _cells_in(str(family), summary) for family, summary in source.items()}
    known = {family: own for family, own in cells.items() if own}
    return Audit(tuple(str(family) for family in source), failed, cells=known)


def _cells_in(family: str, summary: Mapping[str, Any]) -> tuple[tuple[float, float], ...]:
    cells = summary.get("cells") or ()
    try:
        return tuple((float(cell["n_flop"]), float(cell["tokens"])) for cell in cells)
    except (TypeError, ValueError, KeyError):
        raise DataError(
            f"audit of {family}: cells is {cells!r}; it must be a list of objects with the numbers n_flop and tokens"
        ) from None
