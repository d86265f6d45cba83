"""Four published MobileLLM models: sizes, perplexities and speeds, measured by one author.

Perplexity is on the raw test set of WikiText-2 with a sliding window of 1024 tokens and stride 512. Speed (tokens/s)
and peak memory (MB) are those of a T4 in fp16. There is one family, one run per size, and the same number of
training tokens for all sizes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

VOCAB_SIZE = 32_000


@dataclass(frozen=True)
class Model:
    """Published measurements of one model."""

    name: str
    params_total: int
    params_non_embedding: int
    perplexity: float
    tokens_per_second: float
    peak_memory_mb: float

    @property
    def loss(self) -> float:
        """Return the loss in nats per token."""
        return math.log(self.perplexity)


MODELS = (
    Model("MobileLLM-125M", 124_635_456, 106_203_456, 11.961319, 23.715576, 701.737984),
    Model("MobileLLM-350M", 345_355_200, 314_635_200, 8.976614, 21.692929, 1181.82144),
    Model("MobileLLM-600M", 603_188_352, 566_324_352, 7.984185, 17.527269, 1739.324416),
    Model("MobileLLM-1B", 1_005_461_760, 964_501_760, 7.171037, 13.30935, 2559.193088),
)


def gain_per_100m() -> list[float]:
    """Return the decrease of perplexity per 100M added parameters, for each step to the next size."""
    return [
        (small.perplexity - large.perplexity) / (large.params_total - small.params_total) * 1e8
        for small, large in pairwise(MODELS)
    ]
