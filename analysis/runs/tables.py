"""Read a table of runs from a file (CSV, Parquet, JSON lines), and build table rows for runs of slm."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.runs.validate import stripped
from slm.architecture.flops import flop_equivalent_params
from slm.architecture.shapes import ModelShape, shape_label
from slm.errors import DataError, nearest

REQUIRED = ("family", "shape", "tokens", "loss_nats_per_token")
SUFFIXES = (".csv", ".parquet", ".jsonl")


def is_table(path: Path) -> bool:
    """Return whether the file's suffix is that of a readable table."""
    return path.suffix in SUFFIXES


def read_table(path: Path, columns: Mapping[str, str] | None = None) -> pd.DataFrame:
    """Read a table and rename its columns to the names of the runs table.

    Args:
        path: .csv, .parquet or .jsonl file.
        columns: name in the file of each column, such as {"tokens": "D", "n_flop": "N"}. Required:
            family, shape, tokens, loss_nats_per_token and one of n_flop, params_non_embedding,
            params_total. Optional: flops, rung, tokens_per_param, seed, aspect_ratio, run_id, status or state
            ("finished", or the reason why not), decayed (yes or no), val_fingerprint, peak_lr.
            One column of the file may have several names; a given name replaces a column of that name.

    Raises:
        DataError: if the file cannot be read or lacks a column.
    """
    if path.is_file() and path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty")
    try:
        table = _read(path)
    except (OSError, ValueError, ImportError) as error:
        raise DataError(f"{path}: not a readable table ({error})") from None
    renamed = dict(columns or {})
    for name, name_in_file in renamed.items():
        if name_in_file not in table:
            fix = nearest(name_in_file, table.columns)
            raise DataError(f"{path}: has no column {name_in_file!r} (given for {name}); {fix}")
    # A column may serve under two names, and a mapped name replaces a column of that name.
    mapped = {name: table[name_in_file] for name, name_in_file in renamed.items()}
    table = table.drop(columns=list(set(renamed.values()))).assign(**mapped)
    missing = [name for name in REQUIRED if name not in table]
    if not {"n_flop", "params_non_embedding", "params_total"} & set(table.columns):
        missing.append("n_flop")
    if missing:
        raise DataError(
            f"{path}: lacks {', '.join(missing)}; pass columns={{'{missing[0]}': 'NAME IN THE FILE'}}; its columns "
            f"are {', '.join(str(name) for name in table.columns)}"
        )
    for name in REQUIRED:
        nested = [value for value in table[name] if isinstance(value, (dict, list))]
        if nested:
            source = renamed.get(name, name)
            raise DataError(
                f"{path}: column {source!r} holds {nested[0]!r}; {name} needs one number or word per run"
            )
    text = table.select_dtypes(exclude=["number", "bool"])
    return table.assign(**{str(name): text[name].map(stripped) for name in text})


def _read(path: Path) -> pd.DataFrame:
    if path.suffix == ".csv":
        return pd.read_csv(path)
    return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_json(path, lines=True)


def run_row(
    shape: Mapping[str, Any], counts: Mapping[str, Any], schedule: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the columns that are computed from a run's shape, counts and schedule.

    Args:
        shape: with n_layers, d_model and optionally layer_sharing.
        counts: with params_total, params_non_embedding, flops_per_token, tokens, tokens_per_param and flops.
        schedule: with kind, and optionally decay_fraction and final_lr_fraction.
    """
    layers, width, sharing = shape["n_layers"], shape["d_model"], shape.get("layer_sharing", 1)
    copied = ("params_total", "params_non_embedding", "flops_per_token", "tokens", "flops")
    return {
        "shape": shape_label(layers, width, sharing),
        "n_layers": layers,
        "d_model": width,
        "aspect_ratio": width / (layers * sharing),
        **{name: counts[name] for name in copied},
        "n_flop": flop_equivalent_params(counts["flops_per_token"]),
        "tokens_per_param": float(f"{counts['tokens_per_param']:.3g}"),
        "schedule": schedule["kind"],
        "decayed": is_decayed(schedule),
    }


def model_shape_key(shape: Mapping[str, Any]) -> str:
    """Return a text that is equal for shapes with equal fields of `ModelShape`, apart from seq_len."""
    values = {
        field.name: shape.get(field.name, None if field.default is MISSING else field.default)
        for field in fields(ModelShape)
        if field.name != "seq_len"
    }
    return json.dumps(values, sort_keys=True)


def is_decayed(schedule: Mapping[str, Any]) -> bool:
    """Return whether the learning rate had decayed, to at most half its peak, when the final loss was measured."""
    return (
        schedule.get("decay_fraction", 1.0) != 0 and schedule.get("final_lr_fraction", 0.0) <= 0.5
    )
