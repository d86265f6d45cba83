"""Load finished runs into one tidy table, and count every dropped run by reason.

Sources: run directories, a results file of a study, a W&B project, or any table (`analysis.runs.tables`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.formatting import count
from analysis.runs.tables import SUFFIXES, is_table, read_table, run_row
from analysis.runs.wandb import offline_runs, online_runs, tracked_table
from slm.architecture.flops import flop_equivalent_params
from slm.errors import DataError, RunError, nearest_name
from slm.rounding import merge_close, stable_argsort
from slm.tracking.result import RunResult
from slm.tracking.results_file import read_results
from slm.tracking.run_dir import RunDirectory

OTHER_VALIDATION_SET = "other validation set"
MAX_LISTED, MAX_CHARACTERS = 3, 12  # of the differing values in a warning
TRAIN_FIRST = "train some runs first, for example with python sweep.py study=demo action=run"
NOT_A_CELL = "not a cell of the study"
WANDB = "wandb:"
LINES_TO_RECOGNIZE = 3  # of a results file, so that one damaged line does not make it a plain table
ONE_RUN = ["family", "shape", "rung", "tokens", "seed", "peak_lr"]
ARCHITECTURE = ("tied", "mlp", "qk_norm", "layer_sharing", "d_head")


@dataclass(frozen=True)
class Runs:
    """Table with one row per finished run; `dropped` counts the other runs by reason."""

    table: pd.DataFrame
    dropped: Counter[str]
    warnings: tuple[str, ...]

    @property
    def families(self) -> list[str]:
        """Families sorted from deep to wide by mean aspect ratio, or by name if the table has no aspect ratios."""
        if "aspect_ratio" not in self.table:
            return sorted(self.table["family"].unique())
        aspects = self.table.groupby("family")["aspect_ratio"].mean()
        return [str(name) for name in aspects.index[stable_argsort(aspects)]]


def load_runs(
    source: Path | str,
    only: Collection[str] | None = None,
    *,
    pool_validation_sets: bool = False,
    columns: Mapping[str, str] | None = None,
) -> Runs:
    """Load all finished runs of a source, or only those with the given run ids.

    Args:
        source: a folder of run directories or of W&B offline runs; the results file of a study
            (`study.results`); a .csv, .parquet or .jsonl table; or `wandb:ENTITY/PROJECT`.
        only: run ids to keep; None keeps all runs.
        pool_validation_sets: keep runs of every validation set. By default only the most common validation
            set is kept and the other runs are dropped, because losses on different sets are not comparable.
        columns: name in the file of each column, for a table (`analysis.runs.tables.read_table`).

    Columns have their units in their names or here: `loss_nats_per_token` after decay; `flops` of the whole
    training, by the convention of `flops_convention`; `n_flop` = flops_per_token / 6; `tokens`;
    `tokens_per_param` as requested, equal across the families of a rung; `size` as requested, or N_flop for
    the rung of a preset.

    Raises:
        DataError: if the source has no finished run.
    """
    if _is_results_file(Path(source)):
        if columns:
            raise DataError(
                f"{source}: a results file of a study has its own columns; remove columns="
            )
        results = read_results(Path(source)).values()
        return runs_from_results(results, only, pool_validation_sets=pool_validation_sets)
    table, dropped = _collect(source, only, columns)
    table = _comparable(table, dropped, pool_validation_sets=pool_validation_sets)
    return Runs(table, dropped, tuple(_warnings(table, dropped)))


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
    rows = []
    for result in results:
        if only is not None and result.run_id not in only:
            dropped[NOT_A_CELL] += 1
        elif result.status != "finished":
            dropped[f"not finished ({result.status})"] += 1
        else:
            rows.append(_row(result))
    if not rows:
        raise DataError(
            f"no finished run in these results; dropped runs by reason: {dict(dropped)}"
        )
    table = pd.DataFrame(rows).sort_values(["family", "flops", "seed"], ignore_index=True)
    table = _comparable(table, dropped, pool_validation_sets=pool_validation_sets)
    return Runs(table, dropped, tuple(_warnings(table, dropped)))


def _collect(
    source: Path | str, only: Collection[str] | None, columns: Mapping[str, str] | None
) -> tuple[pd.DataFrame, Counter[str]]:
    if isinstance(source, str) and source.startswith(WANDB):
        table, dropped = tracked_table(online_runs(source.removeprefix(WANDB)))
        return _selected(table, dropped, only, source)
    path = Path(source)
    _check_exists(path)
    if is_table(path):
        return _selected(*_finished(read_table(path, columns)), only, str(path))
    if path.is_file():
        supported = ", ".join(SUFFIXES)
        raise DataError(f"{path}: unsupported file type; use {supported}, uncompressed")
    if not any(_run_directories(path)) and any(path.rglob("*.wandb")):
        return _selected(*tracked_table(offline_runs(path)), only, str(path))
    return collect_runs(path, only)


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
    except (OSError, UnicodeDecodeError):  # `read_table` reports it
        return False


def _has_result_keys(line: str) -> bool:
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return False
    return isinstance(row, dict) and {"schema_version", "run_id", "trunk_id"} <= set(row)


def _finished(table: pd.DataFrame) -> tuple[pd.DataFrame, Counter[str]]:
    """Return the rows of a user's table that have a final loss, and counts of the others by their `status`."""
    dropped: Counter[str] = Counter()
    if "status" in table:
        finished = table["status"].isin(["finished", "completed", "done"])
        for state, runs in table.loc[~finished, "status"].value_counts(dropna=False).items():
            dropped[f"not finished ({state})"] += int(runs)
        table = table[finished]
    losses = pd.to_numeric(table["loss_nats_per_token"], errors="coerce")
    invalid = losses.isna() & table["loss_nats_per_token"].notna()
    if invalid.any():
        example = table.loc[invalid, "loss_nats_per_token"].iloc[0]
        raise DataError(
            f"loss_nats_per_token={example!r} in {count(int(invalid.sum()), 'row')}: not a number; leave the cell "
            "empty if the run has no loss"
        )
    finite = np.isfinite(losses)
    _count(dropped, "no final loss, or diverged", int((~finite).sum()))
    return table[finite].assign(loss_nats_per_token=losses[finite]), dropped


