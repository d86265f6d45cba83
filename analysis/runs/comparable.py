"""Drop the runs of a table that repeat others or are not comparable with most of them, and count them by reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import pandas as pd

from analysis.runs.copies import count_dropped, known_seeds, with_equal_settings, without_copies
from analysis.runs.validate import flag_column
from slm.rounding import merge_close

OTHER_VALIDATION_SET = "other validation set"


def comparable(
    table: pd.DataFrame,
    dropped: Counter[str],
    *,
    pool_validation_sets: bool,
    columns: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """Drop duplicates and all runs that are not comparable with the majority.

    Kept are the most common validation set and recipe of the table (with pooled validation sets, the most common recipe
    of each), the most common architecture of each family (of our runs), and one learning rate per shape where runs differ in
    nothing else. `columns`: names in the file, for messages.
    """
    if "decayed" in table:
        decayed = flag_column("decayed", table["decayed"])
        count_dropped(dropped, "undecayed", int((~decayed).sum()))
        table = table[decayed].assign(decayed=True)
    table = without_copies(table, dropped, columns)
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
    if {"architecture", "recipe_id"} <= set(table):  # of other tables it may be any name
        most_common = table.groupby("family")["architecture"].transform(
            lambda rows: rows.mode().iloc[0]
        )
        other = table["architecture"] != most_common
        count_dropped(dropped, "other architecture in its family", int(other.sum()))
        table = table[~other]
    return _with_one_learning_rate(table, dropped).reset_index(drop=True)


def _with_one_learning_rate(table: pd.DataFrame, dropped: Counter[str]) -> pd.DataFrame:
    """Keep one learning rate where runs of equal shape, tokens and seed have several; an unknown one is one of them.

    It is the rate of the shape with the most token budgets (ties: lowest loss, then lowest rate). A tuned shape has runs at
    other rates at its smallest token budget; they are not replicates.
    """
    if "peak_lr" not in table or table.empty:
        return table
    shape = [name for name in ("family", "rung", "shape") if name in table]
    runs = with_equal_settings(table)
    runs["peak_lr"] = runs["peak_lr"].fillna(np.inf)
    if "seed" in runs:
        runs["seed"] = known_seeds(runs["seed"])
    cell = [*shape, "tokens", *(["seed"] if "seed" in runs else [])]
    rate = runs.groupby([*shape, "peak_lr"], dropna=False).ngroup()
    rates = runs.groupby(rate).agg(
        budgets=("tokens", "nunique"),
        loss=("loss_nats_per_token", "min"),
        peak_lr=("peak_lr", "min"),
    )
    rates["loss"] = merge_close(rates["loss"])
    ranked = rates.sort_values(["budgets", "loss", "peak_lr"], ascending=[False, True, True])
    rank = rate.map(dict(zip(ranked.index, range(len(ranked)), strict=True)))
    first = rank.groupby([runs[name] for name in cell], dropna=False).transform("min")
    count_dropped(dropped, "other learning rate of its shape", int((rank != first).sum()))
    return table[rank == first]


def _with_most_common(
    table: pd.DataFrame, column: str, dropped: Counter[str], reason: str
) -> pd.DataFrame:
    if column not in table or table[column].isna().all():
        return table
    common = table[column].mode().iloc[0]  # ties: the first in sorted order
    count_dropped(dropped, reason, int((table[column] != common).sum()))
    return table[table[column] == common]
