"""Drop rows that are copies of a run, and refuse different results of one run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from analysis.design.identifiability import SAME
from analysis.runs.columns import COLUMNS, UNKNOWN_SEED
from analysis.runs.validate import is_missing
from slm.errors import DataError
from slm.rounding import exceeds, merge_close

MAX_REPEAT_NATS = 0.002  # between two trainings of one run on different machines
SETTINGS = ("family", "shape", "rung", "tokens", "seed", "peak_lr")
SHOWN = ("family", "shape", "tokens", "seed", "peak_lr")
MAX_LISTED = 3


def count_dropped(dropped: Counter[str], reason: str, runs: int) -> None:
    """Add a number of runs to those dropped for a reason, unless it is 0."""
    if runs:
        dropped[reason] += runs


def with_equal_settings(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with one value for tokens, and for learning rates, that differ by rounding only.

    Within a family and shape, values within 0.1% are equal.
    """
    merged = table.copy()
    groups = [table[name].astype(str) for name in ("family", "shape")]
    for name in ("tokens", "peak_lr"):
        if name in table:
            merged[name] = merged.groupby(groups)[name].transform(
                lambda rows: merge_close(rows, SAME)
            )
    return merged


def known_seeds(seeds: pd.Series) -> pd.Series:
    """Return the seeds with one value for all that are unknown."""
    unknown = seeds.map(lambda seed: str(seed).startswith(UNKNOWN_SEED))
    return seeds.astype(object).mask(unknown, UNKNOWN_SEED)


def without_copies(
    table: pd.DataFrame, dropped: Counter[str], columns: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """Drop the copies of a run: equal run ids or, where a run has none, equal settings.

    Our run ids identify a run. The ids of other tables may be names that runs share, and their seeds may be missing or
    repeated, so that only rows with equal tokens and loss are copies. A copy may have a rounded loss.

    Raises:
        DataError: if runs have one id, equal settings and different results. `columns`: names in the file, for the message.
    """
    ids = table["run_id"] if "run_id" in table else pd.Series(None, index=table.index, dtype=object)
    has_id = ~ids.map(is_missing).to_numpy(dtype=bool)
    rounded = table.assign(loss_nats_per_token=merge_close(table["loss_nats_per_token"]))
    named, bare = rounded[has_id], rounded[~has_id]
    is_own = "recipe_id" in table
    if is_own:
        _check_results(named)
    by_id = ["run_id"] if is_own else ["run_id", "tokens", "loss_nats_per_token"]
    repeated = named.index[named.duplicated(by_id)] if len(named) else named.index
    count_dropped(dropped, "same run in another study", len(repeated))
    settings = [name for name in SETTINGS if name in table]
    copies = bare.index[bare.duplicated([*settings, "loss_nats_per_token"])]
    count_dropped(dropped, "duplicate", len(copies))
    rest = table.drop(index=repeated.union(copies))
    return rest if is_own or rest.empty else _without_rounded(rest, dropped, columns or {})


def _without_rounded(
    table: pd.DataFrame, dropped: Counter[str], columns: Mapping[str, str]
) -> pd.DataFrame:
    """Drop copies with a rounded loss; refuse other rows with one id and equal settings.

    Runs without an id may be replicates with nearly equal losses, so that a copy must have at least 3 decimals fewer.
    """
    settings = [name for name in (*SETTINGS, "val_fingerprint") if name in table]
    merged = with_equal_settings(table)
    ids = table["run_id"] if "run_id" in table else pd.Series(None, index=table.index, dtype=object)
    merged["run_id"] = ids.map(lambda value: None if is_missing(value) else str(value))
    if "seed" in table:
        has_id = merged["run_id"].notna()
        merged["seed"] = table["seed"].astype(object).mask(has_id, known_seeds(table["seed"]))
    keys = ["run_id", *settings]
    several = merged[merged.duplicated(keys, keep=False)]
    copies: list[int] = []
    for _, rows in several.groupby(keys, dropna=False, sort=False):
        run_id = rows["run_id"].iloc[0]
        losses = rows["loss_nats_per_token"]
        fewest, fewer = (3, 3) if run_id is None else (2, 1)
        found = _rounded_copies(losses, fewest, fewer)
        copies += found
        if run_id is not None and len(losses) > len(found) + 1:
            raise DataError(_different_results(run_id, table.loc[rows.index], columns))
    count_dropped(dropped, "copy with a rounded loss", len(copies))
    return table.drop(index=copies)


def _rounded_copies(losses: pd.Series, fewest: int, fewer: int) -> list[int]:
    """Return the index of losses that are another one rounded: to `fewest` decimals or more, `fewer` less than it has."""
    values = dict(zip(losses.index.tolist(), losses.tolist(), strict=True))
    decimals = {place: _decimals(loss) for place, loss in values.items()}
    kept: list[int] = []
    copies: list[int] = []
    for place in sorted(values, key=lambda place: -decimals[place]):
        digits = decimals[place]
        is_copy = digits >= fewest and any(
            digits + fewer <= decimals[other]
            and not exceeds(abs(values[place] - values[other]), 0.5 * 10**-digits)
            for other in kept
        )
        (copies if is_copy else kept).append(place)
    return copies


def _decimals(value: float) -> int:
    """Return the number of decimals of a number as it was written."""
    return len(np.format_float_positional(value, trim="-").partition(".")[2])


def _different_results(run_id: str, rows: pd.DataFrame, columns: Mapping[str, str]) -> str:
    values = _listed(f"{loss:.4f}" for loss in rows["loss_nats_per_token"])
    equal = ", ".join(columns.get(name, name) for name in SHOWN if name in rows)
    other = [
        str(name) for name in rows if name not in COLUMNS and rows[name].map(str).nunique() > 1
    ]
    differ = f" (they differ in {_listed(other)})" if other else ""
    return (
        f"{columns.get('run_id', 'run_id')}={run_id}: {len(rows)} rows of equal {equal} with different losses, {values} nats "
        f"per token{differ}; keep only the final row of each run, or, if they are replicates, give a column with their seeds"
    )


def _listed(values: Iterable[str]) -> str:
    texts = list(values)
    more = f" and {len(texts) - MAX_LISTED} more" if len(texts) > MAX_LISTED else ""
    return ", ".join(texts[:MAX_LISTED]) + more


def _check_results(runs: pd.DataFrame) -> None:
    """Refuse two results of one run id that differ by more than a repetition on another machine does."""
    for run_id, rows in runs[runs.duplicated("run_id", keep=False)].groupby("run_id"):
        losses = rows["loss_nats_per_token"]
        if rows["tokens"].nunique() > 1 or exceeds(losses.max() - losses.min(), MAX_REPEAT_NATS):
            values = " and ".join(f"{loss:.4f}" for loss in sorted(losses))
            raise DataError(
                f"run_id={run_id}: {len(rows)} different results, {values} nats per token; remove all but one"
            )
