"""Check a user's columns before anything is fitted."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.arrays import Floats
from slm.errors import DataError
from slm.rounding import exceeds

LARGEST_VOCABULARY = 2**18
SUSPICIOUS_LOSS = math.log(50_257)  # nats; loss of a uniform guess over GPT-2's vocabulary


def positive_columns(**columns: ArrayLike) -> dict[str, Floats]:
    """Return the columns as float arrays of equal length, with all values finite and above 0.

    Raises:
        DataError: if a column breaks this rule; the message names the column, its first bad row and the fix.
    """
    arrays: dict[str, Floats] = {}
    for name, column in columns.items():
        try:
            array = np.asarray(column, dtype=float)
        except (TypeError, ValueError) as error:
            raise DataError(f"{name}: values must be numbers ({error})") from None
        if array.ndim != 1:
            raise DataError(f"{name}: must be one-dimensional, not of shape {array.shape}")
        arrays[name] = array
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"columns must have equal length, one entry per run; lengths are {lengths}")
    for name, array in arrays.items():
        bad = np.flatnonzero(~(np.isfinite(array) & (array > 0)))
        if len(bad):
            raise DataError(
                f"{name}: {len(bad)} of {len(array)} values are not finite and above 0 (first: "
                f"{array[bad[0]]} in row {bad[0]}); remove unfinished runs, as load_runs does"
            )
    return arrays


def label_column(name: str, values: Any, length: int) -> NDArray[Any]:
    """Return the labels, one per run, as an array of objects.

    Raises:
        DataError: if their number is not `length`, or a label is missing.
    """
    array = np.empty(len(values), dtype=object)
    array[:] = list(values)
    if len(array) != length:
        raise DataError(f"{name}: {len(array)} labels for {length} runs; give one label per run")
    missing = [
        row
        for row, value in enumerate(array)
        if value is None or (isinstance(value, float) and math.isnan(value))
    ]
    if missing:
        raise DataError(f"{name}: no label in row {missing[0]}; give every run a label")
    return array


def loss_warnings(loss: Floats, vocab_size: int | None = None) -> list[str]:
    """Return warnings if the losses look too large for nats per token.

    Raises:
        DataError: if they cannot be nats per token: above ln(vocab_size), the loss of a uniform guess.
    """
    advice = "if these are perplexities, pass their logarithm; if bits, multiply by ln 2"
    worst = float(loss.max())
    if vocab_size is not None and exceeds(worst, math.log(vocab_size)):
        raise DataError(
            f"loss={worst:g}: cannot exceed ln({vocab_size}) = {math.log(vocab_size):.2f} nats per token "
            f"after training; {advice}"
        )
    if exceeds(median := float(np.median(loss)), math.log(LARGEST_VOCABULARY)):
        raise DataError(
            f"a median loss of {median:g} is worse than a uniform guess over {LARGEST_VOCABULARY} "
            f"tokens, so it is not nats per token; {advice}"
        )
    if exceeds(worst, SUSPICIOUS_LOSS):
        return [
            f"losses up to {worst:.2f} are high for nats per token (a uniform guess over 50,257 tokens "
            f"has {SUSPICIOUS_LOSS:.2f}); {advice}"
        ]
    return []
