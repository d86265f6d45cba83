"""`python -m slm runs`: list the runs of a folder by study."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime
from json import dumps
from pathlib import Path
from typing import Any

from rich.text import Text

from slm.architecture.memory import format_bytes
from slm.console import Column, FittedTable, console, print_lines
from slm.formatting import count, format_duration, scientific, short_count
from slm.run_index.scan import Run, Study, read_studies

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
    target = console()
    for number, study in enumerate(studies):
        if number:
            target.print()
        print_lines(target, _headings(study))
        if study.runs:
            target.print(_table(sorted(study.runs, key=SORT_KEYS[sort]), study))


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
    counts = ", ".join(f"{runs} {state}" for state, runs in states.most_common())
    kept = []
    if study.superseded:
        size = format_bytes(sum(study.superseded_files.values()))
        kept.append(f"{len(study.superseded)} superseded ({size})")
    if study.trunks:
        size = format_bytes(sum(study.trunk_files.values()))
        kept.append(f"{count(study.trunks, 'trunk')} ({size})")
    lines = [
        f"{study.path}: {', '.join([counts or 'no runs', *kept])}; {format_bytes(study.disk_bytes)} in all"
    ]
    kept_bytes = sum((study.superseded_files | study.trunk_files).values())
    if study.disk_bytes < kept_bytes + sum(run.disk_bytes for run in study.runs):
        lines.append("Runs and trunks share checkpoints; the total counts a shared file once.")
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


def _table(runs: Sequence[Run], study: Study) -> FittedTable:
    def column(heading: str, cell: Callable[[Run], str], rank: int = 0, **kind: bool) -> Column:
        return Column(heading, [_styled(cell(run)) for run in runs], rank, **kind)

    def number(value: float | None, form: Callable[[float], str]) -> str:
        return "-" if value is None else form(value)

    columns = [
        column("", lambda run: "*" if run is study.best else "", is_left=True),
        column("id", lambda run: run.short_id, is_left=True),
        column("family", lambda run: run.family, is_left=True),
        column("size", lambda run: run.size_label),
        column("tokens", lambda run: number(run.tokens, short_count)),
        column("seed", lambda run: number(run.seed, str), 1),
        column("state", _state, is_left=True),
        column("loss", lambda run: number(run.loss, "{:.4f}".format)),
        column("FLOPs", lambda run: number(run.flops, lambda flops: scientific(flops, 2)), 3),
        column("time", lambda run: number(run.seconds, format_duration), 4),
        column("updated", lambda run: f"{datetime.fromtimestamp(run.updated):%m-%d %H:%M}", 5),
        column("disk", lambda run: format_bytes(run.disk_bytes), 2),
        column("differs", _note, wraps=True),
        column("run directory", lambda run: run.run_id, 6, is_left=True),
    ]
    return FittedTable(
        [each for each in columns if each.heading != "differs" or any(map(_note, runs))]
    )


def _note(run: Run) -> str:
    return "; ".join(filter(None, [", ".join(run.differs), run.problem]))


def _styled(cell: str) -> Text:
    return Text(cell, STYLES.get(cell, ""))
