"""Progress of a run: a bar with loss, speed and remaining time on a terminal, else a log line every 30 s."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from slm.formatting import format_duration
from slm.run.display_name import display_name
from slm.run.spec import RunSpec
from slm.training.step import StepOutput

log = logging.getLogger(__name__)
LINE_EVERY_SECONDS, BAR_EVERY_SECONDS = 30.0, 0.1
SCORES_WIDTH = 80  # columns of a terminal for everything but the name of the run


@contextmanager
def shown_progress(
    spec: RunSpec, first_step: int, *, is_shown: bool
) -> Iterator[Callable[[int, StepOutput], None]]:
    """Yield the function to call after each step; it reads the loss only when it shows it."""
    console = Console(stderr=True)
    is_bar = is_shown and console.is_terminal
    name = display_name(spec)
    has_room = console.width >= SCORES_WIDTH + len(name)
    bar = Progress(
        *([TextColumn("{task.description}", markup=False)] if has_room else []),
        BarColumn(bar_width=None),
        TextColumn("step {task.completed:.0f}/{task.total:.0f}{task.fields[scores]}"),
        console=console,
        disable=not is_bar,
        expand=True,
    )
    task = bar.add_task(name, total=spec.steps, completed=first_step, scores="")
    pause_seconds = BAR_EVERY_SECONDS if is_bar else LINE_EVERY_SECONDS
    start_seconds = shown_seconds = time.monotonic()

    def update(done: int, output: StepOutput) -> None:
        nonlocal shown_seconds
        now = time.monotonic()
        if not is_shown or (now - shown_seconds < pause_seconds and done < spec.steps):
            return
        shown_seconds = now
        rate = (done - first_step) * spec.batch_tokens / max(now - start_seconds, 1e-9)
        scores = f"  loss {float(output.loss):.3f}  {rate:,.0f} tokens/s"
        if done < spec.steps:
            seconds = (spec.steps - done) * spec.batch_tokens / rate
            scores += f"  {format_duration(seconds)} remaining"
            if not is_bar:
                log.info("step %d/%d%s", done, spec.steps, scores)
        bar.update(task, completed=done, scores=scores)

    with bar:
        yield update