def _selected(
    table: pd.DataFrame, dropped: Counter[str], only: Collection[str] | None, source: str
) -> tuple[pd.DataFrame, Counter[str]]:
    if only is not None and "run_id" in table:
        selected = table["run_id"].isin(list(only))
        _count(dropped, NOT_A_CELL, int((~selected).sum()))
        table = table[selected]
    if table.empty:
        reasons = "".join(f"; {runs} {reason}" for reason, runs in dropped.items())
        raise DataError(f"{source}: no finished run{reasons}")
    order = [name for name in ("family", "flops", "tokens", "seed") if name in table]
    return table.sort_values(order, ignore_index=True), dropped


def collect_runs(
    folder: Path, only: Collection[str] | None = None
) -> tuple[pd.DataFrame, Counter[str]]:
    """Return one row per finished run, with any recipe, and counts of the dropped runs by reason.

    Raises:
        DataError: if the folder has no finished run.
    """
    dropped: Counter[str] = Counter()
    rows = []
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
        rows.append(_row(result))
    if not rows:
        reasons = "".join(f"; {runs} {reason}" for reason, runs in dropped.items())
        raise DataError(f"{folder}: no finished run{reasons}; {TRAIN_FIRST}")
    return pd.DataFrame(rows).sort_values(["family", "flops", "seed"], ignore_index=True), dropped


