"""Model FLOPs utilization (MFU) that training is assumed to reach, by number of parameters. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Mapping

NEAR = 1.25  # factor by which a size may lie outside a table without a warning
Mfu = float | Mapping[int, float]
"""One number for all sizes, or numbers by total parameters."""


def mfu_at(mfu: Mfu, params: int) -> float:
    """Return the MFU at a number of parameters: interpolated in ln(params), constant outside the table."""
    if not isinstance(mfu, Mapping):
        return mfu
    sizes = sorted(mfu)
    if not sizes[0] < params < sizes[-1]:
        return mfu[sizes[0] if params <= sizes[0] else sizes[-1]]
    above = next(size for size in sizes if size >= params)
    below = max(size for size in sizes if size < above)
    fraction = math.log(params / below) / math.log(above / below)
    return mfu[below] + fraction * (mfu[above] - mfu[below])


def is_far_outside(mfu: Mfu, params: int) -> bool:
    """Return whether a number of parameters is more than a quarter below or above all entries of a table."""
    if not isinstance(mfu, Mapping):
        return False
    return not min(mfu) / NEAR <= params <= max(mfu) * NEAR
