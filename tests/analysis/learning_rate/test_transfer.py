"""Report of learning-rate sweeps with known optima."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from analysis.learning_rate.transfer import (
    common_rate,
    curves,
    loss_against_learning_rate,
    loss_grid,
    markdown,
    summaries,
)

pytestmark = pytest.mark.numeric

LEARNING_RATES = [1e-3 * 2**n for n in range(6)]
BEST = {  # (parametrization, n_layers, d_model) -> learning rate at the bottom of its parabola
    ("standard", 2, 64): 2e-3,
    ("standard", 16, 24): 1.6e-2,
    ("completep", 2, 64): 4.5e-3,
    ("completep", 16, 24): 4.5e-3,
    ("mup", 2, 64): 1e-4,  # below the grid
}


def runs() -> pd.DataFrame:
    """Runs whose losses are parabolas in ln lr with the optima in BEST."""
    columns = ["parametrization", "n_layers", "d_model", "peak_lr", "loss_nats_per_token"]
    rows = [
        (kind, layers, width, lr, 2 + 0.01 * math.log2(lr / best) ** 2)
        for (kind, layers, width), best in BEST.items()
        for lr in LEARNING_RATES
    ]
    return pd.DataFrame(rows, columns=columns).assign(seed=0)


def test_best_lr_is_the_vertex_or_the_edge_of_the_grid() -> None:
    found = {(c.parametrization, c.n_layers, c.d_model): c for c in curves(runs())}
    for key, best in BEST.items():
        if key[0] == "mup":
            assert not found[key].interior and found[key].best_lr == pytest.approx(1e-3)
        else:
            assert found[key].interior and found[key].best_lr == pytest.approx(best)
            assert found[key].best_loss == pytest.approx(2)


def test_summary_of_spread_and_regret() -> None:
    losses = loss_grid(runs(), "standard")
    # The optima are 3 doublings apart: two learning rates are 1 or 2 doublings from each; the lower is taken.
    assert common_rate(losses) == LEARNING_RATES[2]
    rounded = losses * (1 + 1e-13 * np.sign(np.arange(6) - 2.5))
    assert common_rate(rounded) == LEARNING_RATES[2]
    summary = {row["parametrization"]: row for row in summaries(curves(runs()))}
    assert list(summary) == ["standard", "mup", "completep"]
    assert summary["standard"]["spread_doublings"] == pytest.approx(3)
    assert summary["standard"]["worst_regret_nats"] == pytest.approx(0.04)
    assert summary["completep"]["spread_doublings"] == pytest.approx(0, abs=1e-6)
    assert summary["completep"]["worst_regret_nats"] == pytest.approx(0)
    assert summary["mup"]["all_interior"] is False


def test_common_rate_excludes_the_learning_rate_of_a_diverged_run() -> None:
    table = runs()
    table = table[~((table["peak_lr"] == LEARNING_RATES[2]) & (table["n_layers"] == 16))]
    assert common_rate(loss_grid(table, "standard")) == LEARNING_RATES[3]
    assert len(curves(table)) == len(BEST)
    figure = loss_against_learning_rate(table)
    assert len(figure.spec()["concat"]) == 3
    assert "edge of the grid" in markdown(curves(table), len(table), {"not finished (diverged)": 1})  # type: ignore[arg-type]


def test_regret_is_none_without_a_common_rate() -> None:
    table = runs()
    deep = table["n_layers"] == 16
    table = table[(deep & (table["peak_lr"] > 4e-3)) | (~deep & (table["peak_lr"] < 4e-3))]
    found = [curve for curve in curves(table) if curve.parametrization == "standard"]
    assert [curve.regret for curve in found] == [None, None]
    assert "| - |" in markdown(found, len(table), {})  # type: ignore[arg-type]
