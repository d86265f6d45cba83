"""Studies on Slurm, with killed processes, preempted jobs and expired time limits."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.clusters.conftest import CORES, MakeSweep
from tests.clusters.slurm import Slurm, wait_until
from tests.clusters.sweeping import (
    ONE,
    PAIR,
    Sweep,
    assert_same_study,
    count_resumes,
    is_underway,
    kill,
    saved_state,
    wait_for_exit,
)
from tests.running import assert_same_run

pytestmark = [pytest.mark.slow, pytest.mark.cluster]
ON_SLURM = ("hydra/launcher=slurm", "hydra.launcher.partition=low")


@pytest.fixture(autouse=True)
def _empty_queue(slurm: Slurm) -> Iterator[None]:
    yield
    slurm.clear()


def test_killed_run_is_reported_and_the_same_command_continues(
    slurm: Slurm, sweep: MakeSweep, uninterrupted: Sweep
) -> None:
    """Without accounting, only the queue shows that a killed job returns no result."""
    study = sweep(PAIR, *ON_SLURM, env=slurm.env)
    running = study.start()
    study.wait_for_checkpoints(2)
    killed, _ = study.runs().values()
    kill(killed)
    assert wait_for_exit(running) == 1
    assert "its process died (Slurm says of job" in study.output and "FAILED" in study.output
    assert f"interrupted: {killed.path}" in study.output
    assert "1 of 2 cells did not finish" in study.output
    assert study.run() == 0 and "; 1 to run" in study.output
    assert [count_resumes(run) for run in study.runs().values()] == [1, 0]
    assert_same_study(study, uninterrupted)


def test_stopped_sweep_cancels_its_jobs_and_resumes(
    slurm: Slurm, sweep: MakeSweep, uninterrupted: Sweep
) -> None:
    study = sweep(PAIR, *ON_SLURM, "hydra.launcher.array_parallelism=1", env=slurm.env)
    running = study.start()
    study.wait_for_checkpoints(1)
    running.send_signal(signal.SIGINT)
    assert wait_for_exit(running) == 130, study.output
    assert not slurm.jobs("RUNNING,PENDING,COMPLETING")
    (run,) = study.runs().values()
    assert saved_state(run) == "interrupted"
    assert study.run() == 0
    assert [count_resumes(run) for run in study.runs().values()] == [1, 0]
    assert_same_study(study, uninterrupted)


def test_requeued_job_resumes_after_time_limit_and_preemption(
    slurm: Slurm, sweep: MakeSweep, uninterrupted: Sweep
) -> None:
    """SIGUSR2 is the signal that Slurm sends before the time limit; the sweep keeps waiting."""
    study = sweep(ONE, *ON_SLURM, env=slurm.env)
    running = study.start()
    study.wait_for_checkpoints(1)
    ((run_id, run),) = study.runs().items()
    slurm.run("scancel", "--signal=USR2", *slurm.jobs("RUNNING"))
    wait_until(lambda: count_resumes(run) == 1 and is_underway(run), 60)
    slurm.run("sbatch", "-p", "high", f"-n{CORES}", "-o/dev/null", "--wrap", "sleep 1")
    assert wait_for_exit(running) == 0, study.output
    assert count_resumes(run) == 2
    assert_same_run(run, uninterrupted.runs()[run_id])


def test_error_of_slurm_is_reported(slurm: Slurm, sweep: MakeSweep) -> None:
    study = sweep(ONE, "hydra/launcher=slurm", "hydra.launcher.partition=nowhere", env=slurm.env)
    assert study.run() == 1
    assert "Slurm did not take the jobs" in study.output and "invalid partition" in study.output
    assert "Traceback" not in study.output
