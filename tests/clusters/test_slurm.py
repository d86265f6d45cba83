"""Studies on a Slurm where processes die, jobs are preempted and time runs out."""

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
    ended,
    is_underway,
    kill,
    saved_state,
    times_resumed,
)
from tests.running import assert_same_run

pytestmark = [pytest.mark.slow, pytest.mark.cluster]
ON_SLURM = ("hydra/launcher=slurm", "hydra.launcher.partition=low")


@pytest.fixture(autouse=True)
def _empty_queue(slurm: Slurm) -> Iterator[None]:
    yield
    slurm.clear()


def test_a_dead_process_is_told_of_and_the_same_command_does_the_rest(
    slurm: Slurm, sweep: MakeSweep, undisturbed: Sweep
) -> None:
    """There is no accounting here: only the queue knows that no result will come."""
    study = sweep(PAIR, *ON_SLURM, env=slurm.env)
    running = study.start()
    study.wait_for_checkpoints(2)
    killed, _ = study.runs().values()
    kill(killed)
    assert ended(running) == 1
    assert "its process died (Slurm says of job" in study.said and "FAILED" in study.said
    assert f"interrupted: {killed.path}" in study.said
    assert "1 of 2 cells did not finish" in study.said
    assert study.to_end() == 0 and "; 1 to run" in study.said
    assert [times_resumed(run) for run in study.runs().values()] == [1, 0]
    assert_same_study(study, undisturbed)


def test_a_stopped_sweep_leaves_no_job_and_loses_no_step(
    slurm: Slurm, sweep: MakeSweep, undisturbed: Sweep
) -> None:
    study = sweep(PAIR, *ON_SLURM, "hydra.launcher.array_parallelism=1", env=slurm.env)
    running = study.start()
    study.wait_for_checkpoints(1)
    running.send_signal(signal.SIGINT)
    assert ended(running) == 130, study.said
    assert not slurm.jobs("RUNNING,PENDING,COMPLETING")
    (run,) = study.runs().values()
    assert saved_state(run) == "interrupted"
    assert study.to_end() == 0
    assert [times_resumed(run) for run in study.runs().values()] == [1, 0]
    assert_same_study(study, undisturbed)


def test_a_job_out_of_time_or_preempted_goes_on_by_itself(
    slurm: Slurm, sweep: MakeSweep, undisturbed: Sweep
) -> None:
    """The signal is the one that Slurm sends ahead of the limit; the sweep just waits."""
    study = sweep(ONE, *ON_SLURM, env=slurm.env)
    running = study.start()
    study.wait_for_checkpoints(1)
    ((run_id, run),) = study.runs().items()
    slurm.ask("scancel", "--signal=USR2", *slurm.jobs("RUNNING"))
    wait_until(lambda: times_resumed(run) == 1 and is_underway(run), 60)
    slurm.ask("sbatch", "-p", "high", f"-n{CORES}", "-o/dev/null", "--wrap", "sleep 1")
    assert ended(running) == 0, study.said
    assert times_resumed(run) == 2
    assert_same_run(run, undisturbed.runs()[run_id])


def test_what_slurm_refuses_is_said_in_its_words(slurm: Slurm, sweep: MakeSweep) -> None:
    study = sweep(ONE, "hydra/launcher=slurm", "hydra.launcher.partition=nowhere", env=slurm.env)
    assert study.to_end() == 1
    assert "Slurm did not take the jobs" in study.said and "invalid partition" in study.said
    assert "Traceback" not in study.said
