"""Comparisons that the last bits of a number cannot decide.

These bits differ between CPUs, whose vector instructions compute logarithms and sums in another way, and
with the order of the terms of a sum. Numbers that are equal up to them count as equal here, and of equally
good choices the first is taken.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

# Far above the 1e-16 of one operation, and far below any difference that is measured.
ROUNDING_TOLERANCE = 1e-9
ITERATION_TOLERANCE = 1e-6  # the same for results of iterations and of inverse matrices


def exceeds(value: Any, limit: Any) -> Any:
    """Return whether a number, or each of an array, is above a limit by more than rounding."""
    return value > limit + ROUNDING_TOLERANCE * abs(limit)


def snap_to_zero(values: Any, tolerance: float = ROUNDING_TOLERANCE) -> Any:
    """Return 0 for what differs from 0 by rounding alone, in sums and differences of numbers of order 1.

    Nats per token, exponents and logarithms are such numbers. A float for a float, else an array.
    """
    found = np.where(np.abs(values) <= tolerance, 0.0, values)
    return found if found.ndim else float(found)


def opposite_signs(a: float, b: float) -> bool:
    """Return whether two numbers of order 1 differ in sign; one that rounding alone keeps from 0 has none."""
    return bool(snap_to_zero(a) * snap_to_zero(b) < 0)


def first_argmin(values: ArrayLike, tolerance: float = ROUNDING_TOLERANCE) -> int:
    """Return the index of the first value that equals the least up to a relative tolerance."""
    array = np.asarray(values, dtype=np.float64)
    least = array.min()
    return int(np.argmax(array <= least + tolerance * abs(least)))


def merge_close(values: ArrayLike, tolerance: float = ROUNDING_TOLERANCE) -> Floats:
    """Return the values, with those that are equal up to a relative tolerance replaced by the least of them."""
    array = np.asarray(values, dtype=np.float64)
    order = np.argsort(array, kind="stable")
    ordered = array[order]
    is_new = ~(np.diff(ordered, prepend=-np.inf) <= tolerance * np.abs(ordered))
    result = np.empty_like(array)
    result[order] = ordered[is_new][np.cumsum(is_new) - 1]
    return result


def stable_argsort(values: ArrayLike, tolerance: float = ROUNDING_TOLERANCE) -> NDArray[np.int64]:
    """Return the indices that sort the values; those that are equal up to rounding keep their order."""
    return np.argsort(merge_close(values, tolerance), kind="stable")


def pseudoinverse(matrix: Floats) -> Floats:
    """Return the pseudoinverse of a matrix of scaled columns, with a rank that rounding does not decide."""
    return np.asarray(np.linalg.pinv(matrix, rcond=ROUNDING_TOLERANCE), dtype=np.float64)


def condition_number(matrix: Floats) -> float:
    """Return the condition number of a matrix of scaled columns; inf if its rank is not full."""
    values = np.linalg.svd(matrix, compute_uv=False)
    return float(values[0] / values[-1]) if values[-1] > ROUNDING_TOLERANCE * values[0] else np.inf


def round_to_three_digits(value: float) -> float:
    """Return a positive number rounded to three significant digits, halves up."""
    return float(f"{value * (1 + ROUNDING_TOLERANCE):.3g}")
