"""Collect the runs of a source: run directories, tables, or runs of W&B, and list the columns that it has."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import pandas as pd

from analysis.formatting import count
from analysis.runs.comparable import count_dropped
from analysis.runs.files import LOSS, SUPPORTED, is_supported
from analysis.runs.result_table import results_table
from analysis.runs.tables import read_tables, runs_table, tables_in
from analysis.runs.wandb import (
    TrackedRun,
    Unreadable,
    finished_runs,
    is_foreign,
    offline_runs,
    online_runs,
    rows_of,
)
from slm.errors import DataError, RunError, nearest_name
from slm.tracking.run_dir import RunDirectory

TRAIN_FIRST = "train some runs first, for example with python sweep.py study=demo action=run"
NOT_A_CELL = "not a cell of the study"
WANDB = "wandb:"
LINES_TO_RECOGNIZE = 3  # of a results file, so that one damaged line does not make it a plain table

Collected = tuple[pd.DataFrame, Counter[str], list[str]]


def collect(
    source: Path | str | Sequence[Path | str],
    only: Collection[str] | None,
    columns: Mapping[str, str] | None,
    constants: Mapping[str, str] | None,
) -> Collected:
    """Return the table of the finished runs of a source, counts of the dropped runs by reason, and notes.

    The arguments are those of `analysis.runs.load.load_runs`, for any source but a results file of a study.

    Raises:
        DataError: if the source has no finished run, or a value is invalid.
    """
    if not isinstance(source, (Path, str)):
        return _collect_tables([Path(path) for path in source], only, columns, constants)
    if str(source).startswith(WANDB):
        return _collect_tracked(
            online_runs(str(source).removeprefix(WANDB)), only, str(source), columns, constants
        )
    path = Path(source)
    _check_exists(path)
    if path.is_file():
        return _collect_tables([path], only, columns, constants)
    if not any(_run_directories(path)):
        if any(path.rglob("*.wandb")):
            return _collect_tracked(offline_runs(path), only, str(path), columns, constants)
        if tables := tables_in(path):
            return _collect_tables(tables, only, columns, constants)
        if columns or constants:
            found = (
                "has no run directories, tables or W&B runs" if any(path.iterdir()) else "is empty"
            )
            raise DataError(f"{path}: the folder {found}")
    if columns or constants:
        raise DataError(
            f"{path}: run directories have their own columns; remove columns and constants"
        )
    return *collect_runs(path, only), []


def column_names(source: Path | str | Sequence[Path | str]) -> list[str]:
    """Return the names that `columns` may refer to, of tables or of W&B runs.

    Raises:
        DataError: if the source has none, as run directories of slm.
    """
    if isinstance(source, str) and source.startswith(WANDB):
        return _names_of(online_runs(source.removeprefix(WANDB)), source)
    paths = [Path(source)] if isinstance(source, (Path, str)) else [Path(path) for path in source]
    for path in paths:
        _check_exists(path)
    if len(paths) == 1 and paths[0].is_dir():
        if any(paths[0].rglob("*.wandb")):
            return _names_of(offline_runs(paths[0]), str(source))
        paths = tables_in(paths[0])
        if not paths:
            raise DataError(f"{source}: no tables or W&B runs here; runs of slm need no columns")
    return [str(name) for name in read_tables(paths)[0]]


def _names_of(found: tuple[list[TrackedRun], Unreadable], source: str) -> list[str]:
    runs, unreadable = found
    if not runs:
        raise no_runs(source, unreadable)
    return [str(name) for name in rows_of(runs)]


def no_runs(
    source: object,
    dropped: Mapping[str, int],
    what: str = "finished run",
    notes: Sequence[str] = (),
) -> DataError:
    """Return the error of a source without a run to use: the number of dropped runs by reason, and notes on columns."""
    reasons = "".join(f"; {runs} {reason}" for reason, runs in dropped.items())
    return DataError(f"{source}: no {what}{reasons}{''.join(f'; {note}' for note in notes)}")


def _collect_tables(
    paths: Sequence[Path],
    only: Collection[str] | None,
    columns: Mapping[str, str] | None,
    constants: Mapping[str, str] | None,
) -> Collected:
    paths = list(
        {path.resolve(): path for path in paths}.values()
    )  # a file given twice is one table
    for path in paths:
        _check_exists(path)
        if path.is_dir():
            raise DataError(f"{path}: a folder; several inputs must be tables")
        if not is_supported(path):
            raise DataError(f"{path}: unsupported file type; use {SUPPORTED}")
    source = (
        str(paths[0])
        if len(paths) == 1
        else f"{paths[0]} and {count(len(paths) - 1, 'other file')}"
    )
    loss = columns.get(LOSS, LOSS) if isinstance(columns, Mapping) else LOSS
    rows, read = read_tables(paths, loss)
    table, dropped, notes = runs_table(rows, source, columns, constants)
    return _selected(table, dropped, only, source, [*read, *notes])


def _collect_tracked(
    found: tuple[list[TrackedRun], Unreadable],
    only: Collection[str] | None,
    source: str,
    columns: Mapping[str, str] | None,
    constants: Mapping[str, str] | None,
) -> Collected:
    """Collect W&B runs: those of slm by their results, or with `columns` those of any program."""
    runs, unreadable = found
    dropped: Counter[str] = Counter(unreadable)
    kept = [run for run in runs if only is None or run.run_id in only]
    count_dropped(dropped, NOT_A_CELL, len(runs) - len(kept))
    if not kept:
        raise no_runs(source, dropped)
    if columns or constants:
        table, unfinished, notes = runs_table(rows_of(kept), source, columns, constants)
        return _selected(table, dropped + unfinished, None, source, notes)
    results, older, unusable = finished_runs(kept)
    if all(map(is_foreign, kept)):
        names = ", ".join(map(str, rows_of(kept)))
        raise DataError(
            f"{source}: {count(len(kept), 'run')} of another program; say which of their values to use, as --columns "
            f"tokens=NAME,... or columns={{'tokens': 'NAME', ...}}; they have {names}"
        )
    tables = [results_table(results)] if results else []
    table = (
        pd.concat([*tables, older], ignore_index=True) if len(older) or not tables else tables[0]
    )
    return _selected(table, dropped + unusable, None, source, [])


def _check_exists(path: Path) -> None:
    if path.exists():
        return
    missing = path
    while not missing.parent.is_dir():
        missing = missing.parent
    near = nearest_name(missing.name, [each.name for each in missing.parent.iterdir()])
    fix = f"did you mean {missing.parent / near}?" if near else TRAIN_FIRST
    raise DataError(f"{path}: no such file or folder; {fix}")


def is_results_file(path: Path) -> bool:
    """Return whether the file is a study's results file: one of its first lines has the keys of a `RunResult`."""
    if path.suffix != ".jsonl" or not path.is_file():
        return False
    try:
        with path.open(encoding="utf-8") as lines:
            return any(_has_result_keys(line) for line in islice(lines, LINES_TO_RECOGNIZE))
    except (OSError, UnicodeDecodeError):  # `read_tables` reports it
        return False


