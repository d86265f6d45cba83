"""A Hydra launcher for one machine: every job in a fresh process of train.py, n at once.

A job is exactly what a person would type, so nothing leaks from one run into the next.
"""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from slm.tracking.environment import available_cores

log = logging.getLogger("slm")
SHOWN_LINES = 20  # of the output of a job that failed

ConfigStore.instance().store(
    group="hydra/launcher",
    name="local",
    node={"_target_": f"{__name__}.LocalLauncher", "n_jobs": None},
    provider="slm",
)


class LocalLauncher(Launcher):
    """`n_jobs` processes at once.

    By default as many as the cores allow at trainer.threads each, or one where a GPU may be used.
    """

    def __init__(self, n_jobs: int | None = None):
        self.n_jobs = n_jobs
        self._running: set[subprocess.Popen[str]] = set()
        self._stopping = threading.Event()

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.config = config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        at_once = self.n_jobs or self._default_jobs()
        total = len(job_overrides)
        log.info("%d jobs, %d at once, each in its own process", total, at_once)
        with ThreadPoolExecutor(at_once) as pool, _stopped_by_signals():
            futures = [
                pool.submit(self._run, overrides, f"[{index}/{total}]")
                for index, overrides in enumerate(job_overrides, start=1)
            ]
            try:
                return [future.result() for future in futures]
            except KeyboardInterrupt:
                self._stop()
                raise

    def _default_jobs(self) -> int:
        if self.config.trainer.accelerator != "cpu":
            return 1
        cores = available_cores()
        return max(1, cores // (self.config.trainer.threads or cores))

    def _stop(self) -> None:
        """Start nothing new, and let each running job save its state."""
        self._stopping.set()
        log.info("stopping: %d runs save their state", len(self._running))
        for process in list(self._running):
            process.send_signal(signal.SIGINT)

    def _run(self, overrides: Sequence[str], place: str) -> JobReturn:
        job = JobReturn(overrides=list(overrides))
        job.status, job.return_value = JobStatus.FAILED, RuntimeError("not started")
        if self._stopping.is_set():
            return job
        script = Path(sys.argv[0]).resolve().with_name("train.py")
        start_seconds = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, str(script), *overrides],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # so that a Ctrl-C reaches it once, through `_stop`
        )
        self._running.add(process)
        output, _ = process.communicate()
        self._running.discard(process)
        lines, took = output.strip().splitlines() or ["no output"], time.monotonic() - start_seconds
        name = " ".join(overrides)
        if process.returncode == 0:
            log.info("%s %s: %s (%.0f s)", place, name, lines[-1], took)
            job.status, job.return_value = JobStatus.COMPLETED, None
            return job
        if self._stopping.is_set() and process.returncode == 128 + signal.SIGINT:
            log.info("%s %s: interrupted; the same command goes on from there", place, name)
            return job
        shown = "\n".join(f"    {line}" for line in lines[-SHOWN_LINES:])
        log.error("%s %s: FAILED with exit code %d\n%s", place, name, process.returncode, shown)
        job.return_value = RuntimeError(lines[-1])
        return job


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    # SIGINT too: a shell that starts a job in the background has it ignored.
    old = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
