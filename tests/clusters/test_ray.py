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


def test_killed_and_stopped_runs_resume(
    on_ray: tuple[str, ...], ray_env: dict[str, str], sweep: MakeSweep, uninterrupted: Sweep
) -> None:
    """A killed run is reported, or retried; a stopped run saves its state; the same command continues both."""
    study = sweep(PAIR, *on_ray, "hydra.launcher.remote.max_retries=0", env=ray_env)
    running = study.start()
    killed, stopped = study.suspend(2)
    kill(killed)
    wait_until(lambda: "killed by SIGKILL" in study.output, PATIENCE_SECONDS)
    assert "FAILED" in study.output
    running.send_signal(signal.SIGINT)
    wait_until(lambda: has_pending(stopped, signal.SIGINT), PATIENCE_SECONDS)
    resume(stopped)
    assert wait_for_exit(running) == 130, study.output
    assert (killed.state(), saved_state(stopped)) == ("interrupted", "interrupted")

    study = sweep(PAIR, *on_ray, env=ray_env)
    running = study.start()
    killed, other = study.suspend(2, resumes=1)
    kill(killed)
    resume(other)
    assert wait_for_exit(running) == 0, study.output
    assert [count_resumes(run) for run in (killed, other)] == [2, 1]
    assert_same_study(study, uninterrupted)


def test_unreachable_cluster_is_reported_without_traceback(
    ray_env: dict[str, str], sweep: MakeSweep
) -> None:
    address = "hydra.launcher.init.address=127.0.0.1:9"
    study = sweep(ONE, "hydra/launcher=ray", address, env=ray_env)
    assert study.run_here() == 1 and f"no Ray at {address}" in study.output
