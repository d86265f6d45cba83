"""Progress of a study, read from its run directories, also while other machines write them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from slm.console import Column, FittedTable, console, print_lines
from slm.errors import StudyUnfinished
from slm.formatting import TIME_UNITS, count, in_one_unit, percent_done, short_count
from slm.run.display_name import display_name
from slm.studies.cells import DONE, Cell
from slm.studies.grid_table import family_kind, rung_family_columns, rung_label, rungs_of
from slm.studies.left_out import left_out_lines
from slm.studies.throughput import Throughput, load_throughput
from slm.tracking import run_dir
from slm.tracking.checkpoints import saved_checkpoints, step_of
from slm.tracking.trunk import Trunk

REFRESH_SECONDS = 2.0
MAX_ROWS = 40  # of cells; a larger study has a table of counts
MIN_RUNNING = 2
MAX_FAILURES = 10
OTHER_LINES = (
    16  # headline, folder, hints and table of counts, so that a refreshed table fits the terminal
)
MARKS = {"running": "r", "failed": "f", "diverged": "d"}
STYLES = {"running": "cyan", "finished": "green", "failed": "red", "diverged": "magenta"}


@dataclass(frozen=True)
class Progress:
    """Progress of one cell. `loss` is the validation loss if finished, else the last training loss."""

    cell: Cell
    state: str
    step: int
    """Last logged step; of a cell that does not run, the step from which it would continue."""
    loss: float | None
    tokens_per_second: float | None
    remaining_seconds: float | None
    note: str
    """Host and process of a running cell, error of a failed one, loss of a diverged one."""

    @property
    def fraction(self) -> float:
        """Return the share of the cell that need not be computed any more: all of it if the cell diverged."""
        return 1.0 if self.state in DONE else min(self.step / self.cell.spec.steps, 1.0)

    @property
    def done_flops(self) -> float:
        """FLOPs that need not be computed any more."""
        return self.fraction * self.cell.spec.flops


def progress_of(cell: Cell, throughput: Throughput) -> Progress:
    state, spec = cell.state, cell.spec
    result = cell.result if state in {"finished", "diverged"} else None
    if result is not None and state == "finished":
        loss, speed = result.val_loss_nats_per_token, result.tokens_per_second
        return Progress(cell, state, spec.steps, loss, speed, 0.0, "")
    row = cell.run.last_metrics()
    is_stopped = state in {"planned", "interrupted", "failed"}  # planned: its trunk may be saved
    step = _saved_step(cell) if is_stopped else int(row.get(run_dir.STEP, 0))
    measured = row.get(run_dir.TOKENS_PER_SECOND) if state == "running" else None
    rate = measured or _expected_rate(cell, throughput)
    remaining = None
    if rate is not None and state != "diverged":
        remaining = (spec.steps - step) * spec.batch_tokens / rate
    return Progress(
        cell, state, step, row.get(run_dir.TRAIN_LOSS), measured, remaining, _note(cell, state)
    )


def _note(cell: Cell, state: str) -> str:
    """Return the error of a failed cell, where it diverged, or who runs it."""
    if state == "failed":
        return cell.run.failure()
    if state == "running":
        return _owner(cell)
    at = (cell.result and cell.result.divergence) or {}
    if state != "diverged" or not at:
        return ""
    loss = f"loss {float(at['loss']):g}"  # text if not finite
    if "grad_norm" not in at:
        return f"step {at['step']}: validation {loss}"
    return f"step {at['step']}: {loss}, gradient norm {float(at['grad_norm']):g}"


def _saved_step(cell: Cell) -> int:
    """Return the step of the newest checkpoint of a run, or of its trunk; 0 without any."""
    own = saved_checkpoints(cell.run.checkpoints)
    if own:
        return step_of(own[0])
    trunk = Trunk.of(cell.spec)
    shared = [] if trunk is None else map(step_of, saved_checkpoints(trunk.folder))
    return max((step for step in shared if step <= cell.spec.trunk_steps), default=0)


def _expected_rate(cell: Cell, throughput: Throughput) -> float | None:
    """Return the expected tokens/s of all devices of a run; None if unknown."""
    flops, processes = throughput.flops_per_second(cell.spec), cell.spec.config.trainer.processes
    return None if flops is None else flops * processes / cell.spec.flops_per_token


def _owner(cell: Cell) -> str:
    owner = cell.run.lease.owner()
    return "" if owner is None else f"{owner.host}, process {owner.pid}"


def print_status(cells: Sequence[Cell]) -> None:
    """Print the status of a study; on a terminal, refresh it until no cell is running.

    Raises:
        StudyUnfinished: if not all cells are finished or diverged.
    """
    out = console()
    if out.is_terminal and any(cell.state == "running" for cell in cells):
        rows = min(MAX_ROWS, max(0, out.height - OTHER_LINES))  # Live cannot scroll
        with Live(console=out, auto_refresh=False, transient=True) as live:
            while any(cell.state == "running" for cell in cells):
                live.update(build_status(cells, rows), refresh=True)
                time.sleep(REFRESH_SECONDS)
    out.print(build_status(cells))
    print_lines(out, left_out_lines(cells))
    unfinished = sum(not cell.is_done for cell in cells)
    if unfinished:
        retry = any(cell.state == "failed" for cell in cells)
        fix = "action=run" + (" study.retry_failed=true" if retry else "")
        verb = "is" if unfinished == 1 else "are"
        claims = cells[0].spec.config.study.claim != "none"
        check = " (it is refused if action=plan refuses the design)" if claims else ""
        raise StudyUnfinished(
            f"{unfinished} of {count(len(cells), 'cell')} {verb} unfinished; continue with {fix}{check}"
        )


def build_status(cells: Sequence[Cell], max_rows: int | None = None) -> Group:
    """Return headline, table and failures of a study.

    A study of more than `max_rows` cells has a table of counts and the rows of its running cells. Without this
    number `plan.cells` decides: all cells, or `MAX_ROWS`.
    """
    if max_rows is None:
        max_rows = len(cells) if cells[0].spec.config.plan.cells else MAX_ROWS
    throughput = load_throughput(cells)
    rows = [progress_of(cell, throughput) for cell in cells]
    lists_all = len(rows) <= max_rows
    if lists_all:
        shown = rows
    else:
        most = max(
            MIN_RUNNING, max_rows - len(rungs_of(cells))
        )  # the table of counts has these rows
        shown = [row for row in rows if row.state == "running"][:most]
    parts: list[RenderableType] = [Text(_headline(rows), style="bold"), _folder(cells)]
    if not lists_all:
        parts.append(_overview(rows))
    if shown:
        parts.append(_cells_table(shown, has_one_seed=len({_seed(cell) for cell in cells}) == 1))
    failed = [row for row in rows if row.state == "failed"]
    parts += [_failure(row) for row in failed[:MAX_FAILURES]]
    if len(failed) > MAX_FAILURES:
        parts.append(Text(f"and {len(failed) - MAX_FAILURES} more failed cells"))
    if not lists_all:
        parts.append(Text("plan.cells=true lists every cell", style="dim"))
    return Group(*parts)


def _cells_table(rows: Sequence[Progress], *, has_one_seed: bool) -> FittedTable:
    specs = [row.cell.spec for row in rows]
    known = [None if row.state in DONE else row.remaining_seconds for row in rows]
    unit, times = in_one_unit(known, TIME_UNITS)
    if any(known):
        times = ["" if row.state in DONE else time for row, time in zip(rows, times, strict=True)]
    else:
        times = [""] * len(rows)
    grid = [" ".join(row.cell.varied) for row in rows]
    columns = [
        Column("family", [row.cell.family for row in rows], is_left=True),
        Column("size", [rung_label(row.cell.rung) for row in rows]),
        Column("shape", [spec.shape.label for spec in specs], rank=4, is_left=True),
        Column("tokens", [short_count(spec.tokens) for spec in specs]),
        Column("seed", [str(_seed(row.cell)) for row in rows], rank=3 * has_one_seed),
        *([Column("grid values", grid, is_left=True)] if any(grid) else []),
        Column("state", [Text(row.state, STYLES.get(row.state, "")) for row in rows], is_left=True),
        Column("done", [percent_done(row.fraction) for row in rows]),
        Column("train\nloss", [_loss(row) * (row.state != "finished") for row in rows]),
        Column("val\nloss", [_loss(row) * (row.state == "finished") for row in rows]),
        Column(
            "tokens/s",
            [
                "" if row.tokens_per_second is None else short_count(row.tokens_per_second)
                for row in rows
            ],
            rank=2,
        ),
        Column(f"{unit}\nremaining", times, rank=1),
        Column("host", [row.note * (row.state == "running") for row in rows], rank=5, is_left=True),
        Column("folder", [row.cell.run.path.name for row in rows], rank=6, is_left=True),
    ]
    return FittedTable([column for column in columns if any(map(str, column.cells))])


def _loss(row: Progress) -> str:
    return "" if row.loss is None else f"{row.loss:.3f}"


def _overview(rows: Sequence[Progress]) -> FittedTable:
    """Build the table of finished and all cells by rung and family."""
    states = {row.cell.spec.run_id: row.state for row in rows}

    def text(group: Sequence[Cell]) -> str:
        counts = Counter(states[cell.spec.run_id] for cell in group)
        marks = [f"{counts[state]}{mark}" for state, mark in MARKS.items() if counts[state]]
        return " ".join([f"{counts['finished']}/{len(group)}", *marks])

    cells = [row.cell for row in rows]
    marks = ", ".join(f"{mark} {state}" for state, mark in MARKS.items())
    title = f"Finished / all cells by size and {family_kind(cells)} ({marks})"
    return FittedTable(rung_family_columns(cells, text), title)


def _failure(row: Progress) -> Text:
    return Text(f"failed: {display_name(row.cell.spec)}: {row.note}\n  {row.cell.run.path}", "red")


def _folder(cells: Sequence[Cell]) -> Text:
    return Text(f"folder: {cells[0].run.path.parent}", overflow="fold")


def _seed(cell: Cell) -> int:
    return cell.spec.config.seed


def _headline(rows: Sequence[Progress]) -> str:
    """Summarize the states of all cells and the completed fraction of the FLOPs."""
    counts = Counter(row.state for row in rows)
    total = sum(row.cell.spec.flops for row in rows)
    done = percent_done(sum(row.done_flops for row in rows) / total)
    states = ", ".join(f"{count} {state}" for state, count in counts.most_common())
    name = rows[0].cell.spec.config.study.name
    return f"study {name}: {states}; {done} of the FLOPs done"
