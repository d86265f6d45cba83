"""A Hydra launcher for Slurm: hydra-submitit-launcher's jobs, waited for without accounting.

The plugin itself waits for the result file of one job after the other, and asks sacct whether it may still
come. On a cluster without accounting a job that dies hard would be waited for for ever, and one job
without a result ends the wait for all others. Here squeue is asked, which every cluster has.
"""

from __future__ import annotations

import getpass
import logging
import math
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from hydra_plugins.slm_study.cluster import check_extra, died, failed_job, plain, tell
from hydra_plugins.slm_study.local import stopped_by_signals
from slm.errors import RunError
from slm.training.distributed.rank import check_single_process

log = logging.getLogger("slm")
# Whatever else squeue says of a job, it may go on.
GONE = "no longer listed"
ENDED = {
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
    GONE,
}
CORES_PER_GPU = (
    8  # for the dataloader, the compiler and the process itself; threads of conf/trainer/gpu.yaml
)
LONGEST_PAUSE_SECONDS = 30.0
SAVING_SECONDS = 300.0  # that jobs have for their state after a Ctrl-C; Slurm kills them sooner


class SlurmLauncher(Launcher):
    """All jobs as one array; the settings are keys of conf/hydra/launcher/slurm.yaml."""

    def __init__(self, **settings: Any):
        self.settings = {key: plain(value) for key, value in settings.items()}

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.setting_up = {
            "hydra_context": hydra_context,
            "task_function": task_function,
            "config": config,
        }
        trainer = config.trainer
        if self.settings["gpus_per_node"] is None and trainer.accelerator == "gpu":
            self.settings["gpus_per_node"] = trainer.devices
        if self.settings["cpus_per_task"] is None:
            default = CORES_PER_GPU if trainer.accelerator == "gpu" else None
            self.settings["cpus_per_task"] = trainer.threads or default
        if trainer.devices * trainer.num_nodes > 1:
            # Else the other ranks of a run wait for a rank that died, until the time limit.
            self.settings.setdefault("srun_args", ["--kill-on-bad-exit=1"])

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Submit all jobs and wait until none is in the queue, whatever becomes of each.

        Raises:
            ConfigError: if the launcher is not installed.
            RunError: if Slurm does not take the jobs.
        """
        check_single_process(os.environ)
        check_extra("slurm", "submitit", "hydra_plugins.hydra_submitit_launcher")
        jobs = self._submit(job_overrides, initial_job_idx)
        ids = [job.job_id for job in jobs]
        log.info("%d jobs in the queue, %s to %s", len(ids), ids[0], ids[-1])
        log.info("what they say is in %s", self.settings["submitit_folder"])
        returns: dict[str, JobReturn] = {}
        with stopped_by_signals():
            try:
                for job_id, state in until_ended(ids):
                    index = ids.index(job_id)
                    returns[job_id] = self._outcome(jobs[index], state, job_overrides[index])
                    place = f"[{len(returns)}/{len(jobs)}]"
                    tell(place, job_overrides[index], returns[job_id])
            except KeyboardInterrupt:
                left = [job_id for job_id in ids if job_id not in returns]
                log.info("stopping: %d jobs save their state and leave the queue", len(left))
                cancel(left)
                for _ in until_ended(left, at_most_seconds=SAVING_SECONDS):
                    pass
                raise
        return [returns[job_id] for job_id in ids]

    def _submit(self, job_overrides: Sequence[Sequence[str]], first: int) -> list[Any]:
        from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf
        from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher as Plugin
        from submitit import AutoExecutor
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        settings = dict(self.settings)
        # Absolute, since what is on the node may ask from elsewhere.
        folder = Path(settings.pop("submitit_folder")).absolute()
        # Unpickled on the node and called there: its `checkpoint` is what goes back into the queue.
        job = Plugin(**self.settings)
        job.setup(**self.setting_up)
        arguments = [
            (list(overrides), "hydra.sweep.dir", index, str(index), Singleton.get_state())
            for index, overrides in enumerate(job_overrides, start=first)
        ]
        try:
            executor = AutoExecutor(
                folder, cluster="slurm", slurm_max_num_timeout=settings.pop("max_num_timeout")
            )
            common = {field.name for field in fields(BaseQueueConf)}
            executor.update_parameters(
                **{k if k in common else f"slurm_{k}": value for k, value in settings.items()}
            )
            return list(executor.map_array(job, *zip(*arguments, strict=True)))
        except (FailedJobError, FailedSubmissionError, RuntimeError) as error:
            raise RunError(f"Slurm did not take the jobs: {error}") from error

    def _outcome(self, job: Any, state: str, overrides: Sequence[str]) -> JobReturn:
        """What a job left as its result, or that it left none."""
        leader = job.task(0)
        if not leader.paths.result_pickle.exists():
            output = leader.paths.stdout
            said = output.read_text(errors="replace").strip() if output.exists() else ""
            where = f"Slurm says of job {job.job_id}: {state}; see {output}"
            return failed_job(overrides, died(where, said.rpartition("\n")[2]))
        try:
            (result,) = leader.results()
        except Exception as error:  # of the job, or of what it needs to be unpickled here
            return failed_job(overrides, error)
        assert isinstance(result, JobReturn)
        return result


def until_ended(ids: Sequence[str], at_most_seconds: float = math.inf) -> Iterator[tuple[str, str]]:
    """Each job with its last state, as it leaves the queue."""
    waiting, suspects = set(ids), set[str]()
    begun = time.monotonic()
    while waiting and (waited := time.monotonic() - begun) < at_most_seconds:
        time.sleep(min(1 + waited / 20, LONGEST_PAUSE_SECONDS))
        listed = listed_states()
        if listed is None:
            continue
        states = {job: listed.get(job, GONE) for job in waiting}
        ended = {job for job, state in states.items() if state in ENDED}
        # Seen twice, since a preempted job has ended for an instant before it is queued again, and
        # files on a network appear late.
        for job in sorted(ended & suspects):
            waiting.remove(job)
            yield job, states[job]
        suspects = ended


def listed_states() -> dict[str, str] | None:
    """The states of this user's jobs by id; None if Slurm does not answer."""
    command = ["squeue", "--array", "--noheader", "--states=all", "--format=%i %T"]
    try:
        asked = [*command, f"--user={getpass.getuser()}"]
        told = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("squeue does not answer (%s); still waiting", type(error).__name__)
        return None
    return dict(line.split(maxsplit=1) for line in told.splitlines() if line.strip())


def cancel(ids: Sequence[str]) -> None:
    try:
        subprocess.run(["scancel", *ids], capture_output=True, check=False, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        log.error("could not cancel the jobs (%s): scancel %s", error, " ".join(ids))
