"""The learning rate as a gate: a family that was trained off its optimum loses for that reason alone.

An audit trains some shapes of each family over a grid of learning rates. Each shape's loss is a parabola
in ln lr through its lowest point and the neighbours; the residual penalty of the rate that the study used
is curvature / 2 * (ln lr - ln lr_best)^2. Of rates with equal losses the lowest counts as the best.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from slm.errors import DataError
from slm.parabola import minimum_on_grid
from slm.rounding import exceeds, first_argmin, snap_to_zero

MAX_PENALTY = 0.01  # nats: the default random effect of a shape
NEEDED = ("family", "shape", "peak_lr", "loss_nats_per_token")


@dataclass(frozen=True)
class ShapeAudit:
    """One shape's optimum. `curvature`: nats per (ln lr)^2; `cost_of_two`: nats that a rate twice off costs;
    `penalty`: nats that the study's own rate costs; None where the optimum is not interior.
    """

    family: str
    shape: str
    interior: bool
    best_lr: float
    curvature: float | None = None
    cost_of_two: float | None = None
    penalty: float | None = None


@dataclass(frozen=True)
class Audit:
    """`failed`: families whose rate does not suit them, each with the reason; empty if all pass."""

    families: tuple[str, ...]
    failed: dict[str, str]
    shapes: tuple[ShapeAudit, ...] = ()

    def passed(self, *families: str) -> bool:
        """Whether all of these families were audited and none failed."""
        return all(name in self.families and name not in self.failed for name in families)

    def reasons(self, *families: str) -> list[str]:
        """Why these do not pass."""
        missing = [name for name in families if name not in self.families]
        return [
            *(f"{name}: {self.failed[name]}" for name in families if name in self.failed),
            *(f"{name}: not in the audit; run its shapes over a grid of rates" for name in missing),
        ]


def audit_rates(runs: pd.DataFrame, used: Mapping[str, float] | float | None = None) -> Audit:
    """Judge an audit's runs: columns family, shape, peak_lr, loss_nats_per_token; seeds are averaged.

    Args:
        used: the rate that the study trained with, one or one a family; None: the column `used_lr` if
            there is one, else the rate of the audit that suits all shapes best.

    Raises:
        DataError: if a column is absent, or a shape has fewer than 3 rates.
    """
    missing = [name for name in NEEDED if name not in runs]
    if missing:
        raise DataError(f"the audit lacks the columns {', '.join(missing)}; it has {list(runs)}")
    grid = runs.pivot_table(index=["family", "shape"], columns="peak_lr", values=NEEDED[-1])
    if grid.shape[1] < 3:
        raise DataError(f"the audit has {grid.shape[1]} learning rates; at least 3 are needed")
    excess = snap_to_zero(grid.sub(grid.min(axis=1), axis=0).max())
    common = grid.columns[first_argmin(excess)]
    shapes = []
    for key, row in grid.iterrows():
        family, shape = str(key[0]), str(key[1])  # type: ignore[index]
        rate = float(str(common))
        if isinstance(used, Mapping):
            rate = float(used.get(family, rate))
        elif used is not None:
            rate = float(used)
        elif "used_lr" in runs:
            rate = float(runs.loc[runs["family"] == family, "used_lr"].iloc[0])
        shapes.append(_shape(family, shape, row.dropna(), rate))
    failed = {}
    for audited in shapes:
        if not audited.interior:
            failed[audited.family] = (
                f"the best rate of {audited.shape}, {audited.best_lr:.2g}, is at the edge of the grid; "
                "widen it"
            )
        elif audited.penalty is not None and exceeds(audited.penalty, MAX_PENALTY):
            failed[audited.family] = (
                f"{audited.shape} loses {audited.penalty:.3f} nats to its learning rate (best "
                f"{audited.best_lr:.2g}); run it again there"
            )
    return Audit(tuple(dict.fromkeys(one.family for one in shapes)), failed, tuple(shapes))


def _shape(family: str, shape: str, losses: pd.Series, used: float) -> ShapeAudit:
    rates, values = [math.log(float(rate)) for rate in losses.index], losses.tolist()
    best = minimum_on_grid(rates, values)
    if best is None:
        return ShapeAudit(family, shape, False, math.exp(rates[first_argmin(values)]))
    return ShapeAudit(
        family=family,
        shape=shape,
        interior=True,
        best_lr=math.exp(best.x),
        curvature=best.curvature,
        cost_of_two=best.cost_of_two,
        penalty=best.cost(math.log(used) - best.x),
    )


def middle_rate(rates: Iterable[float]) -> float:
    """The rate in the middle of a grid: the one that the audited study uses."""
    grid = sorted(set(rates))
    return grid[len(grid) // 2]


def audit_of(given: pd.DataFrame | Mapping[str, Mapping[str, Any]] | Audit | None) -> Audit | None:
    """An audit from its runs, or from a summary {family: {"interior": bool, "penalty": nats}}.

    Raises:
        DataError: if it is neither.
    """
    if given is None or isinstance(given, Audit):
        return given
    if isinstance(given, pd.DataFrame):
        return audit_rates(given)
    failed = {}
    for family, found in given.items():
        if not isinstance(found, Mapping) or "interior" not in found:
            raise DataError(
                f"audit of {family}: must say interior (true or false) and penalty (nats), and is {found!r}"
            )
        penalty = found.get("penalty", found.get("residual_penalty"))
        if not found["interior"]:
            failed[str(family)] = "its best learning rate is not inside the grid; widen it"
        elif penalty is not None and exceeds(penalty, MAX_PENALTY):
            failed[str(family)] = f"its learning rate costs {penalty:.3f} nats; run it at its best"
    return Audit(tuple(str(family) for family in given), failed)