def _has_result_keys(line: str) -> bool:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):  # nested too deeply
        return False
    return isinstance(row, dict) and {"schema_version", "run_id", "trunk_id"} <= set(row)


def _selected(
    table: pd.DataFrame,
    dropped: Counter[str],
    only: Collection[str] | None,
    source: str,
    notes: list[str],
) -> Collected:
    if only is not None and "run_id" in table:
        selected = table["run_id"].isin(list(only))
        count_dropped(dropped, NOT_A_CELL, int((~selected).sum()))
        table = table[selected]
    if table.empty:
        raise no_runs(source, dropped, notes=notes)
    order = [name for name in ("family", "flops", "tokens", "seed") if name in table]
    labels = {name: table[name].astype(str) for name in ("family", "seed") if name in table}
    ordered = table.assign(**labels).sort_values(order, kind="stable").index
    return table.loc[ordered].reset_index(drop=True), dropped, notes


def collect_runs(
    folder: Path, only: Collection[str] | None = None
) -> tuple[pd.DataFrame, Counter[str]]:
    """Return one row per finished run, with any recipe, and counts of the dropped runs by reason.

    Raises:
        DataError: if the folder has no finished run.
    """
    dropped: Counter[str] = Counter()
    finished = []
    for run in _run_directories(folder):
        if only is not None and run.path.name not in only:
            dropped[NOT_A_CELL] += 1
            continue
        try:
            result = run.result()
        except RunError:
            dropped["unreadable result.json"] += 1
            continue
        state = run.state()
        if result is None or state != "finished":
            dropped[f"not finished ({state})"] += 1
            continue
        finished.append(result)
    if not finished:
        raise DataError(f"{no_runs(folder, dropped)}; {TRAIN_FIRST}")
    return results_table(finished), dropped


def _run_directories(folder: Path) -> Iterator[RunDirectory]:
    _check_exists(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: a file; give a folder of run directories")
    for config in sorted(folder.rglob("config.yaml")):
        # W&B writes its own config.yaml; hidden folders contain superseded runs.
        inner = config.parent.relative_to(folder).parts
        if "wandb" not in inner and not any(part.startswith(".") for part in inner):
            yield RunDirectory(config.parent)
