"""Studies on Slurm, with killed processes, preempted jobs and expired time limits."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from slm.files import read_json
from tests.clusters.conftest import CORES, MakeSweep
from tests.clusters.slurm import Slurm, wait_until
from tests.clusters.sweeping import (
    ONE,
    PAIR,
    Sweep,
    assert_same_study,
    count_resumes,
    kill,
    resume,
    saved_state,
    training_processes,
    wait_for_exit,
)
from tests.conftest import PATIENCE_SECONDS
from tests.running import assert_same_run

pytestmark = [pytest.mark.slow, pytest.mark.cluster]
ON_SLURM = ("hydra/launcher=slurm", "hydra.launcher.partition=low")


@pytest.fixture(autouse=True)
def _empty_queue(slurm: Slurm) -> Iterator[None]:
    yield
    slurm.clear()


def test_killed_and_stopped_runs_resume(
    slurm: Slurm, sweep: MakeSweep, uninterrupted: Sweep
) -> None:
    """A killed run is reported, a stopped run saves its state, and the same command continues both.

    Without accounting, only the queue shows that a job died.
    """
    study = sweep(PAIR, *ON_SLURM, env=slurm.env)
    running = study.start()
    killed, stopped = study.suspend(2)
    kill(killed)
    wait_until(lambda: "Slurm state FAILED" in study.output, PATIENCE_SECONDS)
    running.send_signal(signal.SIGINT)  # scancel lets a suspended process continue
    assert wait_for_exit(running) == 130, study.output
    assert not slurm.jobs("RUNNING,PENDING,COMPLETING")
    assert (killed.state(), saved_state(stopped)) == ("interrupted", "interrupted")
    assert study.run() == 0 and "; 2 to run" in study.output
    assert [count_resumes(run) for run in (killed, stopped)] == [1, 1]
    assert_same_study(study, uninterrupted)


def test_waiting_jobs_leave_the_queue_when_the_sweep_is_stopped(
    slurm: Slurm, sweep: MakeSweep
) -> None:
    study = sweep(PAIR, *ON_SLURM, "hydra.launcher.array_parallelism=1", env=slurm.env)
    running = study.start()
    wait_until(lambda: slurm.jobs("RUNNING"), PATIENCE_SECONDS)  # it still imports
    assert len(slurm.jobs("PENDING")) == 1
    running.send_signal(signal.SIGINT)
    assert wait_for_exit(running) == 130, study.output
    assert not slurm.jobs("RUNNING,PENDING,COMPLETING")


def test_requeued_job_resumes_after_time_limit_and_preemption(
    slurm: Slurm, sweep: MakeSweep, uninterrupted: Sweep
) -> None:
    """SIGUSR2 is the signal that Slurm sends before the time limit, once while the run still imports."""
    study = sweep(ONE, *ON_SLURM, env=slurm.env)
    running = study.start()
    wait_until(lambda: training_processes(study), PATIENCE_SECONDS)
    signal_limit(slurm)
    wait_until(lambda: not training_processes(study), PATIENCE_SECONDS)
    (run,) = study.suspend(1)
    signal_limit(slurm)
    resume(run)
    study.suspend(1, resumes=1)
    slurm.run("sbatch", "-p", "high", f"-n{CORES}", "-o/dev/null", "--wrap", "sleep 1")
    assert wait_for_exit(running) == 0, study.output
    assert count_resumes(run) == 2
    assert_same_run(run, uninterrupted.runs()[run.path.name])


def test_run_over_several_tasks_is_requeued(slurm: Slurm, sweep: MakeSweep) -> None:
    tasks = ("trainer.strategy=ddp", "trainer.devices=2", "hydra.launcher.cpus_per_task=1")
    study = sweep(ONE, *tasks, *ON_SLURM, env=slurm.env)
    running = study.start()
    (run,) = study.suspend(1)
    signal_limit(slurm)
    resume(run)
    assert wait_for_exit(running) == 0, study.output
    assert count_resumes(run) == 1 and run.state() == "finished"
    assert read_json(run.path / "env.json")["processes"] == 2


def signal_limit(slurm: Slurm) -> None:
    """Send the signal that precedes a time limit to all tasks of all jobs."""
    slurm.run("scancel", "--signal=USR2", *slurm.jobs("RUNNING"))


def test_error_of_slurm_is_reported(slurm: Slurm, sweep: MakeSweep) -> None:
    study = sweep(ONE, "hydra/launcher=slurm", "hydra.launcher.partition=nowhere", env=slurm.env)
    assert study.run_here() == 1
    assert "Slurm rejected the jobs" in study.output and "invalid partition" in study.output
