"""Drop the runs of a table that repeat others or are not comparable with most of them, and count them by reason."""

from __future__ import annotations

from collections import Counter

import pandas as pd

from analysis.runs.validate import flag_column, is_missing
from slm.errors import DataError
from slm.rounding import exceeds, merge_close

OTHER_VALIDATION_SET = "other validation set"
MAX_REPEAT_NATS = 0.002  # between two trainings of one run on different machines
ONE_RUN = ("family", "shape", "rung", "tokens", "seed", "peak_lr", "loss_nats_per_token")


def count_dropped(dropped: Counter[str], reason: str, runs: int) -> None:
    """Add a number of runs to those dropped for a reason, unless it is 0."""
    if runs:
        dropped[reason] += runs


def comparable(
    table: pd.DataFrame, dropped: Counter[str], *, pool_validation_sets: bool
) -> pd.DataFrame:
    """Drop duplicates and all runs that are not comparable with the majority.

    Kept are the most common validation set and recipe of the table (with pooled validation sets, the most common recipe
    of each), the most common architecture of each family, and one learning rate per shape.
    """
    table = _without_copies(table, dropped)
    if "decayed" in table:
        decayed = flag_column("decayed", table["decayed"])
        count_dropped(dropped, "undecayed", int((~decayed).sum()))
        table = table[decayed]
    if not pool_validation_sets:
        table = _with_most_common(table, "val_fingerprint", dropped, OTHER_VALIDATION_SET)
        table = _with_most_common(table, "recipe_id", dropped, "other recipe")
    elif {"val_fingerprint", "recipe_id"} <= set(table):
        # The recipe includes the identity of the data, so each validation set has a recipe of its own.
        kept = [
            _with_most_common(rows, "recipe_id", dropped, "other recipe")
            for _, rows in table.groupby("val_fingerprint", dropna=False)
        ]
        table = pd.concat(kept).sort_index() if kept else table
    if "architecture" in table:
        most_common = table.groupby("family")["architecture"].transform(
            lambda rows: rows.mode().iloc[0]
        )
        other = table["architecture"] != most_common
        count_dropped(dropped, "other architecture in its family", int(other.sum()))
        table = table[~other]
    return _with_one_learning_rate(table, dropped).reset_index(drop=True)


def _without_copies(table: pd.DataFrame, dropped: Counter[str]) -> pd.DataFrame:
    """Drop the copies of a run: equal run ids or, where a run has none, equal settings.

    Our run ids identify a run. The ids of other tables may be names that runs share, and their seeds may be missing or
    repeated, so that only rows with equal tokens and loss are copies.

    Raises:
        DataError: if runs of slm have one id and different results.
    """
    rounded = table.assign(loss_nats_per_token=merge_close(table["loss_nats_per_token"]))
    settings = [name for name in ONE_RUN if name in table]
    ids = table["run_id"] if "run_id" in table else pd.Series(None, index=table.index, dtype=object)
    has_id = ~ids.map(is_missing).to_numpy(dtype=bool)
    named, bare = rounded[has_id], rounded[~has_id]
    by_id = ["run_id", "tokens", "loss_nats_per_token"]
    if "recipe_id" in table:
        _check_results(named)
        by_id = ["run_id"]
    repeated = named.index[named.duplicated(by_id)] if len(named) else named.index
    count_dropped(dropped, "same run in another study", len(repeated))
    copies = bare.index[bare.duplicated(settings)]
    count_dropped(dropped, "duplicate", len(copies))
    return table.drop(index=repeated.union(copies))


def _check_results(runs: pd.DataFrame) -> None:
    """Refuse two results of one run id that differ by more than a repetition on another machine does."""
    for run_id, rows in runs[runs.duplicated("run_id", keep=False)].groupby("run_id"):
        losses = rows["loss_nats_per_token"]
        if rows["tokens"].nunique() > 1 or exceeds(losses.max() - losses.min(), MAX_REPEAT_NATS):
            values = " and ".join(f"{loss:.4f}" for loss in sorted(losses))
            raise DataError(
                f"run_id={run_id}: {len(rows)} different results, {values} nats per token; remove all but one"
            )


def _with_one_learning_rate(table: pd.DataFrame, dropped: Counter[str]) -> pd.DataFrame:
    """Keep one learning rate per shape: the one with the most token budgets (ties: lowest loss, then lowest rate).

    A tuned shape has runs at other learning rates at its smallest token budget; they are not replicates. Where all
    runs of equal shape, tokens and seed have one rate, it follows a rule and no run is dropped.
    """
    shape = [name for name in ("family", "rung", "shape") if name in table]
    if "peak_lr" not in table or table["peak_lr"].isna().any() or table.empty:
        return table
    cell = [*shape, "tokens", *(["seed"] if "seed" in table else [])]
    tried = table.groupby(cell, dropna=False)["peak_lr"].transform("nunique")
    if (tried == 1).all():
        return table
    rates = table.groupby([*shape, "peak_lr"], dropna=False).agg(
        budgets=("tokens", "nunique"), loss=("loss_nats_per_token", "min")
    )
    ranked = rates.assign(loss=merge_close(rates["loss"])).reset_index()
    ranked = ranked.sort_values(["budgets", "loss", "peak_lr"], ascending=[False, True, True])
    first = ranked.drop_duplicates(shape)[[*shape, "peak_lr"]]
    kept = table.merge(first, on=[*shape, "peak_lr"], how="inner")
    count_dropped(dropped, "other learning rate of its shape", len(table) - len(kept))
    return kept


def _with_most_common(
    table: pd.DataFrame, column: str, dropped: Counter[str], reason: str
) -> pd.DataFrame:
    if column not in table or table[column].isna().all():
        return table
    common = table[column].mode().iloc[0]  # ties: the first in sorted order
    count_dropped(dropped, reason, int((table[column] != common).sum()))
    return table[table[column] == common]
