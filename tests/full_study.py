"""Simulate the runs table of a full-size study with a known law, sigma and tau, as returned by `load_runs`.

python -m tests.full_study OUT writes the report of a study in which the advantage of depth grows with scale.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

ASPECTS = {"deep_thin": 24.0, "balanced": 64.0, "wide_shallow": 192.0}
LAW = {"E": 1.8172, "A": 482.01, "alpha": 0.3478, "B": 2085.43, "beta": 0.3658}
CENTRE = 5.62e7  # N at which families of different alpha have the same loss
BEST_ASPECT = 50.0


def full_study(
    *,
    alpha: Mapping[str, float] | None = None,
    level: Mapping[str, float] | None = None,
    families: Sequence[str] = tuple(ASPECTS),
    sizes: Sequence[float] = tuple(np.geomspace(1e7, 3.16e8, 8)),
    tokens_per_param: Sequence[float] = (8.0, 24.0, 72.0),
    anchor_seeds: int = 2,
    shape_cost: float = 0.01,
    sigma: float = 0.005,
    tau: float = 0.005,
    seed: int = 0,
) -> pd.DataFrame:
    """Return one row per run; losses in nats per token.

    Args:
        alpha: per family, alpha minus that of LAW.
        level: per family, ln(A / A of LAW) at N = CENTRE.
        shape_cost: relative cost of the size term per squared ln(aspect ratio / BEST_ASPECT).
        anchor_seeds: additional seeds at the smallest, middle and largest size.
        sigma, tau: seed standard deviation and random effect of a shape, in nats.
    """
    generator = np.random.default_rng(seed)
    anchors = {0, len(sizes) // 2, len(sizes) - 1}
    rows = []
    for family in families:
        exponent = LAW["alpha"] + (alpha or {}).get(family, 0.0)
        reducible = LAW["A"] * CENTRE ** -LAW["alpha"] * math.exp((level or {}).get(family, 0.0))
        for rung, size in enumerate(sizes):
            aspect = ASPECTS[family]
            layers = max(1, round((size / (12 * aspect**2)) ** (1 / 3)))
            width = 8 * round(math.sqrt(size / (12 * layers)) / 8)
            n = size * (1 + generator.uniform(-0.01, 0.01))
            shape_effect = generator.normal(0, tau)
            curve = 1 + shape_cost * math.log(aspect / BEST_ASPECT) ** 2
            for ratio in tokens_per_param:
                tokens = ratio * size
                predicted = LAW["E"] + curve * reducible * (n / CENTRE) ** -exponent
                predicted += LAW["B"] * tokens ** -LAW["beta"] + shape_effect
                for number in range(1 + (anchor_seeds if rung in anchors else 0)):
                    rows.append(
                        {
                            "run_id": f"{family}-L{layers}-d{width}-{ratio:g}x-s{number}",
                            "family": family, "rung": str(round(size)), "size": round(size),
                            "shape": f"L{layers}-d{width}", "n_layers": layers, "d_model": width,
                            "aspect_ratio": width / layers, "n_flop": n,
                            "params_non_embedding": 0.93 * n, "params_total": 0.98 * n,
                            "tokens": tokens, "tokens_per_param": ratio, "flops": 6 * n * tokens,
                            "seed": number, "tokens_per_second": 4e12 / (6 * n),
                            "loss_nats_per_token": predicted + generator.normal(0, sigma),
                        }
                    )  # fmt: skip
    return pd.DataFrame(rows)


def simulated_study() -> pd.DataFrame:
    """Return a study in which the advantage of depth grows with scale."""
    return full_study(alpha={"deep_thin": 0.02, "wide_shallow": -0.02}, seed=1)


if __name__ == "__main__":
    from analysis.report.write import report_on

    report_on(simulated_study(), Path(sys.argv[1]))
