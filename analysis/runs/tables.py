"""Build the table of runs from a user's rows, and its rows for runs of slm."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.formatting import count
from analysis.runs.columns import REQUIRED, SIZES, check_values, rename_columns
from analysis.runs.comparable import count_dropped
from analysis.runs.delimited import DECIMAL_COMMA
from analysis.runs.files import LOSS, read_file, table_format
from analysis.runs.repeats import architecture_notes, repeat_notes
from analysis.runs.status import with_status
from analysis.runs.validate import (
    check_unit_of_loss,
    count_warnings,
    flops_contradiction,
    is_missing,
    is_no_number,
    loss_name_notes,
    number_advice,
    stripped,
)
from slm.architecture.flops import flop_equivalent_params
from slm.architecture.shapes import shape_label
from slm.errors import DataError
from slm.rounding import exceeds
from slm.run.lr_schedule import is_decayed

IDENTITY = ("run_id", "recipe_id", "val_fingerprint")
"""Columns of every result of slm that no other table has together."""
OWN_COLUMNS = ("recipe_id", "unusual_spikes", "epochs")  # used in results of slm only
MAX_RATIO_IN_RUNG = 2.0  # of N, for a column rung that is not mapped


def read_tables(paths: Sequence[Path], loss: str = LOSS) -> tuple[pd.DataFrame, list[str]]:
    """Read the rows of one or several files, and return notes; the index says where each row is.

    `loss`: name in the files of the column of losses.

    Raises:
        DataError: naming the file that cannot be read.
    """
    found = [read_file(path, loss) for path in paths]
    notes = list(dict.fromkeys(note for _, more in found for note in more))
    tables = [table for table, _ in found]
    if len(tables) == 1:
        return tables[0], notes
    names = [path.name for path in paths]
    for path, table in zip(paths, tables, strict=True):
        name = path.name if names.count(path.name) == 1 else str(path)
        table.index = pd.Index([f"{name}, {place}" for place in table.index], dtype=object)
    return pd.concat(tables), notes


def tables_in(folder: Path) -> list[Path]:
    """Return the tables directly in a folder, by name; hidden files, such as those of macOS, are none."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_file() and table_format(path.name) and not path.name.startswith(".")
    )


def runs_table(
    rows: pd.DataFrame,
    source: str,
    columns: Mapping[str, str] | None = None,
    constants: Mapping[str, str] | None = None,
) -> tuple[pd.DataFrame, Counter[str], list[str]]:
    """Return the finished runs of a user's rows, counts of the others by reason, and notes on columns.

    Args:
        rows: one row per run; the index says where it is in the source.
        source: path, for messages.
        columns: name in the source of each column (`analysis.runs.columns.COLUMNS`). Required are family, tokens,
            loss_nats_per_token and one of n_flop, params_non_embedding, params_total.
        constants: value of columns that are equal in all runs.

    Raises:
        DataError: if a column is missing, or a value is invalid; it names the user's column and the place.
    """
    columns = {} if columns is None else columns
    constants = {} if constants is None else constants
    if rows.empty:
        raise DataError(f"{source}: no finished run; the table has only a header")
    table = rename_columns(rows, columns, constants, source)
    dropped: Counter[str] = Counter()
    table, notes = with_status(table, columns, dropped)
    loss_name = columns.get("loss_nats_per_token", "loss_nats_per_token")
    notes += loss_name_notes(loss_name)
    losses = _losses(table, loss_name, source)
    if np.isfinite(losses).any():
        check_unit_of_loss(losses[np.isfinite(losses)].to_numpy(), f"{source}: {loss_name}: ")
    count_dropped(dropped, "no final loss, or diverged", int((~np.isfinite(losses)).sum()))
    table = table.assign(loss_nats_per_token=losses)[np.isfinite(losses)]
    if table.empty:
        return table, dropped, notes
    n_name = next(name for name in SIZES if name in table)
    needed = {*columns, *REQUIRED, "shape", "decayed", n_name}
    table, unused = check_values(table, columns, source, optional=set(table.columns) - needed)
    notes += unused
    n, tokens = table[n_name].to_numpy(), table["tokens"].to_numpy()
    given = table["flops"].to_numpy() if "flops" in table else None
    if given is not None and "flops" not in columns:
        contradiction = flops_contradiction(columns.get(n_name, n_name), n, tokens, given)
        if contradiction is not None:
            notes.append(f"column flops is not used, FLOPs are 6 {n_name} tokens: {contradiction}")
            table, given = table.drop(columns="flops"), None
    if not set(IDENTITY) <= set(table):  # runs of slm have consistent units
        notes += count_warnings(n_name, n, tokens, given, columns, source=source)
        if "rung" in table and "rung" not in {*columns, *constants}:
            note = _rung_note(table["rung"], table[n_name], columns.get(n_name, n_name))
            notes += note
            table = table.drop(columns="rung") if note else table
        notes += repeat_notes(table, n_name, columns)
        table, more = _without_own_columns(table)
        notes += [*more, *architecture_notes(table)]
    return table, dropped, notes


def _without_own_columns(table: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Return a table of another program without the columns that only have a name of a result of slm, and a note."""
    names = [name for name in OWN_COLUMNS if name in table]
    if not names:
        return table, []
    listed = ", ".join(names)
    shown = f"column {listed} is" if len(names) == 1 else f"columns {listed} are"
    return table.drop(columns=names), [f"{shown} not used, except in results of slm"]


def _rung_note(rung: pd.Series, n: pd.Series, n_shown: str) -> list[str]:
    """Return a note if a column that only has the name rung is no label of the size."""
    ranges = n.groupby(rung.astype(str), sort=False).agg(["min", "max"])
    wide = ranges[exceeds((ranges["max"] / ranges["min"]).to_numpy(), MAX_RATIO_IN_RUNG)]
    if wide.empty:
        return []
    low, high = wide.iloc[0]
    return [
        f"column rung is not used: {n_shown} is {low:.3g} to {high:.3g} in rung {wide.index[0]}; if the column is the label "
        "of the size, give --columns rung=rung"
    ]


def _losses(table: pd.DataFrame, shown: str, source: str) -> pd.Series:
    """Return the losses as floats; an empty cell, or a word such as `diverged`, is nan."""
    given = table["loss_nats_per_token"].map(stripped)
    given = given.mask(given.map(lambda value: is_missing(value) or is_no_number(value)))
    losses = pd.to_numeric(given, errors="coerce").astype(float)
    invalid = (losses.isna() & given.notna()).to_numpy()
    if invalid.any():
        row = int(np.flatnonzero(invalid)[0])
        value = given.tolist()[row]
        has_comma = DECIMAL_COMMA.fullmatch(str(value)) is not None
        advice = "; write a decimal point" if has_comma else number_advice(value)
        raise DataError(
            f"{source}: {shown}={value!r} in {given.index[row]}: not a number, as in {count(int(invalid.sum()), 'row')}; "
            f"leave the cell empty if the run has no loss{advice}"
        )
    bad = np.flatnonzero(np.isfinite(losses) & (losses <= 0))
    if len(bad):
        raise DataError(
            f"{source}: {shown}={losses.iloc[bad[0]]:g} in {losses.index[bad[0]]}: a loss in nats per token must be above 0"
        )
    return losses


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
