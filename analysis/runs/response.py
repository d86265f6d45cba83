"""The quantity that families are compared on: the loss, or the score of a task in its place.

The analysis models a positive quantity that falls with size and tokens, and calls it loss, in nats. `with_response`
puts another column in the place of the loss; `Response.reworded` names its unit in every text of a report.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from slm.errors import DataError, nearest_name

if TYPE_CHECKING:
    from analysis.runs.load import Runs

LOSS_COLUMN = "loss_nats_per_token"
UNITS = {"bits_per_byte": "bits/byte", "nats_per_token": "nats/token"}
VALIDATION = "val_fingerprint"
OTHER_EXAMPLES = "scored on other examples"
LARGER_IS_BETTER = re.compile(r"(^|_)(acc|acc_norm|accuracy|f1|exact_match|score)$")
AXIS = "validation loss (nats/token)"
NATS = re.compile(r"\bnats(?:/token| per token)?\b")


@dataclass(frozen=True)
class Response:
    """Column of the runs table, and its unit in texts.

    `is_checked`: whether all runs are known to be scored on the same examples or texts.
    """

    column: str = LOSS_COLUMN
    unit: str = "nats/token"
    is_checked: bool = False

    @property
    def is_loss(self) -> bool:
        return self.column == LOSS_COLUMN

    @property
    def label(self) -> str:
        return f"{'loss' if self.is_loss else self.column}, {self.unit}"

    def sentence(self) -> str:
        """Return what the word loss means in a report; empty for the loss itself."""
        if self.is_loss:
            return ""
        examples = (
            "All runs are scored on the same examples or texts"
            if self.is_checked
            else f"The table has no column {fingerprint_column(self.column)}, so it could not be checked that all runs are "
            "scored on the same examples or texts"
        )
        return (
            f"Compared quantity: {self.column}, in {self.unit}. Wherever this report says loss, it means this quantity. "
            f"{examples}; the intervals do not cover other ones."
        )

    def reworded(self, content: str) -> str:
        """Return a text with the unit of this quantity in place of nats."""
        if self.is_loss:
            return content
        return NATS.sub(self.unit, content.replace(AXIS, f"{self.column} ({self.unit})"))

    def reworded_values(self, content: Any) -> Any:
        """Return JSON content with the unit in every text; keys stay as they are."""
        if isinstance(content, dict):
            return {key: self.reworded_values(value) for key, value in content.items()}
        if isinstance(content, list):
            return [self.reworded_values(value) for value in content]
        return self.reworded(content) if isinstance(content, str) else content


LOSS = Response()


def fingerprint_column(column: str) -> str:
    """Return the column that identifies the scored examples: TASK_fingerprint, or text_fingerprint of a text."""
    name = next((column.removesuffix(unit) for unit in UNITS if column.endswith(unit)), column)
    return f"{name.rstrip('_') or 'text'}_fingerprint"


def with_response(runs: Runs, column: str, *, pool_validation_sets: bool = False) -> Runs:
    """Return the runs with a column in the place of the loss, without the runs that lack it.

    Of runs scored on different examples or texts, only those with the most common ones are kept, unless the quantity is
    of the validation set and `pool_validation_sets` is true.

    Raises:
        DataError: if the table lacks the column, or larger values are better, or a value is not positive.
    """
    if column == LOSS_COLUMN:
        return runs
    response = Response(column, _unit_of(column, runs.table))
    values = pd.to_numeric(runs.table[column], errors="coerce")
    invalid = values.isna() & runs.table[column].notna()
    bad = runs.table[column][invalid | (values <= 0) | np.isinf(values)]
    if len(bad):
        raise DataError(
            f"--metric {column}: {bad.iloc[0]} of run {_name_of(runs.table, bad.index[0])} is not a finite number "
            "above 0"
        )
    known = values.notna()
    if not known.any():
        raise DataError(f"--metric {column}: no run has a value; evaluate the runs on this task")
    dropped = runs.dropped.copy()
    if lacking := int((~known).sum()):
        dropped[f"no {column}"] += lacking
    table = runs.table[known].assign(**{LOSS_COLUMN: values[known]})
    fingerprint = _known_fingerprint(column, table)
    if fingerprint == VALIDATION and pool_validation_sets:
        fingerprint = None
    if fingerprint is not None:
        common = table[fingerprint].mode().iloc[0]  # ties: the first in sorted order
        is_same = table[fingerprint] == common
        if others := int((~is_same).sum()):
            dropped[OTHER_EXAMPLES] += others
        table = table[is_same]
        response = replace(response, is_checked=True)
    return replace(runs, table=table.reset_index(drop=True), dropped=dropped, response=response)


def _known_fingerprint(column: str, table: pd.DataFrame) -> str | None:
    """Return the column that identifies the scored examples; None if the table has none."""
    # The column bits_per_byte of run directories is that of the validation set; models.csv has text_bytes.
    is_of_validation = column == "bits_per_byte" and "text_bytes" not in table
    names = [fingerprint_column(column), *([VALIDATION] if is_of_validation else [])]
    return next((name for name in names if name in table and table[name].notna().any()), None)


def _unit_of(column: str, table: pd.DataFrame) -> str:
    """Return the unit of a column of which smaller values are better; its name ends with the unit."""
    usable = [str(name) for name in table if _unit(str(name))]
    choices = f"the usable columns are {', '.join(usable)}"
    if column not in table:
        near = nearest_name(column, usable)
        raise DataError(
            f"--metric {column}: no such column; {f'did you mean {near}?' if near else choices}"
        )
    unit = _unit(column)
    if unit is None:
        rule = f"the name of a column to compare must end with {' or '.join(UNITS)}"
        if LARGER_IS_BETTER.search(column):
            rule = "larger values are better, but the laws describe a quantity that falls with size"
        raise DataError(f"--metric {column}: {rule}; {choices}")
    return unit


def _unit(column: str) -> str | None:
    return next((unit for suffix, unit in UNITS.items() if column.endswith(suffix)), None)


def _name_of(table: pd.DataFrame, row: Any) -> str:
    return str(table.loc[row, "run_id"]) if "run_id" in table else f"in row {row}"
