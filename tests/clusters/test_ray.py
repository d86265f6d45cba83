"""Studies on a Ray cluster, with killed processes and stopped sweeps."""

from __future__ import annotations

import signal

import pytest

from tests.clusters.conftest import MakeSweep
from tests.clusters.sweeping import (
    ONE,
    PAIR,
    Sweep,
    assert_same_study,
    count_resumes,
    kill,
    saved_state,
    wait_for_exit,
)
from tests.running import assert_same_run

pytestmark = [pytest.mark.slow, pytest.mark.cluster]


@pytest.fixture
def on_ray(ray_address: str) -> tuple[str, ...]:
    return ("hydra/launcher=ray", f"hydra.launcher.init.address={ray_address}")


def test_killed_run_is_retried_and_resumes(
    on_ray: tuple[str, ...], ray_env: dict[str, str], sweep: MakeSweep, uninterrupted: Sweep
) -> None:
    study = sweep(PAIR, *on_ray, env=ray_env)
    running = study.start()
    study.wait_for_checkpoints(2)
    killed, _ = study.runs().values()
    kill(killed)
    assert wait_for_exit(running) == 0, study.output
    assert [count_resumes(run) for run in study.runs().values()] == [1, 0]
    assert_same_study(study, uninterrupted)


def test_same_command_continues_a_killed_run(
    on_ray: tuple[str, ...], ray_env: dict[str, str], sweep: MakeSweep, uninterrupted: Sweep
) -> None:
    study = sweep(ONE, *on_ray, "hydra.launcher.remote.max_retries=0", env=ray_env)
    running = study.start()
    study.wait_for_checkpoints(1)
    ((run_id, run),) = study.runs().items()
    kill(run)
    assert wait_for_exit(running) == 1
    assert "FAILED" in study.output and f"interrupted: {run.path}" in study.output
    assert study.run() == 0 and count_resumes(run) == 1
    assert_same_run(run, uninterrupted.runs()[run_id])


def test_stopped_sweep_saves_its_runs_and_resumes(
    on_ray: tuple[str, ...], ray_env: dict[str, str], sweep: MakeSweep, uninterrupted: Sweep
) -> None:
    study = sweep(PAIR, *on_ray, env=ray_env)
    running = study.start()
    study.wait_for_checkpoints(2)
    running.send_signal(signal.SIGINT)
    assert wait_for_exit(running) == 130, study.output
    assert [saved_state(run) for run in study.runs().values()] == ["interrupted"] * 2
    assert study.run() == 0
    assert [count_resumes(run) for run in study.runs().values()] == [1, 1]
    assert_same_study(study, uninterrupted)


def test_unreachable_cluster_is_reported_without_traceback(
    ray_env: dict[str, str], sweep: MakeSweep
) -> None:
    address = "hydra.launcher.init.address=127.0.0.1:9"
    study = sweep(ONE, "hydra/launcher=ray", address, env=ray_env)
    assert study.run() == 1
    assert f"no Ray at {address}" in study.output and "Traceback" not in study.output
