"""Signals that stop a run: finish the step, save a checkpoint, raise Interrupted.

Schedulers send SIGTERM before they kill; Slurm can send SIGUSR1 or SIGUSR2 ahead of a time limit. The exit
code is 128 plus the number of the signal. A second Ctrl-C stops at once. In a distributed run any rank may
receive the signal; all ranks stop after the same step.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from slm.training.distributed.workers import SINGLE_PROCESS, Workers

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class StopSignal:
    """Records a signal that arrives inside `listening`."""

    def __init__(self, workers: Workers = SINGLE_PROCESS):
        self._workers = workers
        self._received: int | None = None
        self._pending: Callable[[], int] = lambda: 0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the signals inside the block; restore the previous handlers after it."""
        previous = {number: signal.signal(number, self._receive) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def poll(self) -> int | None:
        """Return the number of a received signal, or None; every rank calls this and gets the same.

        Ranks exchange stop requests asynchronously, one call late, so that no step blocks on them.
        """
        if self._workers.world_size == 1:
            return self._received
        pending, self._pending = (
            self._pending,
            self._workers.all_reduce_max_async(self._received or 0),
        )
        return pending() or None

    def received(self) -> int | None:
        """Return the number of a signal that any rank has received so far; every rank calls this."""
        return self._workers.all_reduce_max_async(self._received or 0)() or None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._received = number
