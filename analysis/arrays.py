"""Array types used by the analysis, and labels as integers."""

from __future__ import annotations

from collections.abc import Hashable, Iterable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]


def codes(labels: Iterable[Hashable]) -> Ints:
    """Return labels of any type as integers 0, 1, 2, ... in order of first appearance."""
    code: dict[Hashable, int] = {}
    return np.array([code.setdefault(label, len(code)) for label in labels], dtype=np.int64)