def _run_directories(folder: Path) -> Iterator[RunDirectory]:
    _check_exists(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: a file; give a folder of run directories")
    for config in sorted(folder.rglob("config.yaml")):
        # W&B writes its own config.yaml; hidden folders contain superseded runs.
        inner = config.parent.relative_to(folder).parts
        if "wandb" not in inner and not any(part.startswith(".") for part in inner):
            yield RunDirectory(config.parent)


def _row(result: RunResult) -> dict[str, object]:
    return {
        "run_id": result.run_id,
        "study": result.study,
        "recipe_id": result.recipe_id,
        "family": result.family,
        "rung": result.rung,
        "size": result.size or round(flop_equivalent_params(result.reference_flops_per_token)),
        "architecture": _architecture(result),
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


def _comparable(
    table: pd.DataFrame, dropped: Counter[str], *, pool_validation_sets: bool
) -> pd.DataFrame:
    """Drop duplicates and all runs that are not comparable with the majority.

    Kept are the most common validation set and recipe of the table, the most common architecture of each
    family, and one learning rate per shape.
    """
    if "run_id" in table:
        repeated = table.duplicated("run_id")
        _count(dropped, "same run in another study", int(repeated.sum()))
        table = table[~repeated]
    else:
        # In a table without seeds, rows with different losses are runs with different seeds.
        key = ONE_RUN if "seed" in table else [*ONE_RUN, "loss_nats_per_token"]
        rounded = table.assign(loss_nats_per_token=merge_close(table["loss_nats_per_token"]))
        repeated = rounded.duplicated([name for name in key if name in table])
        _count(dropped, "duplicate", int(repeated.sum()))
        table = table[~repeated]
    if "decayed" in table:
        decayed = table["decayed"].astype(bool)
        _count(dropped, "undecayed", int((~decayed).sum()))
        table = table[decayed]
    if not pool_validation_sets:
        # The recipe includes the identity of the data, so pooled validation sets have several recipes.
        table = _with_most_common(table, "val_fingerprint", dropped, OTHER_VALIDATION_SET)
        table = _with_most_common(table, "recipe_id", dropped, "other recipe")
    if "architecture" in table:
        most_common = table.groupby("family")["architecture"].transform(
            lambda rows: rows.mode().iloc[0]
        )
        other = table["architecture"] != most_common
        _count(dropped, "other architecture in its family", int(other.sum()))
        table = table[~other]
    return _with_one_learning_rate(table, dropped).reset_index(drop=True)


def _with_one_learning_rate(table: pd.DataFrame, dropped: Counter[str]) -> pd.DataFrame:
    """Keep one learning rate per shape: the one with the most token budgets (ties: lowest loss, then lowest rate).

    A tuned shape has runs at other learning rates at its smallest token budget; they are not replicates.
    """
    shape = [name for name in ("family", "rung", "shape") if name in table]
    if "peak_lr" not in table or table["peak_lr"].isna().any() or table.empty:
        return table
    rates = table.groupby([*shape, "peak_lr"], dropna=False).agg(
        budgets=("tokens", "nunique"), loss=("loss_nats_per_token", "min")
    )
    ranked = rates.assign(loss=merge_close(rates["loss"])).reset_index()
    ranked = ranked.sort_values(["budgets", "loss", "peak_lr"], ascending=[False, True, True])
    first = ranked.drop_duplicates(shape)[[*shape, "peak_lr"]]
    kept = table.merge(first, on=[*shape, "peak_lr"], how="inner")
    _count(dropped, "other learning rate of its shape", len(table) - len(kept))
    return kept


def _with_most_common(
    table: pd.DataFrame, column: str, dropped: Counter[str], reason: str
) -> pd.DataFrame:
    if column not in table or table[column].isna().all():
        return table
    common = table[column].mode().iloc[0]  # ties: the first in sorted order
    _count(dropped, reason, int((table[column] != common).sum()))
    return table[table[column] == common]


def _count(dropped: Counter[str], reason: str, runs: int) -> None:
    if runs:
        dropped[reason] += runs


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
    if "loss_spikes" in table and (spiky := int((table["loss_spikes"] > 0).sum())):
        yield (
            f"{count(spiky, 'run')} with loss spikes (expected by chance: 1 in 740 logged losses); inspect the loss "
            "curves, and repeat a run with a real spike with another seed instead of dropping it"
        )
    if "epochs" in table and (table["epochs"] > 1).any():
        yield f"some runs repeat the training text, up to {table['epochs'].max():.1f} epochs"


def _first_few(values: Iterable[object]) -> str:
    texts = [str(value)[:MAX_CHARACTERS] for value in values]
    more = f" and {len(texts) - MAX_LISTED} more" if len(texts) > MAX_LISTED else ""
    return ", ".join(texts[:MAX_LISTED]) + more
