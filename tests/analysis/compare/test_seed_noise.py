"""Noise between seeds: a hand-made table, recovery of a known ratio, and coverage of its interval."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from analysis.compare.seed_noise import seed_noise, seed_noise_ratio

ASPECTS = {"deep": 4.0, "middle": 11.0, "wide": 32.0}


def make_table(
    rng: np.random.Generator, sd: dict[str, float], seeds: int, sizes: int
) -> pd.DataFrame:
    rows = []
    for size in range(sizes):
        for family, aspect in ASPECTS.items():
            for seed in range(seeds):
                trunk = rng.normal(0, sd[family] * 2.0**-size)
                for tokens in (1e6, 3e6, 9e6):
                    rows.append(
                        {
                            "family": family, "rung": str(size), "shape": f"{family}{size}", "seed": seed,
                            "tokens": tokens, "n_flop": 1e4 * 3**size, "aspect_ratio": aspect,
                            "loss_nats_per_token": 2 - 0.1 * size + 1e5 / tokens + trunk,
                        }
                    )  # fmt: skip
    return pd.DataFrame(rows)


def test_hand_made_table() -> None:
    rows = [("deep", 0, 1.0), ("deep", 1, 1.2), ("wide", 0, 1.0), ("wide", 1, 1.1), ("one", 0, 5.0)]
    table = pd.DataFrame(
        {
            "family": f, "rung": "small", "shape": f, "seed": seed, "tokens": tokens, "n_flop": 100,
            "loss_nats_per_token": loss + tokens,
        }
        for f, seed, loss in rows for tokens in (1, 2)
    )  # fmt: skip
    deep, wide = seed_noise(table)  # the family with one seed is left out
    assert (deep.family, deep.df, deep.seeds) == ("deep", 1, 2)
    assert deep.sd == pytest.approx(0.2 / math.sqrt(2)) and wide.sd == pytest.approx(
        0.1 / math.sqrt(2)
    )
    assert deep.interval[0] < deep.sd < deep.interval[1]
    assert seed_noise_ratio([deep, wide], 1.0, 3.0) is None  # no aspect ratios


def test_seeds_without_a_common_budget_are_no_replicates() -> None:
    rows = [
        ("deep", 0, 1, 1.0),
        ("deep", 1, 2, 1.5),
        ("wide", 0, 1, 1.0),
        ("wide", 1, 1, 1.2),
        ("wide", 2, 2, 9.0),
    ]
    names = ("shape", "seed", "tokens", "loss_nats_per_token")
    table = pd.DataFrame([dict(zip(names, row, strict=True)) for row in rows])
    (wide,) = seed_noise(table.assign(family=table["shape"], rung="small", n_flop=100))
    assert (wide.family, wide.df) == ("wide", 1)
    assert wide.sd == pytest.approx(0.2 / math.sqrt(2))


def test_ratio_is_recovered_with_many_seeds() -> None:
    sd = {"deep": 0.02, "middle": math.sqrt(0.02 * 0.01), "wide": 0.01}
    table = make_table(np.random.default_rng(0), sd, seeds=400, sizes=2)
    aspects = {**ASPECTS, "middle": math.sqrt(4 * 32)}
    table["aspect_ratio"] = table["family"].map(aspects)
    found = seed_noise_ratio(seed_noise(table), math.log(4), math.log(32))
    assert found is not None and found.ratio == pytest.approx(2, rel=0.15)
    assert found.interval[0] < 2 < found.interval[1] and found.p < 1e-6


def test_equal_noise_is_rejected_at_the_nominal_rate() -> None:
    """100 tables of 3 seeds: the size of the test is 5%, within 4 Monte-Carlo standard errors."""
    rng = np.random.default_rng(1)
    rejected = 0
    for _ in range(100):
        rows = seed_noise(make_table(rng, dict.fromkeys(ASPECTS, 0.01), seeds=3, sizes=3))
        found = seed_noise_ratio(rows, math.log(4), math.log(32))
        assert found is not None
        rejected += found.p < 0.05
    assert abs(rejected / 100 - 0.05) < 4 * math.sqrt(0.05 * 0.95 / 100)
