"""Progress of a study, read from its run directories, also while other machines write them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.live import Live
from rich.table import Table

from slm.errors import StudyUnfinished
from slm.studies.cells import Cell
from slm.studies.throughput import Throughput, format_hours, load_throughput
from slm.tracking import run_dir

REFRESH_SECONDS = 2.0
STYLES = {"running": "cyan", "finished": "green", "failed": "red", "diverged": "magenta"}


@dataclass(frozen=True)
class Progress:
    """Progress of one cell. `loss` is the validation loss if finished, else the last training loss."""

    cell: Cell
    state: str
    step: int
    loss: float | None
    tokens_per_second: float | None
    remaining_seconds: float | None
    note: str
    """Host and process of a running cell, error of a failed one."""

    @property
    def fraction(self) -> float:
        return self.step / self.cell.spec.steps


def progress_of(cell: Cell, throughput: Throughput) -> Progress:
    state, spec = cell.state, cell.spec
    result = cell.result if state in {"finished", "diverged"} else None
    if result is not None and state == "finished":
        loss, speed = result.val_loss_nats_per_token, result.tokens_per_second
        return Progress(cell, state, spec.steps, loss, speed, 0.0, "")
    row = cell.run.last_metrics()
    step = int(row.get(run_dir.STEP, 0))
    measured = row.get(run_dir.TOKENS_PER_SECOND) if state == "running" else None
    rate = measured or _expected_rate(cell, throughput)
    remaining = None
    if rate is not None and state != "diverged":
        remaining = (spec.steps - step) * spec.batch_tokens / rate
    note = cell.run.failure() if state == "failed" else _owner(cell) if state == "running" else ""
    return Progress(cell, state, step, row.get(run_dir.TRAIN_LOSS), measured, remaining, note)


def _expected_rate(cell: Cell, throughput: Throughput) -> float | None:
    """Return the expected tokens/s; None if unknown."""
    flops = throughput.flops_per_second(cell.spec)
    return None if flops is None else flops / cell.spec.flops_per_token


def _owner(cell: Cell) -> str:
    owner = cell.run.lease.owner()
    return "" if owner is None else f"{owner.host}, process {owner.pid}"


def print_status(cells: Sequence[Cell]) -> None:
    """Print the status table; on a terminal, refresh it until no cell is running.

    Raises:
        StudyUnfinished: if not all cells are finished or diverged.
    """
    console = Console(width=None if Console().is_terminal else 150)
    if console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            while True:
                live.update(build_status_table(cells), refresh=True)
                if not any(cell.state == "running" for cell in cells):
                    break
                time.sleep(REFRESH_SECONDS)
    else:
        console.print(build_status_table(cells))
    unfinished = sum(not cell.is_done for cell in cells)
    if unfinished:
        retry = any(cell.state == "failed" for cell in cells)
        fix = "action=run" + (" study.retry_failed=true" if retry else "")
        raise StudyUnfinished(
            f"{unfinished} of {len(cells)} cells are unfinished; run them with {fix}"
        )


def build_status_table(cells: Sequence[Cell]) -> Table:
    throughput = load_throughput(cells)
    rows = [progress_of(cell, throughput) for cell in cells]
    table = Table(title=_headline(rows), title_justify="left")
    varies = bool(cells[0].varied)
    for heading in ("family", "shape", *(["grid values"] if varies else []), "status"):
        table.add_column(heading, no_wrap=True)
    for heading in (
        "seed",
        "token\nbudget",
        "progress",
        "loss\n(nats/token)",
        "tokens/s",
        "hours\nremaining",
    ):
        table.add_column(heading, justify="right")
    table.add_column("host / error")
    for row in rows:
        spec = row.cell.spec
        style = STYLES.get(row.state)
        table.add_row(
            row.cell.family,
            spec.shape.label,
            *([" ".join(row.cell.varied)] if varies else []),
            f"[{style}]{row.state}[/{style}]" if style else row.state,
            str(spec.config.seed),
            f"{spec.tokens:,}",
            f"{row.fraction:.0%}",
            "" if row.loss is None else f"{row.loss:.4f}",
            "" if row.tokens_per_second is None else f"{row.tokens_per_second:,.0f}",
            format_hours(row.remaining_seconds) if row.state != "finished" else "",
            row.note,
        )
    return table


def _headline(rows: Sequence[Progress]) -> str:
    """Summarize the states of all cells and the completed fraction of the FLOPs."""
    counts = Counter(row.state for row in rows)
    total = sum(row.cell.spec.flops for row in rows)
    done = sum(row.fraction * row.cell.spec.flops for row in rows)
    states = ", ".join(f"{count} {state}" for state, count in counts.most_common())
    name = rows[0].cell.spec.config.study.name
    return f"study {name}: {states}; {done / total:.0%} of the FLOPs done"
