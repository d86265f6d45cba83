"""Detection of loss spikes by a rule that was fixed before the first run. Torch-free.

A logged training loss is a spike if it lies more than 3 robust standard deviations above the trend. The trend
is the median over a centered window of up to 25 logged losses on each side. The robust standard deviation is
1.4826 times the median absolute deviation from the trend over the whole run, so that spikes do not inflate
it. With normal noise, one loss in 740 exceeds the limit: a spike is a reason to inspect and repeat a run, not
an error.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from slm.rounding import snap_to_zero

NEIGHBOURS = 25
LIMIT = 3.0  # robust standard deviations
NORMAL_MAD = 1.4826  # standard deviation / median absolute deviation of a normal distribution


def loss_spikes(losses: Sequence[float]) -> list[int]:
    """Return the indices of the spikes; of consecutive ones only the first."""
    values = np.asarray(losses, dtype=np.float64)
    reach = [min(NEIGHBOURS, i, len(values) - 1 - i) for i in range(len(values))]
    trend = np.array([np.median(values[i - r : i + r + 1]) for i, r in enumerate(reach)])
    above = snap_to_zero(values - trend)
    inner = above[np.asarray(reach, dtype=int) > 0]  # the first and last loss equal their trend
    if not len(inner):
        return []
    high = above > LIMIT * NORMAL_MAD * np.median(np.abs(inner))
    return np.flatnonzero(high & ~np.concatenate([[False], high[:-1]])).tolist()
