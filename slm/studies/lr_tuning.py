"""Tuning of the learning rate per shape: a grid of factor 2 at the shortest budget, extended to the optimum.

Used with study.lr_policy=tuned, where no parametrization transfers one rate to all shapes. The results are written
to `lr_tuning.json` beside the runs: the best rate, the curvature of the loss in ln lr and the residual
penalty, curvature / 2 * (ln(lr / vertex))^2, that stays because rates are a factor of 2 apart (null where a
neighbour of the best rate diverged). Of rates with equal losses, the lowest is the best.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from slm.config.schema import Config
from slm.errors import RunError
from slm.files import read_object, write_json
from slm.parabola import minimum_on_grid
from slm.rounding import first_argmin
from slm.studies.cells import ArmKey, Cell, RungKey
from slm.studies.expand import Arm, Rates, shortest_cell
from slm.tracking.result import RunResult

log = logging.getLogger("slm")
FILE = "lr_tuning.json"
FACTOR = 2.0
FIRST_STEPS = (-1, 0, 1)  # first grid of every shape, in doublings of optimizer.lr
MAX_DOUBLINGS = 6  # of optimizer.lr; an optimum farther away indicates an error in the recipe


@dataclass(frozen=True)
class Tuned:
    """Result of tuning one shape. `penalty_nats` is the loss above the optimum due to the grid spacing."""

    family: str
    rung: RungKey
    varied: tuple[str, ...]
    shape: str
    lr: float
    vertex: float | None
    curvature_nats: float | None
    penalty_nats: float | None
    cost_of_2x_nats: float | None
    losses: dict[str, float | None]
    """Final loss at each rate, nats per token; None where training diverged."""

    @property
    def key(self) -> ArmKey:
        return self.family, self.rung, self.varied


def tune(
    arms: Sequence[Arm],
    recorded: Mapping[str, RunResult],
    run: Callable[[Sequence[Cell]], None],
) -> list[Tuned]:
    """Extend each arm's grid until its best rate is not at the edge; write and return the results.

    With `rerun` every run of the grid is trained again, once.

    Raises:
        RunError: if a run failed or has no readable result, or an optimum lies more than `MAX_DOUBLINGS` from
            optimizer.lr.
    """
    steps: dict[ArmKey, list[int]] = {arm.key: list(FIRST_STEPS) for arm in arms}
    rerun, trained = arms[0].config.rerun, set[str]()
    while True:
        cells = {
            (arm.key, step): shortest_cell(_at(arm, step), recorded)
            for arm in arms
            for step in steps[arm.key]
        }
        missing = [
            cell
            for cell in cells.values()
            if not cell.is_done or (rerun and cell.spec.run_id not in trained)
        ]
        if missing:
            log.info("learning rate tuning: %d of %d runs remaining", len(missing), len(cells))
            run(missing)
            trained |= {cell.spec.run_id for cell in missing}
        is_extended = False
        for arm in arms:
            own = sorted(steps[arm.key])
            at = first_argmin([_loss(cells[arm.key, step]) for step in own])
            if 0 < at < len(own) - 1:
                continue
            further = own[0] - 1 if at == 0 else own[-1] + 1
            if abs(further) > MAX_DOUBLINGS:
                raise RunError(
                    f"{arm.family} on {arm.rung}: the best learning rate {_rate(arm, own[at]):.2g} is at the edge of "
                    f"the grid of {len(own)} rates; set another optimizer.lr"
                )
            steps[arm.key].append(further)
            is_extended = True
        if not is_extended:
            break
    found = [
        _tuned(arm, {_rate(arm, step): cells[arm.key, step] for step in sorted(steps[arm.key])})
        for arm in arms
    ]
    _write(arms[0].config, found)
    return found


def known_rates(config: Config) -> Rates:
    """Read the tuned learning rates by `Arm.key`; arms without one use optimizer.lr in a plan."""
    path = _path(config)
    if not path.exists():
        return {}
    rows = read_object(path, "delete it; the next run tunes the learning rates again", ["shapes"])[
        "shapes"
    ]
    return {(row["family"], row["rung"], tuple(row["varied"])): row["lr"] for row in rows}


def _tuned(arm: Arm, cells: Mapping[float, Cell]) -> Tuned:
    rates = sorted(cells)
    losses = [_loss(cells[rate]) for rate in rates]
    best = rates[first_argmin(losses)]
    curve = minimum_on_grid([math.log(rate) for rate in rates], losses)
    return Tuned(
        family=arm.family,
        rung=arm.rung,
        varied=arm.varied,
        shape=cells[best].spec.shape.label,
        lr=best,
        vertex=None if curve is None else math.exp(curve.x),
        curvature_nats=None if curve is None else curve.curvature,
        penalty_nats=None if curve is None else curve.cost(math.log(best) - curve.x),
        cost_of_2x_nats=None if curve is None else curve.cost_of_two,
        losses={
            f"{rate:.6g}": loss if math.isfinite(loss) else None
            for rate, loss in zip(rates, losses, strict=True)
        },
    )


def _at(arm: Arm, step: int) -> Arm:
    return arm.with_optimizer({"lr": _rate(arm, step)})


def _rate(arm: Arm, step: int) -> float:
    return float(f"{arm.config.optimizer.lr * FACTOR**step:.6g}")


def _loss(cell: Cell) -> float:
    """Return the final loss in nats per token; infinite for a rate at which training diverged.

    Raises:
        RunError: if a run that ended has no readable result.
    """
    result = cell.result
    if result is None:
        raise RunError(
            f"{cell.run.path}: {cell.state}, without a readable result.json of this run; delete this folder, and "
            "the same command trains the run again"
        )
    loss = result.val_loss_nats_per_token
    return math.inf if loss is None else loss


def _path(config: Config) -> Path:
    return Path(config.runs_dir) / config.study.name / FILE


def _write(config: Config, found: Sequence[Tuned]) -> None:
    shapes: list[dict[str, Any]] = [asdict(tuned) for tuned in found]
    path = _path(config)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"schema_version": 1, "factor": FACTOR, "shapes": shapes})
