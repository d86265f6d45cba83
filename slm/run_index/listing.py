"""`python -m slm runs`: list the runs of a folder by study."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from json import dumps
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from slm.architecture.memory import format_bytes
from slm.formatting import format_duration, short_count
from slm.run_index.scan import Run, Study, read_studies

GAP = 2  # spaces between columns
# Width of a text that is wrapped, and the lowest rank of the columns that are left out for it.
TEXT_WIDTHS = ((40, 3), (14, 1))
DAMAGED = "damaged"
STYLES = {
    "running": "cyan",
    "finished": "green",
    "failed": "red",
    "diverged": "magenta",
    DAMAGED: "red",
}
Key = Callable[[Run], Any]
SORT_KEYS: dict[str, Key] = {
    "size": lambda run: (_of(run.size), run.size_label, _of(run.tokens), run.family, _of(run.seed)),
    "loss": lambda run: _of(run.loss),
    "tokens": lambda run: _of(run.tokens),
    "flops": lambda run: _of(run.flops),
    "time": lambda run: -run.updated,
    "state": lambda run: (_state(run) == "finished", _state(run)),
}


def _of(value: float | None) -> float:
    """Return a number to sort by: runs without one are last."""
    return math.inf if value is None else value


def list_runs(folder: Sequence[Path], sort: str, *, json: bool) -> None:
    """Print the runs of folders by study."""
    studies = read_studies(folder)
    if json:
        print(dumps([study_as_dict(study, sort) for study in studies], indent=2))
        return
    if not studies:
        print(f"no runs in {', '.join(map(str, folder))}")
    console = Console()
    for number, study in enumerate(studies):
        if number:
            console.print()
        for line in _headings(study):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        if study.runs:
            _print_runs(sorted(study.runs, key=SORT_KEYS[sort]), study, console.width)


def study_as_dict(study: Study, sort: str) -> dict[str, Any]:
    """Return the content of a study in the output of --json; sizes are in bytes, times in seconds."""
    return {
        "study": str(study.path),
        "disk_bytes": study.disk_bytes,
        "best": None if study.best is None else study.best.run_id,
        "superseded": len(study.superseded),
        "superseded_bytes": sum(study.superseded_files.values()),
        "trunks": study.trunks,
        "trunk_bytes": sum(study.trunk_files.values()),
        "runs": [_run_as_dict(run) for run in sorted(study.runs, key=SORT_KEYS[sort])],
    }


def _run_as_dict(run: Run) -> dict[str, Any]:
    return {
        "run_id": run.run_id,
        "name": run.name,
        "path": str(run.path),
        "state": run.state,
        "family": run.family,
        "size": run.size_label,
        "tokens": run.tokens,
        "seed": run.seed,
        "flops": run.flops,
        "val_loss_nats_per_token": run.loss,
        "wall_seconds": run.seconds,
        "differs": list(run.differs),
        "problem": run.problem,
        "disk_bytes": run.disk_bytes,
        "updated": run.updated,
    }


def _headings(study: Study) -> list[str]:
    states = Counter(map(_state, study.runs))
    counts = ", ".join(f"{count} {state}" for state, count in states.most_common())
    kept = []
    if study.superseded:
        size = format_bytes(sum(study.superseded_files.values()))
        kept.append(f"{len(study.superseded)} superseded ({size})")
    if study.trunks:
        kept.append(
            f"{study.trunks} trunk{'s' * (study.trunks > 1)} ({format_bytes(sum(study.trunk_files.values()))})"
        )
    lines = [
        f"{study.path}: {', '.join([counts or 'no runs', *kept])}; {format_bytes(study.disk_bytes)} in all"
    ]
    if study.best is not None:
        lines.append(f"* lowest validation loss: {study.best.path}")
    if study.validation_sets > 1:
        lines.append(
            f"The runs have {study.validation_sets} validation sets, whose losses are not comparable; * is the lowest on "
            "the most common one."
        )
    return lines


def _state(run: Run) -> str:
    return DAMAGED if run.is_damaged else run.state


@dataclass(frozen=True)
class Column:
    """A column of the list; `rank`: columns with a rank are left out if they do not fit, the highest first."""

    heading: str
    cells: list[str]
    rank: int = 0
    is_number: bool = False
    is_text: bool = False
    """Whether long cells are wrapped."""

    def width(self, text_width: int) -> int:
        natural = max(len(self.heading), *map(len, self.cells))
        return min(natural, text_width) if self.is_text else natural


def _print_runs(runs: Sequence[Run], study: Study, width: int) -> None:
    def column(heading: str, cell: Callable[[Run], str], rank: int = 0, **kind: bool) -> Column:
        return Column(heading, [cell(run) for run in runs], rank, **kind)

    def number(value: float | None, form: Callable[[float], str]) -> str:
        return "-" if value is None else form(value)

    columns = [
        column("", lambda run: "*" if run is study.best else ""),
        column("id", lambda run: run.short_id),
        column("family", lambda run: run.family),
        column("size", lambda run: run.size_label, is_number=True),
        column("tokens", lambda run: number(run.tokens, short_count), is_number=True),
        column("seed", lambda run: number(run.seed, str), 1, is_number=True),
        column("state", _state),
        column("loss", lambda run: number(run.loss, "{:.4f}".format), is_number=True),
        column("FLOPs", lambda run: number(run.flops, format_flops), 3, is_number=True),
        column("time", lambda run: number(run.seconds, format_duration), 4, is_number=True),
        column("updated", lambda run: f"{datetime.fromtimestamp(run.updated):%m-%d %H:%M}", 5),
        column("disk", lambda run: format_bytes(run.disk_bytes), 2, is_number=True),
        column("differs", lambda run: "; ".join(filter(None, [", ".join(run.differs), run.problem])), is_text=True),
        column("run directory", lambda run: run.run_id, 6),
    ]  # fmt: skip
    if not any(columns[-2].cells):
        del columns[-2]
    shown = fitting(columns, width)
    table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False)
    for one in shown:
        justify: Literal["left", "right"] = "right" if one.is_number else "left"
        table.add_column(one.heading, no_wrap=not one.is_text, justify=justify, overflow="fold")
    for row in zip(*(one.cells for one in shown), strict=True):
        table.add_row(*(Text(cell, STYLES.get(cell, "")) for cell in row))
    # A terminal that is too narrow wraps the lines: no number is cut.
    Console(width=max(width, total_width(shown, TEXT_WIDTHS[-1][0]))).print(table)


def format_flops(flops: float) -> str:
    """Return FLOPs with two digits, such as `8.5e9`."""
    return f"{flops:.2g}".replace("e+0", "e").replace("e+", "e")


def fitting(columns: Sequence[Column], width: int) -> list[Column]:
    """Return the columns that fit into a width; those of the highest rank are left out first."""
    kept = list(columns)
    for text_width, lowest_rank in TEXT_WIDTHS:
        while total_width(kept, text_width) > width:
            last = max(kept, key=lambda column: column.rank)
            if last.rank < lowest_rank:
                break
            kept.remove(last)
    return kept


def total_width(columns: Sequence[Column], text_width: int) -> int:
    return sum(column.width(text_width) + GAP for column in columns) - GAP
