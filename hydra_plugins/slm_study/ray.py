"""Hydra launcher for Ray: each job is a Ray task that runs a process of train.py."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from hydra.core.utils import JobReturn

from hydra_plugins.slm_study._command import Outcome, ProcessKilled, TrainCommand, describe_exit
from hydra_plugins.slm_study._launcher import TrainLauncher, check_extra, signals_as_interrupt
from hydra_plugins.slm_study._settings import RaySettings
from slm.errors import ConfigError, Problem, RunError
from slm.formatting import count
from slm.training.distributed.rank import check_single_process

log = logging.getLogger("slm")
SAVING_SECONDS = 120.0  # limit for saving the state after a Ctrl-C


def run_task(command: TrainCommand, stop_file: Path) -> Outcome:
    """Run a job inside a Ray worker, until it ends or `stop_file` exists.

    Raises:
        KeyboardInterrupt: if ray.cancel stopped the task; the run has saved its state.
        ProcessKilled: if the process was killed, for example because memory ran out.
    """
    if stop_file.exists():
        return Outcome(128 + signal.SIGINT, ("not started",))
    outcome = command.run(stop_file=stop_file)
    code = outcome.exit_code
    if code is not None and code < 0:
        raise ProcessKilled(f"{describe_exit(code)}; last line of its output: {outcome.last_line}")
    return outcome


class RayLauncher(TrainLauncher):
    """Submits all jobs at once; Ray runs as many of them as it has CPUs and GPUs for."""

    def setup(self, **context: Any) -> None:
        super().setup(**context)
        settings = self.read_settings(RaySettings)
        self.init, self.remote = settings.init, settings.remote
        if self.remote["num_gpus"] is None:
            self.remote["num_gpus"] = 1 if self.config.trainer.accelerator == "gpu" else 0
        self.shares: list[str] = []

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run all jobs; a failed job does not stop the others.

        Raises:
            ConfigError: if Ray is not installed, or trainer.devices is above 1.
            RunError: if the cluster cannot be reached.
        """
        check_single_process(os.environ)
        check_extra("ray", "ray")
        devices = self.config.trainer.devices
        if devices > 1:
            rule = "on Ray a run is one process"
            fix = "hydra/launcher=slurm, or hydra/launcher=local on one machine"
            raise ConfigError([Problem("trainer.devices", devices, rule, fix)])
        check_reachable(self.init.get("address"))
        import ray

        is_ours = not ray.is_initialized()
        if is_ours:
            try:
                ray.init(logging_level=logging.WARNING, **self.init)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise RunError(f"Ray cannot be reached or started: {error}") from error
        try:
            return self._run(job_overrides)
        finally:
            if is_ours:
                ray.shutdown()

    def _run(self, job_overrides: Sequence[Sequence[str]]) -> list[JobReturn]:
        import ray

        total, resources = len(job_overrides), ray.cluster_resources()
        self.share_resources(resources)
        available = f"{resources.get('CPU', 0):g} CPUs, {resources.get('GPU', 0):g} GPUs"
        log.info("%s on Ray, which has %s", count(total, "job"), available)
        task = ray.remote(**{"retry_exceptions": [ProcessKilled], **self.remote})(run_task)
        returns: dict[int, JobReturn] = {}
        study = Path(self.config.runs_dir, self.config.study.name).absolute()
        stop_file = study / f".ray-stop-{uuid4().hex}"
        with signals_as_interrupt():
            commands = [TrainCommand.of([*overrides, *self.shares]) for overrides in job_overrides]
            indices = {
                task.remote(command, stop_file): index for index, command in enumerate(commands)
            }
            waiting = list(indices)
            try:
                while waiting:
                    (ended,), waiting = ray.wait(waiting)
                    index = indices[ended]
                    place = f"[{len(returns) + 1}/{total}]"
                    outcome = replace(
                        _get_outcome(ended), submission_id=commands[index].submission_id
                    )
                    returns[index] = self.finish_job(place, job_overrides[index], outcome)
            except KeyboardInterrupt:
                log.info("stopping: %d jobs save their state, or do not start", len(waiting))
                _stop(waiting, stop_file)
                raise
        return [returns[index] for index in range(total)]

    def share_resources(self, resources: Mapping[str, float]) -> None:
        """Give each job on a GPU its share of the GPU's memory and of the cluster's CPU cores."""
        num_gpus, trainer = self.remote["num_gpus"], self.config.trainer
        if not num_gpus:
            return
        cores = int(resources.get("CPU", 1) * num_gpus / max(resources.get("GPU", 1), num_gpus))
        cpus = max(1, min(self.remote["num_cpus"] or cores, cores))
        self.remote["num_cpus"] = cpus
        self.shares = [f"trainer.threads={cpus}"]
        if num_gpus < 1 and trainer.gpu_memory_fraction is None:
            self.shares.append(f"trainer.gpu_memory_fraction={num_gpus:.4g}")


def check_reachable(address: str | None) -> None:
    """Raise a RunError at once if no process listens at HOST:PORT; Ray itself would retry for minutes."""
    match = re.fullmatch(r"([\w.-]+):(\d+)", address or "")
    if match is None:
        return
    try:
        socket.create_connection((match[1], int(match[2])), timeout=10).close()
    except OSError as error:
        raise RunError(f"no Ray at hydra.launcher.init.address={address}: {error}") from error


def _stop(jobs: Sequence[Any], stop_file: Path) -> None:
    """Cancel the jobs and wait until the running ones have saved their state.

    `ray.cancel` removes jobs from the queue. It should raise KeyboardInterrupt in a running job, but sometimes does
    not, even if repeated; therefore `run_task` also checks for the file.
    """
    import ray

    stop_file.parent.mkdir(parents=True, exist_ok=True)
    stop_file.touch()
    try:
        for job in jobs:
            ray.cancel(job)
        ray.wait(list(jobs), num_returns=len(jobs), timeout=SAVING_SECONDS)
    finally:
        stop_file.unlink(missing_ok=True)


def _get_outcome(job: Any) -> Outcome:
    import ray

    try:
        outcome = ray.get(job)
    except ray.exceptions.RayError as error:
        return Outcome(None, tuple(str(error).strip().splitlines()))
    assert isinstance(outcome, Outcome)
    return outcome
