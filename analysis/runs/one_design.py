"""Keep one design per size among the runs of slm in a folder: an edited study leaves runs of its earlier shapes there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pandas as pd

from analysis.formatting import count, short_count
from analysis.runs.comparable import count_dropped

NEEDED = ("recipe_id", "rung", "reference_flops_per_token", "model_shape", "warmup_tokens")
SHAPE = ["family", "rung", "model_shape"]
CELL = [*SHAPE, "tokens", "seed", "peak_lr"]


def with_one_design(table: pd.DataFrame, dropped: Counter[str]) -> tuple[pd.DataFrame, list[str]]:
    """Drop the runs of all but the most common design, count them by reason, and return notes.

    A size has one FLOPs per token in all families, a family one shape per size, a shape one warmup if its token
    budgets share a trunk, and a cell one batch size. Explicit shapes, which have no size, are kept.
    """
    if not set(NEEDED) <= set(table) or table["rung"].isna().all():
        return table, []
    before, found = len(table), Counter[str]()
    table = _keep(table, ["rung"], "reference_flops_per_token", "other shapes at size {}", found)
    table = _keep(
        table, ["rung", "family"], "model_shape", "other shape of {1} at size {0} ({label})", found
    )
    trunk = table["warmup_tokens"] < table["n_flop"]  # at one token per parameter it is limited
    sharing = table[trunk].groupby([*SHAPE, "warmup_tokens"])["tokens"].nunique()
    shared = sharing[sharing > 1].reset_index()[SHAPE].drop_duplicates()
    is_shared = table.merge(shared, on=SHAPE, how="left", indicator=True)["_merge"] == "both"
    rows = is_shared.to_numpy()
    kept = _keep(table[rows], SHAPE, "warmup_tokens", "other warmup of its shape", found)
    table = pd.concat([table[~rows], kept]).sort_index()
    repeated = table.duplicated(CELL, keep=False) & table["rung"].notna()
    kept = _keep(table[repeated], CELL, "batch_tokens", "other batch size of its cell", found)
    table = pd.concat([table[~repeated], kept]).sort_index().reset_index(drop=True)
    for reason, runs in found.items():
        count_dropped(dropped, reason, runs)
    if len(table) == before:
        return table, []
    return table, [
        f"{count(before - len(table), 'run')} dropped: the folder has runs of more than one design of a study; each size "
        "keeps its most common one, which may differ between sizes; python sweep.py study=NAME action=report "
        "uses exactly the present cells"
    ]


def _keep(
    table: pd.DataFrame, by: Sequence[str], column: str, reason: str, found: Counter[str]
) -> pd.DataFrame:
    """Keep the rows of each group with its most common value (ties: the smallest), and count the others."""
    common = table.groupby(list(by), dropna=True)[column].transform(
        lambda rows: rows.mode().iloc[0]
    )
    others = common.notna() & (table[column] != common)
    for names, rows in table[others].groupby(list(by)):
        rung = str(names[0])
        size = short_count(int(rung)) if rung.isdigit() else rung
        labels = ", ".join(sorted(set(rows["shape"])))
        found[reason.format(size, *names[1:], label=labels)] += len(rows)
    return table[~others]
