"""Rows of the tidy table of runs: of a run of slm, or of any file (CSV, Parquet, JSON lines) with its columns
renamed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from slm.architecture.flops import flop_equivalent_params
from slm.architecture.shapes import shape_label
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
            params_total. Used where present: flops, rung, tokens_per_param, seed, aspect_ratio, run_id, status
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


def run_row(
    shape: Mapping[str, Any], counts: Mapping[str, Any], schedule: Mapping[str, Any]
) -> dict[str, Any]:
    """The columns that follow from a run's shape, its counts and its schedule.

    Args:
        shape: n_layers, d_model and layer_sharing.
        counts: params_total, params_non_embedding, flops_per_token, tokens, tokens_per_param and flops.
    """
    layers, width, sharing = shape["n_layers"], shape["d_model"], shape.get("layer_sharing", 1)
    same = ("params_total", "params_non_embedding", "flops_per_token", "tokens", "flops")
    return {
        "shape": shape_label(layers, width, sharing),
        "n_layers": layers,
        "d_model": width,
        "aspect_ratio": width / (layers * sharing),
        **{name: counts[name] for name in same},
        "n_flop": flop_equivalent_params(counts["flops_per_token"]),
        "tokens_per_param": float(f"{counts['tokens_per_param']:.3g}"),
        "schedule": schedule["kind"],
        "decayed": is_decayed(schedule),
    }


def is_decayed(schedule: Mapping[str, Any]) -> bool:
    """Whether the learning rate came down before the final loss was taken."""
    return (
        schedule.get("decay_fraction", 1.0) != 0 and schedule.get("final_lr_fraction", 0.0) <= 0.5
    )
