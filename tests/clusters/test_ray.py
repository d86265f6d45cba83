"""Studies on a Ray cluster, with killed processes and stopped sweeps."""

from __future__ import annotations

import signal

import pytest

from tests.clusters.conftest import MakeSweep
from tests.clusters.slurm import wait_until
from tests.clusters.sweeping import (
    ONE,
    PAIR,
    Sweep,
    assert_same_study,
    count_resumes,
    has_pending,
    kill,
    resume,
    saved_state,
    wait_for_exit,
)
from tests.conftest import PATIENCE_SECONDS

pytestmark = [pytest.mark.slow, pytest.mark.cluster]


@pytest.fixture
def on_ray(ray_address: str) -> tuple[str, ...]:
    return ("hydra/launcher=ray", f"hydra.launcher.init.address={ray_address}")


def test_killed_run_is_retried_and_resumes(
    on_ray: tuple[str, ...], ray_env: dict[str, str], sweep: MakeSweep, uninterrupted: Sweep
) -> None:
    study = sweep(PAIR, *on_ray, env=ray_env)
    running = study.start()
    killed, other = study.suspend(2)
    kill(killed)
    resume(other)
    assert wait_for_exit(running) == 0, study.output
    assert [count_resumes(run) for run in study.runs().values()] == [1, 0]
    assert_same_study(study, uninterrupted)


def test_stopped_and_killed_runs_are_saved_and_continued_by_the_same_command(
    on_ray: tuple[str, ...], ray_env: dict[str, str], sweep: MakeSweep, uninterrupted: Sweep
) -> None:
    study = sweep(PAIR, *on_ray, "hydra.launcher.remote.max_retries=0", env=ray_env)
    running = study.start()
    runs = study.suspend(2)
    running.send_signal(signal.SIGINT)
    for run in runs:
        wait_until(lambda run=run: has_pending(run, signal.SIGINT), PATIENCE_SECONDS)
        resume(run)
    assert wait_for_exit(running) == 130, study.output
    assert [saved_state(run) for run in runs] == ["interrupted"] * 2

    running = study.start()
    killed, other = study.suspend(2, resumes=1)
    kill(killed)
    resume(other)
    assert wait_for_exit(running) == 1
    assert "FAILED" in study.output and "killed by SIGKILL" in study.output
    assert f"interrupted: {killed.path}" in study.output

    assert study.run() == 0, study.output
    assert [count_resumes(run) for run in runs] == [2, 1]
    assert_same_study(study, uninterrupted)


def test_unreachable_cluster_is_reported_without_traceback(
    ray_env: dict[str, str], sweep: MakeSweep
) -> None:
    address = "hydra.launcher.init.address=127.0.0.1:9"
    study = sweep(ONE, "hydra/launcher=ray", address, env=ray_env)
    assert study.run() == 1
    assert f"no Ray at {address}" in study.output and "Traceback" not in study.output
