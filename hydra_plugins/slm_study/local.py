"""Hydra launcher for one machine: each job is a process of train.py, several at once.

A job with trainer.devices=2 is two processes, started by torchrun. On a machine with GPUs, CUDA_VISIBLE_DEVICES
of a job lists as many GPUs as the job has processes.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import subprocess
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from hydra.core.utils import JobReturn, JobStatus

from hydra_plugins.slm_study._command import Outcome, TrainCommand
from hydra_plugins.slm_study._launcher import TrainLauncher, failed_return, signals_as_interrupt
from hydra_plugins.slm_study._settings import LocalSettings
from slm.cores import available_cores
from slm.errors import ConfigError, Problem
from slm.formatting import count
from slm.tracking.concurrency import jobs_on_cores, visible_gpus
from slm.training.distributed.rank import check_single_process

log = logging.getLogger("slm")
COMMON_FAILURES = (
    2  # jobs of a study that fail with the same error before any succeeds: no further job starts
)


class LocalLauncher(TrainLauncher):
    """Runs `n_jobs` at once, each on its own GPUs, or `jobs_per_gpu` jobs on the same ones.

    Without GPUs, as many jobs run at once as the cores allow at trainer.threads for each process. Jobs on GPUs
    share the CPU cores equally.
    """

    def __init__(self, **settings: Any):
        super().__init__(**settings)
        self._started: list[subprocess.Popen[bytes]] = []
        self._lock = threading.Lock()
        self._ended = self._skipped = 0
        self._failures: list[str] = []
        self._has_success = False
        self._reporting = threading.Lock()
        self._concurrent_jobs = 1

    def setup(self, **context: Any) -> None:
        super().setup(**context)
        self.settings = self.read_settings(LocalSettings)
        problems = [
            Problem(f"hydra.launcher.{key}", value, "must be at least 1")
            for key in ("n_jobs", "jobs_per_gpu")
            if (value := getattr(self.settings, key)) is not None and value < 1
        ]
        if problems:
            raise ConfigError(problems)

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run all jobs; a failed job does not stop the others, unless the first ones fail with the same error.

        Raises:
            ConfigError: if a job needs more GPUs than there are.
        """
        check_single_process(os.environ)
        slots = self._slots()
        total, self._ended, self._skipped = len(job_overrides), 0, 0
        self._failures, self._has_success = [], False
        at_once = min(slots.qsize(), self.settings.n_jobs or slots.qsize())
        self._concurrent_jobs = min(at_once, total)
        log.info("%s, %d at once, each in its own process", count(total, "job"), at_once)
        with ThreadPoolExecutor(at_once) as pool, signals_as_interrupt():
            futures = [
                pool.submit(self._run, overrides, total, slots) for overrides in job_overrides
            ]
            try:
                returns = [future.result() for future in futures]
            except KeyboardInterrupt:
                self._stop()
                raise
        if self._skipped:
            log.error("%s; %s not started", self._stop_reason(), count(self._skipped, "job"))
        return returns

    def _slots(self) -> queue.SimpleQueue[str | None]:
        """Return one entry per concurrent job: its GPUs, or None if CUDA_VISIBLE_DEVICES stays as it is."""
        trainer = self.config.trainer
        gpus = self.settings.gpus
        if gpus is None:
            gpus = [] if trainer.accelerator == "cpu" else visible_gpus()
        names = [str(gpu) for gpu in gpus]
        if not names:
            on_cores = jobs_on_cores(trainer.threads, trainer.devices)
            slots: list[str | None] = [None] * (self.settings.n_jobs or on_cores)
        elif len(names) < trainer.devices:
            rule = f"processes with a GPU each, and there are {len(names)}: {', '.join(names)}"
            fix = "hydra.launcher.gpus names those to use"
            raise ConfigError([Problem("trainer.devices", trainer.devices, rule, fix)])
        else:
            starts = range(0, len(names) - trainer.devices + 1, trainer.devices)
            slots = [",".join(names[start : start + trainer.devices]) for start in starts]
            slots *= self.settings.jobs_per_gpu
        free: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        for slot in slots:
            free.put(slot)
        return free

    def _threads_of_process(self) -> int:
        """Return trainer.threads, but not more than an equal share of the cores for every concurrent process."""
        trainer = self.config.trainer
        share = available_cores() // (self._concurrent_jobs * trainer.devices)
        return max(1, min(trainer.threads or share, share))

    def _memory_share(self) -> list[str]:
        """Return the override that gives each job on a shared GPU an equal share of its memory."""
        jobs = self.settings.jobs_per_gpu
        if jobs == 1 or self.config.trainer.gpu_memory_fraction is not None:
            return []
        return [f"trainer.gpu_memory_fraction={1 / jobs:.4g}"]

    def _stop(self) -> None:
        """Start no further job, and request each running job to save its state."""
        with self._lock:
            self._stopping.set()
            running = [process for process in self._started if process.poll() is None]
            log.info("stopping: %d runs save their state", len(running))
            for process in running:
                process.send_signal(signal.SIGINT)

    def _run(
        self, overrides: Sequence[str], total: int, slots: queue.SimpleQueue[str | None]
    ) -> JobReturn:
        gpus = slots.get()
        try:
            if self._stopping.is_set():
                return failed_return(overrides, "not started")
            if self._stop_reason():
                with self._lock:
                    self._skipped += 1
                return failed_return(overrides, "not started")
            outcome = self._run_process(overrides, gpus)
            with self._reporting:  # so that the numbers are logged in order
                self._ended += 1
                done = self.finish_job(f"[{self._ended}/{total}]", overrides, outcome)
            with self._lock:
                self._has_success |= done.status == JobStatus.COMPLETED
                if done.failure:
                    self._failures.append(done.failure)
        finally:
            slots.put(gpus)
        return done

    def _stop_reason(self) -> str:
        """Return why no further job starts: study.max_failures, or an error that all cells of a study share."""
        failures, limit = self._failures, self.config.study.max_failures
        if limit is not None and len(failures) >= limit:
            return f"study.max_failures={limit} reached"
        is_study = self.config.hydra.job.config_name == "sweep"
        is_common = len(failures) >= COMMON_FAILURES and len(set(failures)) == 1
        if is_study and is_common and not self._has_success:
            return f"stopped: the first {len(failures)} jobs failed with the same error"
        return ""

    def _run_process(self, overrides: Sequence[str], gpus: str | None) -> Outcome:
        devices = self.config.trainer.devices
        env = dict(os.environ)
        threads = self._threads_of_process()
        # By default each process would start as many compiler processes as there are cores, up to 32.
        env.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(threads))
        if gpus is not None:
            overrides = [*overrides, f"trainer.threads={threads}", *self._memory_share()]
            env["CUDA_VISIBLE_DEVICES"] = gpus
            env.setdefault("OMP_NUM_THREADS", str(threads))
        if devices > 1:
            env.setdefault("OMP_NUM_THREADS", "1")  # torchrun sets it too, but prints a warning
        command = TrainCommand.of(overrides, devices)
        return command.run(env=env, outlives_launcher=True, on_start=self._register)

    def _register(self, process: subprocess.Popen[bytes]) -> None:
        with self._lock:  # a process that starts during `_stop` gets one signal, not two or none
            self._started.append(process)
            if self._stopping.is_set():
                process.send_signal(signal.SIGINT)
