"""Notes on rows of a user's table that may be no runs of their own: learning rates of a sweep, or checkpoints of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pandas as pd

from analysis.formatting import count
from analysis.runs.columns import COLUMNS, guess_columns

MAX_LISTED = 3
MAX_DISTINCT = 0.5  # values per row; a column with more, such as an id or a time, is no setting


def repeat_notes(table: pd.DataFrame, n_name: str, columns: Mapping[str, str]) -> list[str]:
    """Return notes on rows that repeat the settings of another row, or the id of a run with other tokens.

    `table` has the names of `COLUMNS`; its other columns have their names in the file. `columns`: name in the file of each
    mapped column.
    """
    return [
        *_replicate_note(table, n_name),
        *_checkpoint_note(table, columns.get("run_id", "run_id")),
    ]


def _replicate_note(table: pd.DataFrame, n_name: str) -> Iterator[str]:
    cell = [
        name for name in ("family", "shape", n_name, "tokens", "seed", "peak_lr") if name in table
    ]
    repeated = table[
        table.duplicated(cell, keep=False)
        & ~table.duplicated([*cell, "loss_nats_per_token"], keep=False)
    ]
    unknown = [str(name) for name in table if name not in COLUMNS]
    guessed = guess_columns(unknown)
    differing = [name for name in unknown if _differs(repeated, cell, name)]
    if not differing or guessed.get("seed") in differing:
        return
    listed = ", ".join(differing[:MAX_LISTED])
    rate = guessed.get("peak_lr")
    fix = f"; map the learning rate with peak_lr={rate}" if rate in differing else ""
    yield (
        f"{count(len(repeated), 'run')} of equal {', '.join(cell)} count as replicates, although they differ in {listed}"
        f"{fix or '; keep one setting if only one is to be compared'}"
    )


def _differs(rows: pd.DataFrame, cell: list[str], name: str) -> bool:
    """Return whether a column has several values in a cell, and few enough to be a setting."""
    values = rows[name].map(str)
    few = values.nunique() <= MAX_DISTINCT * len(values)
    keys = [rows[key].astype(str) for key in cell]
    return bool(len(values)) and few and bool((values.groupby(keys).nunique() > 1).any())


def _checkpoint_note(table: pd.DataFrame, shown: str) -> Iterator[str]:
    if "run_id" not in table:
        return
    ids = table["run_id"].dropna().map(str)
    tokens = table.loc[ids.index, "tokens"].groupby(ids).nunique()
    several = tokens[tokens > 1]
    if len(several):
        yield (
            f"{count(len(several), 'value')} of {shown} stand at several token counts, such as {several.index[0]}: if these "
            "are checkpoints of one run, keep only its end, because losses before the decay are too high"
        )


def architecture_notes(table: pd.DataFrame) -> list[str]:
    """Return a note on a column `architecture` of a user's table that differs within a family."""
    if "architecture" not in table:
        return []
    values = table["architecture"].map(str).groupby(table["family"]).unique()
    several = values[values.map(len) > 1]
    if several.empty:
        return []
    listed = ", ".join(several.iloc[0][:MAX_LISTED])
    return [
        f"column architecture is not used: {several.index[0]} has {len(several.iloc[0])} values ({listed}); if it is the "
        "family, give --columns family=architecture"
    ]
