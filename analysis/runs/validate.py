"""Columns of numbers as a user hands them over, checked before anything is fitted."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.arrays import Floats
from slm.errors import DataError

LARGEST_VOCABULARY = 2**18
SUSPICIOUS_LOSS = math.log(50_257)  # nats; a uniform guess among GPT-2's tokens


def positive_columns(**columns: ArrayLike) -> dict[str, Floats]:
    """The columns as float arrays of one length, all finite and above 0.

    Raises:
        DataError: naming the first column that is not, its first bad row, and what to do.
    """
    arrays: dict[str, Floats] = {}
    for name, column in columns.items():
        try:
            array = np.asarray(column, dtype=float)
        except (TypeError, ValueError) as error:
            raise DataError(f"{name}: must be numbers ({error})") from None
        if array.ndim != 1:
            raise DataError(f"{name}: must be one-dimensional, and has shape {array.shape}")
        arrays[name] = array
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"columns must be equally long, one entry a run; there are {lengths}")
    for name, array in arrays.items():
        bad = np.flatnonzero(~(np.isfinite(array) & (array > 0)))
        if len(bad):
            raise DataError(
                f"{name}: {len(bad)} of {len(array)} values are not finite and above 0 (first: "
                f"{array[bad[0]]} in row {bad[0]}); leave out runs that did not finish, such as "
                "load_runs does and counts"
            )
    return arrays


def label_column(name: str, values: Any, length: int) -> NDArray[Any]:
    """Labels, one a run, as objects.

    Raises:
        DataError: if there are more or fewer than runs, or one is missing.
    """
    array = np.empty(len(values), dtype=object)
    array[:] = list(values)
    if len(array) != length:
        raise DataError(f"{name}: {len(array)} labels for {length} runs; give one a run")
    missing = [
        row
        for row, value in enumerate(array)
        if value is None or (isinstance(value, float) and math.isnan(value))
    ]
    if missing:
        raise DataError(f"{name}: no label in row {missing[0]}; every run needs one")
    return array


def loss_warnings(loss: Floats, vocab_size: int | None = None) -> list[str]:
    """What makes the losses doubtful as nats per token.

    Raises:
        DataError: if they cannot be nats per token: a uniform guess costs ln(vocab_size).
    """
    advice = "if these are perplexities, pass their logarithm; if bits, multiply them by ln 2"
    if vocab_size is not None and (worst := float(loss.max())) > math.log(vocab_size):
        raise DataError(
            f"loss {worst:g}: nats per token cannot exceed ln({vocab_size}) = "
            f"{math.log(vocab_size):.2f} after training; {advice}"
        )
    if (middle := float(np.median(loss))) > math.log(LARGEST_VOCABULARY):
        raise DataError(
            f"a median loss of {middle:g} is worse than a uniform guess among {LARGEST_VOCABULARY} "
            f"tokens, so it is not nats per token; {advice}"
        )
    if (worst := float(loss.max())) > SUSPICIOUS_LOSS:
        return [
            f"losses up to {worst:.2f} are high for nats per token (a uniform guess among 50,257 tokens "
            f"costs {SUSPICIOUS_LOSS:.2f}); {advice}"
        ]
    return []
