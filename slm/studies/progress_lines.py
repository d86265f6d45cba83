"""Progress of a study while a launcher runs its cells: one line every 30 s, read from the run directories.

The runs may be in this process, in others, or on other machines of a cluster.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from slm.formatting import format_duration, percent_done, short_count
from slm.run.display_name import display_name
from slm.studies.cells import DONE, Cell, jobs_of
from slm.studies.status import Progress, progress_of
from slm.studies.throughput import Throughput

LINE_EVERY_SECONDS = 30.0
JOIN_SECONDS = 5.0  # limit, if a file server does not respond
MAX_LOSSES = 2
UNKNOWN = Throughput({})


@contextmanager
def progress_lines(
    cells: Sequence[Cell], every_seconds: float = LINE_EVERY_SECONDS
) -> Iterator[None]:
    """Print a line about the cells to stderr every `every_seconds` within the context, if something changed."""
    lines = ProgressLines(cells)
    ended = threading.Event()

    def print_lines() -> None:
        shown = ""
        while not ended.wait(every_seconds):
            with suppress(
                OSError
            ):  # a run that is deleted meanwhile, or a file server that is away
                line = lines.next_line()
                if line != shown and not ended.is_set():
                    # Not through the logger, which also writes to the log of a run in this process.
                    print(line, file=sys.stderr, flush=True)
                shown = line

    thread = threading.Thread(target=print_lines, name="progress of the study", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=JOIN_SECONDS)


class ProgressLines:
    """Reads the states of the cells that are not done yet, and formats one line."""

    def __init__(self, cells: Sequence[Cell]):
        config = cells[0].spec.config
        self._study = config.study.name
        self._start = time.time() if config.rerun else 0.0  # earlier results do not count
        self._jobs = jobs_of(cells)
        self._rows: dict[str, Progress] = {}

    def next_line(self) -> str:
        """Read the cells and return, for example, `demo: 3 of 16 cells done, 2 running; 12k tokens/s; ...`."""
        ended = []
        for cell in (cell for job in self._jobs for cell in job.cells):
            before = self._rows.get(cell.spec.run_id)
            if before is not None and before.state in DONE:
                continue
            row = self._read(cell)
            self._rows[cell.spec.run_id] = row
            if before is not None and row.state in DONE:
                ended.append(row)
        return self._format(ended)

    def _read(self, cell: Cell) -> Progress:
        row = progress_of(cell, UNKNOWN)
        is_old = row.state in DONE and _ended(cell) < self._start
        return Progress(cell, "planned", 0, None, None, None, "") if is_old else row

    def _format(self, ended: Sequence[Progress]) -> str:
        rows = list(self._rows.values())
        running = [row for row in rows if row.state == "running"]
        counts = Counter(row.state for row in rows)
        states = ["running", "failed", "diverged"]
        done = sum(counts[state] for state in DONE)
        parts = [f"{counts[state]} {state}" for state in states if counts[state]]
        line = [", ".join([f"{self._study}: {done} of {len(rows)} cells done", *parts])]
        speed = sum(row.tokens_per_second or 0.0 for row in running)
        if speed:
            line.append(f"{short_count(speed)} tokens/s")
            line.append(f"{format_duration(self._remaining_seconds(running))} remaining")
        newest = [*ended, *sorted(running, key=lambda row: -row.fraction)]
        line += [_loss(row) for row in newest if row.loss is not None][:MAX_LOSSES]
        return "; ".join(line)

    def _remaining_seconds(self, running: Sequence[Progress]) -> float:
        """Divide the remaining FLOPs by the FLOP/s of the running cells; failed cells are not trained again."""
        remaining = 0.0
        for job in self._jobs:
            total = sum(cell.spec.flops for cell in job.cells)
            missing = sum(
                (1 - row.fraction) * row.cell.spec.flops
                for cell in job.cells
                if (row := self._rows[cell.spec.run_id]).state not in DONE | {"failed"}
            )
            # Branches share their trunk, so a job has fewer FLOPs than its cells together.
            remaining += job.flops * missing / total
        rate = sum((r.tokens_per_second or 0.0) * r.cell.spec.flops_per_token for r in running)
        return remaining / rate


def _loss(row: Progress) -> str:
    done = row.state if row.state in DONE else percent_done(row.fraction)
    return f"{display_name(row.cell.spec)}: {row.loss:.3f} nats/token ({done})"


def _ended(cell: Cell) -> float:
    path = cell.run.path / "result.json"
    return path.stat().st_mtime if path.exists() else 0.0
