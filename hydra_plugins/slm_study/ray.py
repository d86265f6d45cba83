"""A Hydra launcher for Ray: hydra-ray-launcher's jobs, each in a fresh process, all of them waited for.

The plugin itself lets Ray use a process again, cannot join a cluster (it asks for an object store), and
gives up all jobs when one has lost its process.
"""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from hydra_plugins.slm_study.cluster import check_extra, failed_job, plain, tell
from hydra_plugins.slm_study.local import stopped_by_signals
from slm.errors import ConfigError, Problem, RunError
from slm.training.distributed.rank import check_single_process

log = logging.getLogger("slm")
# The plugin's own option of the same name would be taken for the schema of conf/hydra/launcher/ray.yaml.
with suppress(ImportError):
    import_module("hydra_plugins.hydra_ray_launcher._config")
    ConfigStore.instance().repo["hydra"]["launcher"].pop("ray.yaml", None)

SAVING_SECONDS = 120.0  # that jobs have for their state after a Ctrl-C


def in_folder(folder: Path, task: TaskFunction, config: Any) -> Any:
    """Run a task where the sweep was started, so that relative paths mean the same."""
    os.chdir(folder)
    return task(config)


def check_reachable(address: str | None) -> None:
    """Raise a RunError at once where nobody listens; Ray itself would try for minutes."""
    place = re.fullmatch(r"([\w.-]+):(\d+)", address or "")
    if place is None:
        return
    try:
        socket.create_connection((place[1], int(place[2])), timeout=10).close()
    except OSError as error:
        raise RunError(f"no Ray at hydra.launcher.init.address={address}: {error}") from error


class RayLauncher(Launcher):
    """All jobs at once, as many of them running as Ray has CPUs and GPUs for."""

    def __init__(self, init: DictConfig, remote: DictConfig):
        self.init: dict[str, Any] = plain(init)
        self.remote: dict[str, Any] = plain(remote)

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.hydra_context = hydra_context
        self.task = partial(in_folder, Path.cwd(), task_function)
        self.config = config
        if self.remote["num_gpus"] is None:
            self.remote["num_gpus"] = 1 if config.trainer.accelerator == "gpu" else 0
        self.shares: list[str] = []

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run all jobs, whatever becomes of each.

        Raises:
            ConfigError: if the launcher is not installed, or runs are of several processes.
            RunError: if there is no such cluster.
        """
        check_single_process(os.environ)
        check_extra("ray", "ray", "hydra_plugins.hydra_ray_launcher")
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
            return self._run(job_overrides, initial_job_idx)
        finally:
            if is_ours:
                ray.shutdown()

    def _run(self, job_overrides: Sequence[Sequence[str]], first: int) -> list[JobReturn]:
        import ray

        total, resources = len(job_overrides), ray.cluster_resources()
        self._share(resources)
        have = f"{resources.get('CPU', 0):g} CPUs, {resources.get('GPU', 0):g} GPUs"
        log.info("%d jobs on Ray, which has %s", total, have)
        setup_globals()  # resolvers that Hydra's own config needs
        with stopped_by_signals():
            jobs = [
                self._start(overrides, index)
                for index, overrides in enumerate(job_overrides, start=first)
            ]
            waiting = {job: index for index, job in enumerate(jobs)}
            returns: dict[int, JobReturn] = {}
            try:
                while waiting:
                    (ended, *_), _ = ray.wait(list(waiting))
                    index = waiting.pop(ended)
                    returns[index] = _outcome(ended, job_overrides[index])
                    place = f"[{len(returns)}/{total}]"
                    tell(place, job_overrides[index], returns[index])
            except KeyboardInterrupt:
                log.info("stopping: %d jobs save their state, or do not begin", len(waiting))
                for job in waiting:
                    ray.cancel(job)  # a Ctrl-C to its process
                ray.wait(list(waiting), num_returns=len(waiting), timeout=SAVING_SECONDS)
                raise
        return [returns[index] for index in range(total)]

    def _share(self, resources: Mapping[str, float]) -> None:
        """Give each job on a GPU its share of the GPU's memory and of the cluster's CPU cores."""
        num_gpus, trainer = self.remote["num_gpus"], self.config.trainer
        if not num_gpus:
            return
        cores = int(resources.get("CPU", 1) * num_gpus / max(resources.get("GPU", 1), num_gpus))
        cpus = max(1, min(self.remote["num_cpus"] or cores, cores))
        self.remote["num_cpus"] = cpus
        self.shares = [f"++trainer.threads={cpus}"]
        if num_gpus < 1 and trainer.gpu_memory_fraction is None:
            self.shares.append(f"++trainer.gpu_memory_fraction={num_gpus:.4g}")

    def _start(self, overrides: Sequence[str], index: int) -> Any:
        from hydra_plugins.hydra_ray_launcher._launcher_util import launch_job_on_ray

        arguments = [*overrides, *self.shares]
        config = self.hydra_context.config_loader.load_sweep_config(self.config, arguments)
        with open_dict(config):
            config.hydra.job.id = str(index)
            config.hydra.job.num = index
        remote = OmegaConf.create(self.remote)
        state = Singleton.get_state()
        return launch_job_on_ray(self.hydra_context, remote, config, self.task, state)


def _outcome(job: Any, overrides: Sequence[str]) -> JobReturn:
    import ray

    try:
        result = ray.get(job)
    except ray.exceptions.RayError as error:
        return failed_job(overrides, error)
    assert isinstance(result, JobReturn)
    return result
