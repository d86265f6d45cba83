"""Progress of a run: a bar with loss, speed and remaining time on a terminal, else a log line now and then."""

from __future__ import annotations

import logging
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from slm.run.spec import RunSpec
from slm.training.step import StepOutput

log = logging.getLogger(__name__)
LINE_EVERY_SECONDS = 20.0
BAR_EVERY_SECONDS = 0.1


class ProgressDisplay:
    """Context manager; `update` is called after every step and reads the loss only when it shows it."""

    def __init__(self, spec: RunSpec, first_step: int, *, is_shown: bool):
        self._spec = spec
        self._first_step = first_step
        self._is_shown = is_shown
        self._bar: Progress | None = None

    def __enter__(self) -> ProgressDisplay:
        self._start_seconds = self._last_seconds = time.monotonic()
        console = Console(stderr=True)
        if self._is_shown and console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed:.0f}/{task.total:.0f} steps"),
                TextColumn("loss {task.fields[loss]:.3f}  {task.fields[rate]:,.0f} tokens/s  left"),
                TimeRemainingColumn(),
                console=console,
            )
            self._bar.add_task(
                f"{self._spec.config.family.name} {self._spec.shape.label}",
                total=self._spec.steps,
                completed=self._first_step,
                loss=float("nan"),
                rate=0.0,
            )
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: int, output: StepOutput) -> None:
        now = time.monotonic()
        pause = LINE_EVERY_SECONDS if self._bar is None else BAR_EVERY_SECONDS
        if not self._is_shown or (now - self._last_seconds < pause and done < self._spec.steps):
            return
        self._last_seconds = now
        rate = (
            (done - self._first_step)
            * self._spec.batch_tokens
            / max(now - self._start_seconds, 1e-9)
        )
        if self._bar is not None:
            task = self._bar.task_ids[0]
            self._bar.update(task, completed=done, loss=float(output.loss), rate=rate)
        elif done < self._spec.steps:
            remaining_seconds = (self._spec.steps - done) * self._spec.batch_tokens / rate
            log.info(
                "step %d/%d  loss %.3f  %.0f tokens/s  %.0f s left",
                done,
                self._spec.steps,
                float(output.loss),
                rate,
                remaining_seconds,
            )
