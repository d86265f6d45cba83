"""Signals that ask for an end: finish the step, save, stop. A second Ctrl-C stops at once.

SIGTERM is what schedulers send before they kill, SIGUSR1 and SIGUSR2 what Slurm is told to send ahead
of a time limit. The exit code is 128 and the signal's number, as of a process that died of it. Any process
of a team may get the signal; all stop after the same step, the one after that in which it came.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from slm.errors import Interrupted
from slm.training.callbacks.checkpoint import Checkpoints
from slm.training.distributed.workers import ALONE, Team

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class StopOnSignal(Callback):
    """Turns a signal, received while `listening`, into an orderly end after the current step."""

    def __init__(self, checkpoints: Checkpoints, team: Team = ALONE):
        self._checkpoints = checkpoints
        self._team = team
        self._received: int | None = None
        self._agreed: int | None = None
        self._answer: Callable[[], int] = lambda: 0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the signals inside the block, and put the old handlers back after it."""
        old = {number: signal.getsignal(number) for number in SIGNALS}
        self._listen()
        try:
            yield
        except SystemExit as stopped:  # what Lightning makes of a second Ctrl-C
            raise KeyboardInterrupt from stopped
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)

    def _listen(self) -> None:
        for number in SIGNALS:
            signal.signal(number, self._receive)

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._listen()  # Lightning has put its own SIGTERM handler in front, which would not save

    def is_asked(self) -> bool:
        """Whether a signal has come; a block of steps ends then. All of a team ask, and hear the same.

        They hear of what each of them knew when it was asked before: so nobody waits for an answer.
        """
        if self._team.world_size > 1:
            before, self._answer = self._answer, self._team.most(self._received or 0)
            self._agreed = before() or None
        return self._number is not None

    @property
    def _number(self) -> int | None:
        return self._received if self._team.world_size == 1 else self._agreed

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._received = number

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, step: int
    ) -> None:
        if trainer.global_step < trainer.max_steps:
            self._stop_if(self._number, trainer)

    def stop_if_asked(self, trainer: Trainer) -> None:
        """Save and raise Interrupted if a signal has come; called between batches."""
        self.is_asked()
        self._stop_if(self._number, trainer)

    def _stop_if(self, number: int | None, trainer: Trainer) -> None:
        if number is None:
            return
        self._checkpoints.save(trainer)
        name = signal.Signals(number).name
        raise Interrupted(
            f"interrupted by {name} after step {trainer.global_step} of {trainer.max_steps}; "
            "its state is saved, the same command goes on from there",
            number,
        )
