"""The process that submitit starts for each task of a Slurm job."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from types import FrameType
from typing import Any

from hydra_plugins.slm_study._command import TrainCommand

HANDLER_SECONDS = 2.0  # until a signal that ended the child reaches this process too


class SlurmTask:
    """Runs a process of train.py, passes signals on to it, and requeues the job of an interrupted run."""

    def __init__(self, saving_seconds: float):
        """`saving_seconds` is the limit for saving the state; the process is killed after it."""
        self._saving_seconds = saving_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._signal: int | None = None

    def __call__(self, command: TrainCommand) -> None:
        """Run the process; exit with its code, so that Slurm's state of the job shows a failure."""
        import submitit

        environment = submitit.JobEnvironment()
        is_rank_zero = environment.global_rank == 0
        requeue_signal = signal.Signals[f"SIG{environment.USR_SIG}"]
        # On rank 0 submitit's handler of this signal calls `checkpoint`; on other ranks it does nothing.
        for number in (signal.SIGTERM, *(() if is_rank_zero else (requeue_signal,))):
            signal.signal(number, self._pass_on)
        self._process = command.start()
        if self._signal is not None:  # it came before the process existed
            self._process.send_signal(self._signal)
        code = self._process.wait()
        is_requeue = code in {128 + requeue_signal, -requeue_signal}
        if is_rank_zero and is_requeue:
            # Slurm signals the child too; it may end before the handler of this process is called.
            time.sleep(HANDLER_SECONDS)
            signal.raise_signal(requeue_signal)
        if not is_rank_zero and (is_requeue or self._signal is not None):
            return  # any other exit code would make srun --kill-on-bad-exit end rank 0 before it requeues the job
        if code != 0:
            sys.exit(code if code > 0 else 128 - code)

    def checkpoint(self, command: TrainCommand) -> Any:
        """Stop the process, wait until it has saved its state, and return the job to requeue."""
        from submitit.helpers import DelayedSubmission

        if self._process is not None:
            self._process.send_signal(signal.SIGUSR2)
            deadline = time.monotonic() + self._saving_seconds
            while is_alive(self._process.pid) and time.monotonic() < deadline:
                time.sleep(0.1)
            self._process.kill()
        return DelayedSubmission(SlurmTask(self._saving_seconds), command)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self._signal = number
        if self._process is not None:
            self._process.send_signal(number)


def is_alive(child: int) -> bool:
    """Return whether a child runs, without the lock of Popen, which an interrupted call of `wait` may hold."""
    try:
        return os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None
    except ChildProcessError:
        return False
