"""Ctrl-C and SIGTERM: finish the step, save, stop. A second Ctrl-C stops at once."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from slm.errors import Interrupted
from slm.training.callbacks.checkpoint import Checkpoints

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopOnSignal(Callback):
    """Handles the signals while training runs, and puts the old handlers back after."""

    def __init__(self, checkpoints: Checkpoints):
        self._checkpoints = checkpoints
        self._received: int | None = None
        self._old_handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        for number in SIGNALS:
            self._old_handlers[number] = signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._received = number

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, step: int
    ) -> None:
        if self._received is not None and trainer.global_step < trainer.max_steps:
            self._checkpoints.save(trainer)
            name = signal.Signals(self._received).name
            raise Interrupted(
                f"interrupted by {name} after step {trainer.global_step} of {trainer.max_steps}; "
                "its state is saved, the same command goes on from there",
                self._received,
            )

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._restore()

    def on_exception(self, trainer: Trainer, module: LightningModule, error: BaseException) -> None:
        self._restore()

    def _restore(self) -> None:
        while self._old_handlers:
            signal.signal(*self._old_handlers.popitem())
