"""Which learning rate a tuned study chooses from given losses, without training."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from slm.config.schema import Config
from slm.errors import RunError
from slm.studies.cells import Cell
from slm.studies.expand import Arm, arms_of
from slm.studies.lr_tuning import Tuned, known_rates, tune
from slm.tracking.results_file import read_results
from tests.conftest import ROOT
from tests.slm.studies.test_expand import STUDY, composer

pytestmark = pytest.mark.numeric

RESULT = next(
    iter(read_results(ROOT / "analysis" / "examples" / "micro_first" / "results.jsonl").values())
)
Loss = Callable[[float], float | None]


def tuned(
    tiny_config: Callable[..., Config], loss: Loss, *, rerun: bool = False
) -> tuple[Tuned, Config]:
    """Tune one shape from optimizer.lr = 0.008, whose loss at a rate is given; None: it diverged."""
    arm = arm_of(tiny_config, rerun=rerun)

    def run(cells: Sequence[Cell]) -> None:
        for cell in cells:
            value = loss(cell.spec.config.optimizer.lr)
            cell.run.path.mkdir(parents=True, exist_ok=rerun)
            cell.run.write_result(
                replace(RESULT, run_id=cell.spec.run_id, val_loss_nats_per_token=value)
            )
            cell.run.write_status("finished" if value is not None else "diverged")

    (found,) = tune([arm], {}, run)
    return found, arm.config


def arm_of(tiny_config: Callable[..., Config], **changes: Any) -> Arm:
    study = {"families": ["deep_thin"], "sizes": ["80k"], "lr_policy": "tuned"}
    config = tiny_config(**STUDY | {"study": STUDY["study"] | study, "optimizer": {"lr": 8e-3}})
    (arm,) = arms_of(config, composer(tiny_config))
    return replace(arm, config=replace(arm.config, optimizer=config.optimizer, **changes))


def test_the_grid_grows_until_the_best_rate_is_inside(
    tiny_config: Callable[..., Config],
) -> None:
    found, config = tuned(tiny_config, lambda lr: 2 + 0.05 / 2 * math.log(lr / 2.2e-3) ** 2)
    assert found.lr == 2e-3 and sorted(found.losses) == [
        "0.001",
        "0.002",
        "0.004",
        "0.008",
        "0.016",
    ]
    assert found.vertex == pytest.approx(2.2e-3) and found.curvature_nats == pytest.approx(0.05)
    assert found.penalty_nats == pytest.approx(0.025 * math.log(1.1) ** 2)
    assert found.cost_of_2x_nats == pytest.approx(0.025 * math.log(2) ** 2)
    assert known_rates(config) == {found.key: 2e-3}


def test_a_rate_that_diverges_is_kept_as_null(tiny_config: Callable[..., Config]) -> None:
    found, config = tuned(tiny_config, lambda lr: None if lr > 8e-3 else 2 + 8e-3 - lr)
    assert found.lr == 8e-3 and found.vertex is None and found.penalty_nats is None
    path = Path(config.runs_dir) / config.study.name / "lr_tuning.json"
    assert json.loads(path.read_text())["shapes"][0]["losses"]["0.016"] is None
    assert known_rates(config) == {found.key: 8e-3}


def test_a_tie_with_the_end_of_the_grid_extends_it(tiny_config: Callable[..., Config]) -> None:
    losses = {4e-3: 2.0, 8e-3: 2.1, 1.6e-2: 2.2, 2e-3: 2.0, 1e-3: 2.3}
    found, _ = tuned(tiny_config, losses.__getitem__)
    assert found.lr == 2e-3 and len(found.losses) == 5
    assert found.vertex is not None and 2e-3 < found.vertex < 4e-3


def test_rerun_trains_each_rate_again_once(tiny_config: Callable[..., Config]) -> None:
    """The losses of the earlier call have their minimum at 8e-3."""
    tuned(tiny_config, lambda lr: 2 + abs(math.log(lr / 8e-3)))
    rates: list[float] = []

    def loss(lr: float) -> float:
        rates.append(lr)
        return 2 + abs(math.log(lr / 2e-3))

    assert tuned(tiny_config, loss, rerun=True)[0].lr == 2e-3
    assert sorted(rates) == [1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2]


@pytest.mark.parametrize("content", [None, "{"], ids=["lost", "damaged"])
def test_run_without_a_result_does_not_count_as_diverged(
    tiny_config: Callable[..., Config], content: str | None
) -> None:
    _, config = tuned(tiny_config, lambda lr: 2 + abs(math.log(lr / 8e-3)))
    path = next((Path(config.runs_dir) / config.study.name).glob("*/result.json"))
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(RunError, match=f"{path.parent}: finished, without a readable result.json"):
        tune([arm_of(tiny_config)], {}, lambda cells: None)


@pytest.mark.parametrize(("sign", "last"), [(1, r"0\.00013"), (-1, r"0\.51")])
def test_an_optimum_far_from_the_first_rates_is_an_error(
    tiny_config: Callable[..., Config], sign: int, last: str
) -> None:
    with pytest.raises(
        RunError, match=f"the best learning rate {last} is at the edge of the grid of 8 rates"
    ):
        tuned(tiny_config, lambda lr: 3 + sign * lr)
