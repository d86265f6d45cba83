"""Loss spikes, by a rule that is fixed before any run is seen. Torch-free.

A logged training loss is a spike if it lies more than 3 robust standard deviations above the trend.
The trend is the median of the logged losses around it, as many before as after, up to 25 each; the
deviation is 1.4826 times the median distance from it over the run, so that spikes do not widen it. Of
normal noise one loss in 740 lies so far out: a spike is a reason to look and to run again, not an error.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from slm.rounding import settled

NEIGHBOURS = 25
LIMIT = 3.0
NORMAL_MAD = 1.4826  # standard deviations of a normal law per median absolute deviation


def loss_spikes(losses: Sequence[float]) -> list[int]:
    """Indices of the losses that are spikes; of neighbouring ones the first."""
    values = np.asarray(losses, dtype=np.float64)
    reach = [min(NEIGHBOURS, i, len(values) - 1 - i) for i in range(len(values))]
    trend = np.array([np.median(values[i - r : i + r + 1]) for i, r in enumerate(reach)])
    above = settled(values - trend)
    inner = above[np.asarray(reach, dtype=int) > 0]  # the first and the last are their own trend
    if not len(inner):
        return []
    high = above > LIMIT * NORMAL_MAD * np.median(np.abs(inner))
    return np.flatnonzero(high & ~np.concatenate([[False], high[:-1]])).tolist()
