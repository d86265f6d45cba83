"""Four published MobileLLM models: sizes, perplexities and speeds, measured by one author, and Kaplan's law at their sizes.

Perplexity is on the raw test set of WikiText-2 with a sliding window of 1024 tokens and stride 512. Speed (tokens/s)
and peak memory (MB) are those of a T4 in fp16. There is one family, one run per size, and the same number of
training tokens for all sizes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from analysis.fit.power_law import PowerLawFit, fit_power_law

VOCAB_SIZE = 32_000
KAPLAN_ALPHA, KAPLAN_N = 0.076, 8.8e13  # loss in nats = (KAPLAN_N / N)^KAPLAN_ALPHA (2001.08361)


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


def perplexity_steps(law: PowerLawFit) -> list[dict[str, str | float]]:
    """Return the perplexity saved by each step to the next size, beside the gain of a law that is smooth."""
    return [
        {
            "step": f"{small.name[10:]} to {large.name[10:]}",
            "PPL saved": small.perplexity - large.perplexity,
            "PPL per 100M": gain,
            "PPL per 100M, fitted law": 100e6
            * (law.predict(small.params_total)[0] - law.predict(large.params_total)[0])
            / (large.params_total - small.params_total),
        }
        for (small, large), gain in zip(pairwise(MODELS), gain_per_100m(), strict=True)
    ]


def kaplan_as_perplexity() -> PowerLawFit:
    """Fit a power law to the perplexities that Kaplan's law predicts at the four sizes."""
    body = [model.params_non_embedding for model in MODELS]
    perplexity = [math.exp((KAPLAN_N / n) ** KAPLAN_ALPHA) for n in body]
    return fit_power_law(body, perplexity, unit="perplexity")
