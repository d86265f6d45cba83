"""The process that submitit starts for each task of a Slurm job."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from types import FrameType
from typing import Any

from hydra_plugins.slm_study._command import TrainCommand

REQUEUE_SECONDS = 10.0


class SlurmTask:
    """What submitit runs in each task of a job: the process of train.py, signals to it, and the requeue."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._signal: int | None = None

    def __call__(self, command: TrainCommand) -> None:
        """Run the process; exit with its code, so that Slurm's state of the job shows a failure."""
        import submitit

        environment = submitit.JobEnvironment()
        is_rank_zero = environment.global_rank == 0
        requeue_signal = signal.Signals[f"SIG{environment.USR_SIG}"]
        # submitit handles this signal: on rank 0 it calls `checkpoint`, on other ranks it does nothing.
        for number in (signal.SIGTERM, *(() if is_rank_zero else (requeue_signal,))):
            signal.signal(number, self._pass_on)
        self._process = command.start()
        if self._signal is not None:  # it came before the process existed
            self._process.send_signal(self._signal)
        code = self._process.wait()
        is_requeue = code in {128 + requeue_signal, -requeue_signal}
        if is_rank_zero and is_requeue:
            # Slurm signals the child too, which may end before the handler of this process is called.
            time.sleep(REQUEUE_SECONDS)
            signal.raise_signal(requeue_signal)
        if not is_rank_zero and (is_requeue or self._signal is not None):
            return  # an exit code would make srun --kill-on-bad-exit end rank 0 before it requeues the job
        if code != 0:
            sys.exit(code if code > 0 else 128 - code)

    def checkpoint(self, command: TrainCommand) -> Any:
        """Stop the process, wait until it has saved its state, and return the job to requeue."""
        from submitit.helpers import DelayedSubmission

        if self._process is not None:
            self._process.send_signal(signal.SIGUSR2)
            # `wait` of Popen takes a lock that the interrupted call in `__call__` may hold.
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(SlurmTask(), command)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self._signal = number
        if self._process is not None:
            self._process.send_signal(number)
