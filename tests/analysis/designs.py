"""Designs for tests: families of constant aspect ratio at equal FLOPs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from analysis.design.linear import Design

TOKENS_PER_PARAM = (5.0, 20.0, 80.0)
ASPECTS: Mapping[str, float] = {"deep": 24.0, "balanced": 64.0, "wide": 192.0}


def make_design(
    sizes: int,
    seeds: int = 1,
    tokens_per_param: Sequence[float] = TOKENS_PER_PARAM,
    families: Sequence[str] = ("deep", "wide"),
    *,
    low: float = 10e6,
    high: float = 316e6,
) -> Design:
    rows = [
        (family, rung, f"{family}{rung}", n, m * n, seed, 6 * n * m * n, m, ASPECTS[family])
        for family in families
        for rung, n in enumerate(np.geomspace(low, high, sizes).tolist())
        for m in tokens_per_param
        for seed in range(seeds)
    ]
    return Design(*map(list, zip(*rows, strict=True)))
