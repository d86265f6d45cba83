"""Detection of loss spikes by a rule that was fixed before the first run. Torch-free.

A logged training loss is a spike if it lies more than 3 robust standard deviations above the trend. The trend
is the median over a centered window of up to 25 logged losses on each side. The robust standard deviation is
1.4826 times the median absolute deviation from the trend over the whole run, so that spikes do not inflate
it. Noise alone exceeds the limit too: normal noise in about 1 of 500 of 1000 logged losses and 1 of 130 of 100,
noise with heavier tails in 1 of 60. A spike is a reason to inspect a run, not an error. Reports name the runs
with more spikes than noise explains (`analysis.runs.result_table`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from slm.rounding import snap_to_zero

NEIGHBOURS = 25
LIMIT = 3.0  # robust standard deviations
NORMAL_MAD = 1.4826  # standard deviation / median absolute deviation of a normal distribution


def loss_spikes(losses: Sequence[float]) -> list[int]:
    """Return the indices of the spikes; of consecutive ones only the first."""
    values = np.asarray(losses, dtype=np.float64)
    if len(values) < 3:
        return []
    above = snap_to_zero(values - _trend(values))
    inner = above[1:-1]  # the first and last loss equal their trend
    high = above > LIMIT * NORMAL_MAD * np.median(np.abs(inner))
    return np.flatnonzero(high & ~np.concatenate([[False], high[:-1]])).tolist()


def _trend(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the median over a centered window at each loss; the window is narrower near both ends."""
    size = len(values)
    reach = [min(NEIGHBOURS, i, size - 1 - i) for i in range(size)]
    edges = [i for i in range(size) if reach[i] < NEIGHBOURS]
    trend = np.empty(size)
    trend[edges] = [np.median(values[i - reach[i] : i + reach[i] + 1]) for i in edges]
    if len(edges) < size:
        windows = np.lib.stride_tricks.sliding_window_view(values, 2 * NEIGHBOURS + 1)
        trend[NEIGHBOURS : size - NEIGHBOURS] = np.median(windows, axis=1)
    return trend
