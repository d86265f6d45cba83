"""Load finished runs into one tidy table, and count every dropped run by reason.

Sources: run directories, a results file of a study, a W&B project, or any table (`analysis.runs.tables`).
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pandas as pd
from scipy import special

from analysis.formatting import count, format_dropped, span
from analysis.runs.comparable import OTHER_VALIDATION_SET, comparable, count_dropped
from analysis.runs.files import SUPPORTED, table_format
from analysis.runs.response import LOSS, Response
from analysis.runs.tables import read_tables, run_row, runs_table, tables_in
from analysis.runs.validate import label_warnings
from analysis.runs.wandb import (
    TrackedRun,
    Unreadable,
    finished_runs,
    is_foreign,
    offline_runs,
    online_runs,
    rows_of,
)
from slm.architecture.flops import flop_equivalent_params
from slm.architecture.shapes import shape_key
from slm.errors import DataError, RunError, nearest_name
from slm.rounding import stable_argsort
from slm.summary import Rows, Summarized
from slm.tracking.result import RunResult
from slm.tracking.results_file import read_results
from slm.tracking.run_dir import RunDirectory

MAX_LISTED, MAX_CHARACTERS = 3, 12  # of the differing values in a warning
TRAIN_FIRST = "train some runs first, for example with python sweep.py study=demo action=run"
NOT_A_CELL = "not a cell of the study"
WANDB = "wandb:"
LINES_TO_RECOGNIZE = 3  # of a results file, so that one damaged line does not make it a plain table
CHANCE_SPIKES = 1 / 740  # per logged loss, of normal noise (`slm.tracking.spikes`)
LOGGED_EVERY = 10  # steps; default of trainer.log_every_steps
UNUSUAL = 0.01  # probability of so many spikes by chance
ARCHITECTURE = ("tied", "mlp", "qk_norm", "layer_sharing", "d_head")


@dataclass(frozen=True, repr=False)
class Runs(Summarized):
    """Table with one row per finished run; `dropped` counts the other runs by reason.

    `response`: the quantity in the column of the loss.
    """

    table: pd.DataFrame
    dropped: Counter[str]
    warnings: tuple[str, ...]
    response: Response = LOSS

    @property
    def families(self) -> list[str]:
        """Families sorted from deep to wide by mean aspect ratio, or by name if the table has no aspect ratios."""
        if "aspect_ratio" not in self.table:
            return sorted(self.table["family"].unique())
        aspects = self.table.groupby("family")["aspect_ratio"].mean()
        return [str(name) for name in aspects.index[stable_argsort(aspects)]]

    def title(self) -> str:
        runs = count(len(self.table), "finished run")
        if "family" not in self.table:
            return runs
        return f"{runs} of {count(len(self.families), 'family', 'families')}: {', '.join(self.families)}"

    def details(self) -> Iterator[tuple[str, str]]:
        for name, column in (("N_flop", "n_flop"), ("tokens", "tokens")):
            if column in self.table and len(self.table):
                yield name, span(self.table[column])
        if len(self.table):
            losses = self.table["loss_nats_per_token"]
            yield self.response.label, f"{losses.min():.4f} to {losses.max():.4f}"
        yield "left out", format_dropped(self.dropped)
        for warning in self.warnings:
            yield "note", warning

    def rows(self) -> Rows:
        """Return one row per family."""
        rows = []
        for family, runs in self.table.groupby("family", sort=False):
            row = {"family": str(family), "runs": str(len(runs))}
            for name, column in (("N_flop", "n_flop"), ("tokens", "tokens")):
                if column in runs:
                    row[name] = span(runs[column])
            losses = runs["loss_nats_per_token"]
            row[self.response.label] = f"{losses.min():.4f} to {losses.max():.4f}"
            rows.append(row)
        return rows


def load_runs(
    source: Path | str | Sequence[Path | str],
    only: Collection[str] | None = None,
    *,
    pool_validation_sets: bool = False,
    columns: Mapping[str, str] | None = None,
    constants: Mapping[str, str] | None = None,
) -> Runs:
    """Load all finished runs of a source, or only those with the given run ids.

    Args:
        source: a folder of run directories, of W&B offline runs or of tables; the results file of a study
            (`study.results`); one or several tables (CSV, TSV, JSON, JSON lines, Parquet, also compressed); or
            `wandb:ENTITY/PROJECT`.
        only: run ids to keep; None keeps all runs.
        pool_validation_sets: keep runs of every validation set. By default only the most common validation
            set is kept and the other runs are dropped, because losses on different sets are not comparable.
        columns: name in the source of each column, such as {"tokens": "D"}, for tables and for W&B runs of other
            programs, whose names are those of the config and the summary (`analysis.runs.columns`).
        constants: value of columns that are equal in all runs, such as {"family": "mine"}.

    Columns have their units in their names or here: `loss_nats_per_token` after decay; `flops` of the whole
    training, by the convention of `flops_convention`; `n_flop` = flops_per_token / 6; `tokens`;
    `tokens_per_param` as requested, equal across the families of a rung; `size` as requested, or N_flop for
    the rung of a preset.

    Raises:
        DataError: if the source has no finished run, or a value is invalid; it names the column, line and file.
    """
    if not isinstance(source, (Path, str)) and len(source) == 1:
        source = source[0]
    if isinstance(source, (Path, str)) and _is_results_file(Path(source)):
        if columns or constants:
            raise DataError(
                f"{source}: a results file of a study has its own columns; remove columns and constants"
            )
        results = read_results(Path(source)).values()
        return runs_from_results(results, only, pool_validation_sets=pool_validation_sets)
    table, dropped, notes = _collect(source, only, columns, constants)
    table = comparable(table, dropped, pool_validation_sets=pool_validation_sets)
    return Runs(table, dropped, (*notes, *_warnings(table, dropped)))


def runs_from_results(
    results: Iterable[RunResult],
    only: Collection[str] | None = None,
    *,
    pool_validation_sets: bool = False,
) -> Runs:
    """Build the table of `load_runs` from results that are already in memory.

    Raises:
        DataError: if no run has finished.
    """
    dropped: Counter[str] = Counter()
    finished = []
    for result in results:
        if only is not None and result.run_id not in only:
            dropped[NOT_A_CELL] += 1
        elif result.status != "finished":
            dropped[f"not finished ({result.status})"] += 1
        else:
            finished.append(result)
    if not finished:
        raise DataError(
            f"no finished run in these results; dropped runs by reason: {dict(dropped)}"
        )
    table = comparable(_table(finished), dropped, pool_validation_sets=pool_validation_sets)
    return Runs(table, dropped, tuple(_warnings(table, dropped)))


Collected = tuple[pd.DataFrame, Counter[str], list[str]]


def _collect(
    source: Path | str | Sequence[Path | str],
    only: Collection[str] | None,
    columns: Mapping[str, str] | None,
    constants: Mapping[str, str] | None,
) -> Collected:
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
        return [str(name) for name in rows_of(online_runs(source.removeprefix(WANDB))[0])]
    paths = [Path(source)] if isinstance(source, (Path, str)) else [Path(path) for path in source]
    for path in paths:
        _check_exists(path)
    if len(paths) == 1 and paths[0].is_dir():
        if any(paths[0].rglob("*.wandb")):
            return [str(name) for name in rows_of(offline_runs(paths[0])[0])]
        paths = tables_in(paths[0])
        if not paths:
            raise DataError(f"{source}: no tables or W&B runs here; runs of slm need no columns")
    return [str(name) for name in read_tables(paths)]


def _collect_tables(
    paths: Sequence[Path],
    only: Collection[str] | None,
    columns: Mapping[str, str] | None,
    constants: Mapping[str, str] | None,
) -> Collected:
    for path in paths:
        _check_exists(path)
        if table_format(path) is None:
            raise DataError(f"{path}: unsupported file type; use {SUPPORTED}")
    source = (
        str(paths[0])
        if len(paths) == 1
        else f"{paths[0]} and {count(len(paths) - 1, 'other file')}"
    )
    table, dropped, notes = runs_table(read_tables(paths), source, columns, constants)
    return _selected(table, dropped, only, source, notes)


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
    if columns or constants:
        table, unfinished, notes = runs_table(rows_of(kept), source, columns, constants)
        return _selected(table, dropped + unfinished, None, source, notes)
    results, older, unusable = finished_runs(kept)
    if kept and all(map(is_foreign, kept)):
        names = ", ".join(map(str, rows_of(kept)))
        raise DataError(
            f"{source}: {count(len(kept), 'run')} of another program; say which of their values to use, as --columns "
            f"tokens=NAME,... or columns={{'tokens': 'NAME', ...}}; they have {names}"
        )
    tables = [_table(results)] if results else []
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


def _is_results_file(path: Path) -> bool:
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
    except json.JSONDecodeError:
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
        reasons = "".join(f"; {runs} {reason}" for reason, runs in dropped.items())
        raise DataError(f"{source}: no finished run{reasons}")
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
        reasons = "".join(f"; {runs} {reason}" for reason, runs in dropped.items())
        raise DataError(f"{folder}: no finished run{reasons}; {TRAIN_FIRST}")
    return _table(finished), dropped


def _run_directories(folder: Path) -> Iterator[RunDirectory]:
    _check_exists(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: a file; give a folder of run directories")
    for config in sorted(folder.rglob("config.yaml")):
        # W&B writes its own config.yaml; hidden folders contain superseded runs.
        inner = config.parent.relative_to(folder).parts
        if "wandb" not in inner and not any(part.startswith(".") for part in inner):
            yield RunDirectory(config.parent)


def _table(results: Sequence[RunResult]) -> pd.DataFrame:
    rows = [
        {**_row(result), "unusual_spikes": unusual}
        for result, unusual in zip(results, unusual_spikes(results), strict=True)
    ]
    return pd.DataFrame(rows).sort_values(["family", "flops", "seed"], ignore_index=True)


def unusual_spikes(results: Sequence[RunResult]) -> list[bool]:
    """Return which runs have more loss spikes of their own than chance explains.

    A spike at a step where another shape has one too is due to the batch, which all shapes of a seed share. The
    logging interval divides all recorded steps; too small an interval only makes the rule milder.
    """
    shapes: dict[tuple[object, ...], set[str]] = {}
    for result in results:
        for step in result.loss_spikes:
            key = (result.seed, result.batch_tokens, result.data_fingerprint, step)
            shapes.setdefault(key, set()).add(str(result.shape))
    every = math.gcd(LOGGED_EVERY, *(int(key[-1]) for key in shapes))  # type: ignore[call-overload]
    unusual = []
    for result in results:
        batch = (result.seed, result.batch_tokens, result.data_fingerprint)
        own = sum(len(shapes[*batch, step]) == 1 for step in result.loss_spikes)
        chance = special.bdtrc(own - 1, result.steps // every, CHANCE_SPIKES) if own else 1.0
        unusual.append(bool(chance < UNUSUAL))
    return unusual


def _row(result: RunResult) -> dict[str, object]:
    return {
        "run_id": result.run_id,
        "study": result.study,
        "recipe_id": result.recipe_id,
        "family": result.family,
        "rung": result.rung,
        "size": result.size or round(flop_equivalent_params(result.reference_flops_per_token)),
        "architecture": _architecture(result),
        "model_shape": shape_key(result.shape),
        **run_row(result.shape, vars(result), result.schedule),
        "epochs": result.epochs,
        "seed": result.seed,
        "peak_lr": result.peak_lr,
        "parametrization": result.parametrization,
        "taken_over_steps": result.taken_over_steps,
        "loss_spikes": len(result.loss_spikes),
        "batch_tokens": result.batch_tokens,
        "precision": result.precision,
        "loss_nats_per_token": result.val_loss_nats_per_token,
        "bits_per_byte": result.val_bits_per_byte,
        "val_errors": result.val_errors,
        "val_tokens": result.val_tokens,
        "val_fingerprint": result.val_fingerprint,
        "tokens_per_second": result.tokens_per_second,
        "commit": result.commit,
    }


def _architecture(result: RunResult) -> str:
    """Return the architecture settings that must be equal within a family, as text."""
    return ", ".join(f"{key}={result.shape[key]}" for key in ARCHITECTURE)


def _warnings(table: pd.DataFrame, dropped: Counter[str]) -> Iterator[str]:
    if others := dropped[OTHER_VALIDATION_SET]:
        yield (
            f"{count(others, 'run')} dropped: evaluated on another validation set, so the losses are not comparable; "
            "pass --pool-validation-sets to include them"
        )
    for column in ("commit", "study", "val_fingerprint", "recipe_id"):
        if column not in table:
            continue
        values = table[column].dropna().unique()
        if len(values) > 1:
            yield f"runs differ in {column}: {_first_few(values)}"
    if "unusual_spikes" in table and table["unusual_spikes"].any():
        runs = table.loc[table["unusual_spikes"], "run_id"]
        yield (
            f"{count(len(runs), 'run')} with more loss spikes than chance explains: {', '.join(runs)}; inspect the "
            "loss curves, and repeat a run with a real spike with another seed instead of dropping it"
        )
    if "epochs" in table and (table["epochs"] > 1).any():
        yield f"some runs repeat the training text, up to {table['epochs'].max():.1f} epochs"
    yield from label_warnings("family", table["family"].astype(str))


def _first_few(values: Iterable[object]) -> str:
    texts = [str(value)[:MAX_CHARACTERS] for value in values]
    more = f" and {len(texts) - MAX_LISTED} more" if len(texts) > MAX_LISTED else ""
    return ", ".join(texts[:MAX_LISTED]) + more
