"""Studies on a Ray cluster where processes die and the sweep is stopped."""

from __future__ import annotations

import signal

import pytest

from tests.clusters.conftest import MakeSweep
from tests.clusters.sweeping import (
    ONE,
    PAIR,
    Sweep,
    assert_same_study,
    ended,
    kill,
    saved_state,
    times_resumed,
)
from tests.running import assert_same_run

pytestmark = [pytest.mark.slow, pytest.mark.cluster]


@pytest.fixture
def on_ray(ray_address: str) -> tuple[str, ...]:
    return ("hydra/launcher=ray", f"hydra.launcher.init.address={ray_address}")


def test_a_dead_process_is_replaced_and_goes_on(
    on_ray: tuple[str, ...], ray_env: dict[str, str], sweep: MakeSweep, undisturbed: Sweep
) -> None:
    study = sweep(PAIR, *on_ray, env=ray_env)
    running = study.start()
    study.wait_for_checkpoints(2)
    killed, _ = study.runs().values()
    kill(killed)
    assert ended(running) == 0, study.said
    assert [times_resumed(run) for run in study.runs().values()] == [1, 0]
    assert_same_study(study, undisturbed)


def test_the_same_command_does_what_a_dead_process_left(
    on_ray: tuple[str, ...], ray_env: dict[str, str], sweep: MakeSweep, undisturbed: Sweep
) -> None:
    study = sweep(ONE, *on_ray, "hydra.launcher.remote.max_retries=0", env=ray_env)
    running = study.start()
    study.wait_for_checkpoints(1)
    ((run_id, run),) = study.runs().items()
    kill(run)
    assert ended(running) == 1
    assert "FAILED" in study.said and f"interrupted: {run.path}" in study.said
    assert study.to_end() == 0 and times_resumed(run) == 1
    assert_same_run(run, undisturbed.runs()[run_id])


def test_a_stopped_sweep_leaves_no_run_and_loses_no_step(
    on_ray: tuple[str, ...], ray_env: dict[str, str], sweep: MakeSweep, undisturbed: Sweep
) -> None:
    study = sweep(PAIR, *on_ray, env=ray_env)
    running = study.start()
    study.wait_for_checkpoints(2)
    running.send_signal(signal.SIGINT)
    assert ended(running) == 130, study.said
    assert [saved_state(run) for run in study.runs().values()] == ["interrupted"] * 2
    assert study.to_end() == 0
    assert [times_resumed(run) for run in study.runs().values()] == [1, 1]
    assert_same_study(study, undisturbed)


def test_no_cluster_is_said_in_one_line(ray_env: dict[str, str], sweep: MakeSweep) -> None:
    away = "hydra.launcher.init.address=127.0.0.1:9"
    study = sweep(ONE, "hydra/launcher=ray", away, env=ray_env)
    assert study.to_end() == 1
    assert f"no Ray at {away}" in study.said and "Traceback" not in study.said
