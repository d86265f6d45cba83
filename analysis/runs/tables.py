"""Any table of runs, whoever trained them: CSV, Parquet or JSON lines, with its columns renamed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from slm.errors import DataError, nearest

NEEDED = ("family", "shape", "tokens", "loss_nats_per_token")
SUFFIXES = (".csv", ".parquet", ".jsonl")


def is_table(path: Path) -> bool:
    return path.suffix in SUFFIXES


def read_table(path: Path, columns: Mapping[str, str] | None = None) -> pd.DataFrame:
    """Read a table and rename its columns.

    Args:
        columns: the file's name of each of our columns, such as {"tokens": "D", "n_flop": "N"}. Needed:
            family, shape, tokens, loss_nats_per_token and one of n_flop, params_non_embedding,
            params_total. Used where present: flops, rung, budget, seed, aspect_ratio, run_id, status
            (finished, or why not), decayed (true or false), val_fingerprint, peak_lr.

    Raises:
        DataError: if the file cannot be read or lacks a column.
    """
    try:
        table = _read(path)
    except (OSError, ValueError, ImportError) as error:
        raise DataError(f"{path}: not a readable table ({error})") from None
    wanted = dict(columns or {})
    for ours, theirs in wanted.items():
        if theirs not in table:
            fix = nearest(theirs, table.columns)
            raise DataError(f"{path}: no column {theirs!r} for {ours}; {fix}")
    table = table.rename(columns={theirs: ours for ours, theirs in wanted.items()})
    missing = [name for name in NEEDED if name not in table]
    if not {"n_flop", "params_non_embedding", "params_total"} & set(table.columns):
        missing.append("n_flop")
    if missing:
        raise DataError(
            f"{path}: lacks {', '.join(missing)}; pass columns={{'{missing[0]}': 'ITS NAME THERE'}}; there are "
            f"{', '.join(str(name) for name in table.columns)}"
        )
    return table


def _read(path: Path) -> pd.DataFrame:
    if path.suffix == ".csv":
        return pd.read_csv(path)
    return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_json(path, lines=True)
