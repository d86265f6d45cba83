"""Learning-rate curves with known optima."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from analysis.learning_rate.transfer import (
    common_rate,
    curves,
    draw,
    loss_grid,
    markdown,
    summaries,
)

RATES = [1e-3 * 2**n for n in range(6)]
BEST = {  # (parametrization, n_layers, d_model) -> learning rate at the bottom of its parabola
    ("standard", 2, 64): 2e-3,
    ("standard", 16, 24): 1.6e-2,
    ("completep", 2, 64): 4.5e-3,
    ("completep", 16, 24): 4.5e-3,
    ("mup", 2, 64): 1e-4,  # below the grid
}


def runs() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "parametrization": kind, "n_layers": layers, "d_model": width, "peak_lr": rate, "seed": 0,
            "loss_nats_per_token": 2 + 0.01 * math.log2(rate / best) ** 2,
        }
        for (kind, layers, width), best in BEST.items()
        for rate in RATES
    )  # fmt: skip


def test_the_vertex_is_found_and_an_edge_is_told() -> None:
    found = {(c.parametrization, c.n_layers, c.d_model): c for c in curves(runs())}
    for key, best in BEST.items():
        if key[0] == "mup":
            assert not found[key].interior and found[key].best_lr == pytest.approx(1e-3)
        else:
            assert found[key].interior and found[key].best_lr == pytest.approx(best)
            assert found[key].best_loss == pytest.approx(2)


def test_one_rate_for_all_costs_what_it_costs() -> None:
    losses = loss_grid(runs(), "standard")
    # Optima 3 doublings apart: two rates between them are 1 or 2 doublings off each, and the lower is taken.
    assert common_rate(losses) == RATES[2]
    assert common_rate(losses * (1 + 1e-13 * np.sign(np.arange(6) - 2.5))) == RATES[2]
    told = {row["parametrization"]: row for row in summaries(curves(runs()))}
    assert list(told) == ["standard", "mup", "completep"]
    assert told["standard"]["spread_doublings"] == pytest.approx(3)
    assert told["standard"]["worst_regret_nats"] == pytest.approx(0.04)
    assert told["completep"]["spread_doublings"] == pytest.approx(0, abs=1e-6)
    assert told["completep"]["worst_regret_nats"] == pytest.approx(0)
    assert told["mup"]["all_interior"] is False


def test_a_diverged_run_leaves_a_gap_and_no_common_rate_there() -> None:
    table = runs()
    table = table[~((table["peak_lr"] == RATES[2]) & (table["n_layers"] == 16))]
    assert common_rate(loss_grid(table, "standard")) == RATES[3]
    assert len(curves(table)) == len(BEST)
    draw(table)
    assert "grid's edge" in markdown(curves(table), len(table), {"not finished (diverged)": 1})  # type: ignore[arg-type]


def test_without_a_common_rate_there_is_no_regret() -> None:
    table = runs()
    deep = table["n_layers"] == 16
    table = table[(deep & (table["peak_lr"] > 4e-3)) | (~deep & (table["peak_lr"] < 4e-3))]
    found = [curve for curve in curves(table) if curve.parametrization == "standard"]
    assert [curve.regret for curve in found] == [None, None]
    assert "| - |" in markdown(found, len(table), {})  # type: ignore[arg-type]
