"""What a person watches: a bar with loss, speed and time left, or a line now and then in a log."""

from __future__ import annotations

import logging
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from slm.run.spec import RunSpec

log = logging.getLogger(__name__)
LINE_EVERY_SECONDS = 20.0


class ProgressDisplay(Callback):
    """A rich bar on a terminal; elsewhere a line every 20 seconds."""

    def __init__(self, spec: RunSpec):
        self._spec = spec
        self._bar: Progress | None = None
        self._start_step = 0
        self._start_seconds = 0.0
        self._last_line_seconds = 0.0

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._start_step = trainer.global_step
        self._start_seconds = self._last_line_seconds = time.monotonic()
        console = Console(stderr=True)
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed:.0f}/{task.total:.0f} steps"),
                TextColumn("loss {task.fields[loss]:.3f}  {task.fields[rate]:,.0f} tokens/s  left"),
                TimeRemainingColumn(),
                console=console,
            )
            label = f"{self._spec.config.family.name} {self._spec.shape.label}"
            self._bar.add_task(
                label,
                total=self._spec.steps,
                completed=self._start_step,
                loss=float("nan"),
                rate=0.0,
            )
            self._bar.start()

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, step: int
    ) -> None:
        done, now = trainer.global_step, time.monotonic()
        rate = (done - self._start_step) * self._spec.batch_tokens / (now - self._start_seconds)
        if self._bar is not None:
            task = self._bar.task_ids[0]
            self._bar.update(task, completed=done, loss=float(outputs["loss"]), rate=rate)
        elif now - self._last_line_seconds >= LINE_EVERY_SECONDS:
            self._last_line_seconds = now
            left = (self._spec.steps - done) * self._spec.batch_tokens / rate
            log.info(
                "step %d/%d  loss %.3f  %.0f tokens/s  %.0f s left",
                done, self._spec.steps, float(outputs["loss"]), rate, left,
            )  # fmt: skip

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: Trainer, module: LightningModule, error: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
