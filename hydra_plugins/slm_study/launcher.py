"""A Hydra launcher for one machine: every job in a fresh process of train.py, n at once.

A job is exactly what a person would type, so nothing leaks from one run into the next.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

log = logging.getLogger("slm")

ConfigStore.instance().store(
    group="hydra/launcher",
    name="local",
    node={"_target_": f"{__name__}.LocalLauncher", "n_jobs": None},
    provider="slm",
)


class LocalLauncher(Launcher):
    """`n_jobs` processes at once; by default as many as the cores allow at trainer.threads each."""

    def __init__(self, n_jobs: int | None = None):
        self.n_jobs = n_jobs

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.config = config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        cores = (
            len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count() or 1
        )
        threads = self.config.trainer.threads
        at_once = self.n_jobs or max(1, cores // (threads or cores))
        log.info("%d jobs, %d at once, each in its own process", len(job_overrides), at_once)
        started: list[subprocess.Popen[str]] = []
        with ThreadPoolExecutor(at_once) as pool:
            futures = [
                pool.submit(_run, overrides, f"[{index + 1}/{len(job_overrides)}]", started)
                for index, overrides in enumerate(job_overrides)
            ]
            try:
                return [future.result() for future in futures]
            except KeyboardInterrupt:
                # Ctrl-C reaches the processes too: each saves its state. Nothing new is started.
                pool.shutdown(wait=False, cancel_futures=True)
                for process in started:
                    process.wait()
                raise


def _run(overrides: Sequence[str], place: str, started: list[subprocess.Popen[str]]) -> JobReturn:
    script = Path(sys.argv[0]).resolve().with_name("train.py")
    start_seconds = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, str(script), *overrides],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    started.append(process)
    output, _ = process.communicate()
    last = output.strip().rpartition("\n")[2]
    took = time.monotonic() - start_seconds
    log.info("%s %s: %s (%.0f s)", place, " ".join(overrides), last, took)
    job = JobReturn(overrides=list(overrides))
    if process.returncode == 0:
        job.status, job.return_value = JobStatus.COMPLETED, None
    else:
        job.status, job.return_value = JobStatus.FAILED, RuntimeError(last)
    return job
