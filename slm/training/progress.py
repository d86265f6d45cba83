"""Progress of a run: a bar with loss, speed and remaining time on a terminal, else a log line now and then."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from slm.run.spec import RunSpec
from slm.training.step import StepOutput

log = logging.getLogger(__name__)
LINE_EVERY_SECONDS, BAR_EVERY_SECONDS = 20.0, 0.1


@contextmanager
def shown_progress(
    spec: RunSpec, first_step: int, *, is_shown: bool
) -> Iterator[Callable[[int, StepOutput], None]]:
    """Yield the function to call after each step; it reads the loss only when it shows it."""
    console = Console(stderr=True)
    is_bar = is_shown and console.is_terminal
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f} steps"),
        TextColumn("loss {task.fields[loss]:.3f}  {task.fields[rate]:,.0f} tokens/s  remaining"),
        TimeRemainingColumn(),
        console=console,
        disable=not is_bar,
    )
    label = f"{spec.config.family.name} {spec.shape.label}"
    task = bar.add_task(label, total=spec.steps, completed=first_step, loss=float("nan"), rate=0.0)
    pause_seconds = BAR_EVERY_SECONDS if is_bar else LINE_EVERY_SECONDS
    start_seconds = shown_seconds = time.monotonic()

    def update(done: int, output: StepOutput) -> None:
        nonlocal shown_seconds
        now = time.monotonic()
        if not is_shown or (now - shown_seconds < pause_seconds and done < spec.steps):
            return
        shown_seconds = now
        rate = (done - first_step) * spec.batch_tokens / max(now - start_seconds, 1e-9)
        loss, remaining_tokens = float(output.loss), (spec.steps - done) * spec.batch_tokens
        bar.update(task, completed=done, loss=loss, rate=rate)
        if not is_bar and remaining_tokens:
            line = "step %d/%d  loss %.3f  %.0f tokens/s  %.0f s left"
            log.info(line, done, spec.steps, loss, rate, remaining_tokens / rate)

    with bar:
        yield update
