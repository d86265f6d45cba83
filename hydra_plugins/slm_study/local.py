"""A Hydra launcher for one machine: every job in a fresh process of train.py, n at once.

A job is exactly what a person would type, so nothing leaks from one run into the next. One with
trainer.devices=2 is two processes, started by torchrun. On a machine with GPUs each job sees as many of
them as it has processes.
"""

from __future__ import annotations

import logging
import os
import queue
import re
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

from slm.errors import ConfigError, InUse, Problem
from slm.tracking.environment import available_cores
from slm.training.distributed.rank import check_single_process

log = logging.getLogger("slm")
SHOWN_LINES = 20  # of the output of a job that failed
OF_TORCHRUN = re.compile(r"[IWE]\d{4} .*torch/distributed/")

ConfigStore.instance().store(
    group="hydra/launcher",
    name="local",
    node={
        "_target_": f"{__name__}.LocalLauncher",
        "n_jobs": None,
        "gpus": None,
        "jobs_per_gpu": 1,
    },
    provider="slm",
)


class LocalLauncher(Launcher):
    """`n_jobs` at once, each on GPUs of its own, or `jobs_per_gpu` jobs on the same ones.

    `gpus` are ids as in CUDA_VISIBLE_DEVICES; by default those that this process sees, and none for
    trainer.accelerator=cpu. Without GPUs there are as many jobs at once as the cores allow at
    trainer.threads for each process. Jobs on GPUs share the CPU cores equally, and jobs on the same GPU share
    its memory equally.
    """

    def __init__(
        self,
        n_jobs: int | None = None,
        gpus: Sequence[int | str] | None = None,
        jobs_per_gpu: int = 1,
    ):
        self.n_jobs = n_jobs
        self.gpus = gpus
        self.jobs_per_gpu = jobs_per_gpu
        self._running: set[subprocess.Popen[str]] = set()
        self._stopping = threading.Event()
        self._failed = 0
        self._concurrent_jobs = 1

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.config = config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run all jobs, whatever becomes of each.

        Raises:
            ConfigError: if a job needs more GPUs than there are.
        """
        check_single_process(os.environ)
        places = self._places()
        total = len(job_overrides)
        at_once = min(places.qsize(), self.n_jobs or places.qsize())
        self._concurrent_jobs = min(at_once, total)
        log.info("%d jobs, %d at once, each in its own process", total, at_once)
        with ThreadPoolExecutor(at_once) as pool, stopped_by_signals():
            futures = [
                pool.submit(self._run, overrides, f"[{index}/{total}]", places)
                for index, overrides in enumerate(job_overrides, start=1)
            ]
            try:
                return [future.result() for future in futures]
            except KeyboardInterrupt:
                self._stop()
                raise

    def _places(self) -> queue.SimpleQueue[str | None]:
        """What jobs at the same time may have: the GPUs of each, or None where it need not matter."""
        trainer = self.config.trainer
        gpus = self.gpus
        if gpus is None:
            gpus = [] if trainer.accelerator == "cpu" else visible_gpus()
        names = [str(gpu) for gpu in gpus]
        if not names:
            cores = available_cores()
            threads = (trainer.threads or cores) * trainer.devices
            places: list[str | None] = [None] * (self.n_jobs or max(1, cores // threads))
        elif len(names) < trainer.devices:
            rule = f"processes with a GPU each, and there are {len(names)}: {', '.join(names)}"
            fix = "hydra.launcher.gpus names those to use"
            raise ConfigError([Problem("trainer.devices", trainer.devices, rule, fix)])
        else:
            starts = range(0, len(names) - trainer.devices + 1, trainer.devices)
            places = [",".join(names[start : start + trainer.devices]) for start in starts]
            places *= self.jobs_per_gpu
        free: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        for place in places:
            free.put(place)
        return free

    def _threads_of_process(self) -> int:
        """Return trainer.threads, but not more than an equal share of the cores for every concurrent process."""
        trainer = self.config.trainer
        share = available_cores() // (self._concurrent_jobs * trainer.devices)
        return max(1, min(trainer.threads or share, share))

    def _memory_share(self) -> list[str]:
        """Return the override that gives each job on a shared GPU an equal share of its memory."""
        if self.jobs_per_gpu == 1 or self.config.trainer.gpu_memory_fraction is not None:
            return []
        return [f"trainer.gpu_memory_fraction={1 / self.jobs_per_gpu:.4g}"]

    def _stop(self) -> None:
        """Start nothing new, and let each running job save its state."""
        self._stopping.set()
        log.info("stopping: %d runs save their state", len(self._running))
        for process in list(self._running):
            process.send_signal(signal.SIGINT)

    def _run(
        self, overrides: Sequence[str], place: str, free: queue.SimpleQueue[str | None]
    ) -> JobReturn:
        job = JobReturn(overrides=list(overrides))
        job.status, job.return_value = JobStatus.FAILED, RuntimeError("not started")
        gpus = free.get()
        start_seconds = time.monotonic()
        try:
            if self._stopping.is_set() or self._is_enough():
                return job
            code, lines = self._call(overrides, gpus)
            is_failed = code not in {0, InUse.exit_code} and not self._stopping.is_set()
            self._failed += is_failed
        finally:
            free.put(gpus)
        took = time.monotonic() - start_seconds
        name = " ".join(override for override in overrides if not override.endswith("=null"))
        if code == 0:
            log.info("%s %s: %s (%.0f s)", place, name, lines[-1], took)
            job.status, job.return_value = JobStatus.COMPLETED, None
            return job
        if code == InUse.exit_code:
            log.info("%s %s: %s", place, name, lines[-1])
            return job
        # torchrun has a code of its own, whatever that of its processes.
        # A process that is starting, or at its exit, dies of the signal itself.
        is_saved = code in {128 + signal.SIGINT, -signal.SIGINT}
        is_saved = is_saved or lines[-1].startswith("interrupted by SIGINT")
        if self._stopping.is_set() and is_saved:
            log.info("%s %s: interrupted; the same command goes on from there", place, name)
            return job
        shown = "\n".join(f"    {line}" for line in lines[-SHOWN_LINES:])
        log.error("%s %s: FAILED with exit code %d\n%s", place, name, code, shown)
        job.return_value = RuntimeError(lines[-1])
        return job

    def _is_enough(self) -> bool:
        """Whether so many jobs have failed that no other is begun."""
        limit = self.config.study.max_failures
        return limit is not None and self._failed >= limit

    def _call(self, overrides: Sequence[str], gpus: str | None) -> tuple[int, list[str]]:
        """Run train.py; return its exit code and its output, without the lines of torchrun."""
        script = Path(sys.argv[0]).resolve().with_name("train.py")
        devices = self.config.trainer.devices
        env = dict(os.environ)
        threads = self._threads_of_process()
        # By default each process would start as many compiler processes as there are cores, up to 32.
        env.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(threads))
        if gpus is not None:
            overrides = [*overrides, f"trainer.threads={threads}", *self._memory_share()]
            env["CUDA_VISIBLE_DEVICES"] = gpus
            env.setdefault("OMP_NUM_THREADS", str(threads))
        launcher: list[str] = []
        if devices > 1:
            launcher = [
                "-m",
                "torch.distributed.run",
                "--standalone",
                f"--nproc-per-node={devices}",
            ]
            env.setdefault(
                "OMP_NUM_THREADS", "1"
            )  # else torchrun does it, with three lines of warning
        process = subprocess.Popen(
            [sys.executable, *launcher, str(script), *overrides],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=env,
            start_new_session=True,  # so that a Ctrl-C reaches it once, through `_stop`
        )
        self._running.add(process)
        output, _ = process.communicate()
        self._running.discard(process)
        return process.returncode, said_by_the_run(output) or ["no output"]


def said_by_the_run(output: str) -> list[str]:
    """Lines of an output without torchrun's own, which ends in a traceback of itself."""
    lines: list[str] = []
    has_spoken = False
    for line in output.strip().splitlines():
        if OF_TORCHRUN.match(line):
            has_spoken = True
        elif has_spoken and line.startswith("Traceback"):
            break
        else:
            lines.append(line)
    return lines


def visible_gpus() -> list[str]:
    """Those of CUDA_VISIBLE_DEVICES, else all that nvidia-smi lists."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
    try:
        listed = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, check=True, timeout=60
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return re.findall(r"^GPU (\d+):", listed, flags=re.MULTILINE)


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    # SIGINT too: a shell that starts a job in the background has it ignored.
    old = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
