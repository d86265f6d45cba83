"""Compare and sort floats up to rounding error.

The last bits of a result depend on the CPU (its vector instructions for logarithms and sums) and on the order
of summation. Here numbers that differ only in these bits count as equal, and ties go to the first element,
so that results and rankings are the same on every machine.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Relative. Far above the 1e-16 of one operation, far below any measured difference.
ROUNDING_TOLERANCE = 1e-9
ITERATION_TOLERANCE = 1e-6  # for results of iterative solvers and matrix inverses


def exceeds(value: Any, limit: Any) -> Any:
    """Return whether a number (or each element of an array) exceeds a limit by more than rounding error."""
    return value > limit + ROUNDING_TOLERANCE * abs(limit)


def snap_to_zero(values: Any, tolerance: float = ROUNDING_TOLERANCE) -> Any:
    """Replace values within `tolerance` of 0 by 0; return a float for a float, else an array.

    Use it on sums and differences of numbers of order 1, such as nats per token, exponents and logarithms:
    the tolerance is absolute.
    """
    snapped = np.where(np.abs(values) <= tolerance, 0.0, values)
    return snapped if snapped.ndim else float(snapped)


def opposite_signs(a: float, b: float) -> bool:
    """Return whether two numbers of order 1 have opposite signs; a number within rounding error of 0 has no sign."""
    return bool(snap_to_zero(a) * snap_to_zero(b) < 0)


def first_argmin(values: ArrayLike, tolerance: float = ROUNDING_TOLERANCE) -> int:
    """Return the index of the first value that equals the minimum up to a relative tolerance."""
    array = np.asarray(values, dtype=np.float64)
    minimum = array.min()
    return int(np.argmax(array <= minimum + tolerance * abs(minimum)))


def merge_close(values: ArrayLike, tolerance: float = ROUNDING_TOLERANCE) -> NDArray[np.float64]:
    """Replace every group of values that are equal up to a relative tolerance by the smallest of the group."""
    array = np.asarray(values, dtype=np.float64)
    order = np.argsort(array, kind="stable")
    ordered = array[order]
    is_new = ~(np.diff(ordered, prepend=-np.inf) <= tolerance * np.abs(ordered))
    result = np.empty_like(array)
    result[order] = ordered[is_new][np.cumsum(is_new) - 1]
    return result


def stable_argsort(values: ArrayLike, tolerance: float = ROUNDING_TOLERANCE) -> NDArray[np.int64]:
    """Return the indices that sort the values; values equal up to rounding keep their order."""
    return np.argsort(merge_close(values, tolerance), kind="stable")


def pseudoinverse(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the pseudoinverse of a column-scaled matrix; singular values at rounding level count as 0."""
    return np.asarray(np.linalg.pinv(matrix, rcond=ROUNDING_TOLERANCE), dtype=np.float64)


def condition_number(matrix: NDArray[np.float64]) -> float:
    """Return the condition number of a column-scaled matrix; inf if it is rank-deficient."""
    values = np.linalg.svd(matrix, compute_uv=False)
    return float(values[0] / values[-1]) if values[-1] > ROUNDING_TOLERANCE * values[0] else np.inf


def round_to_three_digits(value: float) -> float:
    """Round a positive number to three significant digits, halves up."""
    return float(f"{value * (1 + ROUNDING_TOLERANCE):.3g}")
