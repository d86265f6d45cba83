"""Losses of studies with a known law, for tests of the block model."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

E, A, B, ALPHA, BETA = 1.8172, 482.01, 2085.43, 0.3478, 0.3658
CENTRE = 5.62e7  # N at which a difference of exponents alone does not change the loss


def loss_at(
    n: float, tokens: float, side: float, level: float = 0.0, d_alpha: float = 0.0
) -> float:
    """Return the loss of a shape; `side` is +1/2 for deep, -1/2 for wide, in between for others."""
    alpha = ALPHA + d_alpha * side
    return (
        E + A * CENTRE**-ALPHA * math.exp(level * side) * (n / CENTRE) ** -alpha + B * tokens**-BETA
    )


def study(
    rungs: int = 6,
    aspects: Sequence[float] = (24, 192),
    *,
    level: float = 0.0,
    d_alpha: float = 0.0,
    tau: float = 0.0,
    sigma: float = 0.0,
    seeds: int = 1,
    budgets: Sequence[float] = (8, 24, 72),
    seed: int = 0,
) -> pd.DataFrame:
    """Return a study with families deep, wide and others by aspect ratio; `level` = ln(A_deep / A_wide)."""
    generator = np.random.default_rng(seed)
    ends = math.log(aspects[0]), math.log(aspects[-1])
    rows = []
    for rung, size in enumerate(np.geomspace(1e7, 3.16e8, rungs)):
        for aspect in aspects:
            name = {aspects[0]: "deep", aspects[-1]: "wide"}.get(aspect, f"aspect_{aspect:g}")
            n = size * (1 + generator.uniform(-0.01, 0.01))
            misfit = generator.normal(0, tau) if tau else 0.0
            side = (ends[1] - math.log(aspect)) / (ends[1] - ends[0]) - 0.5
            for one_seed in range(seeds):
                for budget in budgets:
                    tokens = budget * size
                    noise = generator.normal(0, sigma) if sigma else 0.0
                    rows.append(
                        {
                            "family": name,
                            "shape": f"{name}-{rung}",
                            "rung": rung,
                            "seed": one_seed,
                            "aspect_ratio": float(aspect),
                            "n_flop": n,
                            "tokens": tokens,
                            "flops": 6 * n * tokens,
                            "loss_nats_per_token": loss_at(n, tokens, side, level, d_alpha)
                            + misfit
                            + noise,
                        }
                    )
    return pd.DataFrame(rows)
