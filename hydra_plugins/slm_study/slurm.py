"""Hydra launcher for Slurm: the jobs are one array, submitted with submitit, each task a process of train.py.

The launcher polls squeue, which every cluster has. submitit would poll sacct, which reports no job on a cluster
without accounting, so that the wait for a job that died would not end.
"""

from __future__ import annotations

import getpass
import logging
import math
import os
import re
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn

from hydra_plugins.slm_study._command import Outcome, TrainCommand
from hydra_plugins.slm_study._launcher import TrainLauncher, check_extra, signals_as_interrupt
from hydra_plugins.slm_study._settings import SlurmSettings
from hydra_plugins.slm_study._slurm_task import SlurmTask
from slm.errors import RunError
from slm.formatting import count
from slm.training.distributed.rank import check_single_process

log = logging.getLogger("slm")
NOT_LISTED = "no longer listed"
# A job in any other state may continue.
END_STATES = {
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "REVOKED",
    "TIMEOUT",
    NOT_LISTED,
}
# For the dataloader, the compiler and the process itself; the same number as in conf/trainer/gpu.yaml.
CORES_PER_GPU = 8
MAX_POLL_SECONDS = 30.0
SAVING_SECONDS = 300.0  # limit for saving the state after a Ctrl-C; Slurm kills the job earlier
SAVING_SHARE = 0.75  # of the time between the signal and the limit; the rest is for the requeue
LAUNCH_LINE = re.compile(r"submitit [A-Z]+ \(|srun: ")


class SlurmLauncher(TrainLauncher):
    """Submits all jobs as one array and waits until none is in the queue."""

    def setup(self, **context: Any) -> None:
        super().setup(**context)
        self.settings = settings = self.read_settings(SlurmSettings)
        trainer = self.config.trainer
        if settings.gpus_per_node is None and trainer.accelerator == "gpu":
            settings.gpus_per_node = trainer.devices
        if settings.cpus_per_task is None:
            default = CORES_PER_GPU if trainer.accelerator == "gpu" else None
            settings.cpus_per_task = trainer.threads or default
        if settings.srun_args is None and trainer.devices * trainer.num_nodes > 1:
            # Otherwise the other ranks wait for a rank that died, until the time limit.
            settings.srun_args = ["--kill-on-bad-exit=1"]

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Submit all jobs and wait for their end; a failed job does not stop the others.

        Raises:
            ConfigError: if submitit is not installed.
            RunError: if Slurm rejects the jobs.
        """
        check_single_process(os.environ)
        check_extra("slurm", "submitit")
        commands = [TrainCommand.of(overrides) for overrides in job_overrides]
        jobs = self._submit(commands)
        ids = [job.job_id for job in jobs]
        log.info("%s in the queue, %s to %s", count(len(ids), "job"), ids[0], ids[-1])
        log.info("their output is in %s", self.settings.submitit_folder)
        returns: dict[str, JobReturn] = {}
        with signals_as_interrupt():
            try:
                for job_id, state in wait_for_ends(ids):
                    index = ids.index(job_id)
                    place = f"[{len(returns) + 1}/{len(jobs)}] job {job_id}"
                    outcome = replace(
                        read_outcome(jobs[index].task(0).paths.stdout, state),
                        submission_id=commands[index].submission_id,
                    )
                    returns[job_id] = self.finish_job(place, job_overrides[index], outcome)
            except KeyboardInterrupt:
                remaining = [job_id for job_id in ids if job_id not in returns]
                log.info("stopping: %d jobs save their state or leave the queue", len(remaining))
                cancel(remaining)
                for _ in wait_for_ends(remaining, timeout_seconds=SAVING_SECONDS):
                    pass
                raise
        return [returns[job_id] for job_id in ids]

    def _submit(self, commands: Sequence[TrainCommand]) -> list[Any]:
        from submitit import AutoExecutor
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        settings = asdict(self.settings)
        folder = Path(settings.pop("submitit_folder")).absolute()
        settings.pop("_target_")
        saving_seconds = SAVING_SHARE * self.settings.signal_delay_s
        try:
            executor = AutoExecutor(
                folder, cluster="slurm", slurm_max_num_timeout=settings.pop("max_num_timeout")
            )
            executor.update_parameters(**{f"slurm_{k}": v for k, v in settings.items()})
            return list(executor.map_array(SlurmTask(saving_seconds), commands))
        except (FailedJobError, FailedSubmissionError, RuntimeError) as error:
            raise RunError(f"Slurm rejected the jobs: {error}") from error


def read_outcome(output: Path, state: str) -> Outcome:
    """Return the outcome of a job that left the queue in a state; Slurm reports exit code 0 as COMPLETED."""
    text = output.read_text(errors="replace") if output.exists() else ""
    lines = [line for line in text.strip().splitlines() if not LAUNCH_LINE.match(line)]
    if state == "COMPLETED":
        return Outcome(0, tuple(lines))
    return Outcome(None, (*lines, f"Slurm state {state}; output: {output}"))


def wait_for_ends(
    ids: Sequence[str], timeout_seconds: float = math.inf
) -> Iterator[tuple[str, str]]:
    """Yield each job with its last state when it leaves the queue."""
    waiting, ended_before = set(ids), set[str]()
    start_seconds = time.monotonic()
    while waiting and (waited := time.monotonic() - start_seconds) < timeout_seconds:
        time.sleep(min(1 + waited / 20, MAX_POLL_SECONDS))
        listed = list_states()
        if listed is None:
            continue
        states = {job: listed.get(job, NOT_LISTED) for job in waiting}
        ended = {job for job, state in states.items() if state in END_STATES}
        # Two polls must agree: a preempted job has an end state until it is queued again, and files on a
        # network file system appear late.
        for job in sorted(ended & ended_before):
            waiting.remove(job)
            yield job, states[job]
        ended_before = ended


def list_states() -> dict[str, str] | None:
    """Return the states of this user's jobs by id; None if Slurm does not respond."""
    command = ["squeue", "--array", "--noheader", "--states=all", "--format=%i %T"]
    command.append(f"--user={getpass.getuser()}")
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("squeue does not respond (%s); still waiting", type(error).__name__)
        return None
    return dict(line.split(maxsplit=1) for line in done.stdout.splitlines() if line.strip())


def cancel(ids: Sequence[str]) -> None:
    try:
        subprocess.run(["scancel", *ids], capture_output=True, check=False, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        log.error("cannot cancel the jobs (%s); run: scancel %s", error, " ".join(ids))
