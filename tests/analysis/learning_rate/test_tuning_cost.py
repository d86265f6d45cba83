"""Penalty of the learning rates of a study, interpolated between the cells of an audit."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from analysis.learning_rate.tuning_cost import tuning_costs
from slm.errors import DataError

pytestmark = pytest.mark.numeric

RATES = (5e-4, 1e-3, 2e-3, 4e-3)
ASPECTS, SIZES, BUDGETS = {"deep": 4.0, "wide": 32.0}, (1e4, 1e5), (8.0, 72.0)


def penalty(aspect: float, n: float, budget: float) -> float:
    """A cost that is linear in each of the logarithms, with their products."""
    return 2e-4 * (1 + math.log(aspect)) * math.log10(n) * (1 + math.log(budget / 8))


@pytest.fixture
def audit() -> pd.DataFrame:
    rows = []
    for family, aspect in ASPECTS.items():
        for n in SIZES:
            for budget in BUDGETS:
                # The study's rate of 2e-3 lies at a distance from the best one that costs `penalty`.
                best = 2e-3 / math.exp(math.sqrt(penalty(aspect, n, budget) / 0.05))
                rows += [
                    {
                        "family": family,
                        "shape": f"{family}-{n:g}",
                        "rung": f"{n:g}",
                        "n_flop": n,
                        "tokens": n * budget,
                        "tokens_per_param": budget,
                        "aspect_ratio": aspect,
                        "used_lr": 2e-3,
                        "peak_lr": lr,
                        "loss_nats_per_token": 2 + 0.05 * math.log(lr / best) ** 2,
                    }
                    for lr in RATES
                ]
    return pd.DataFrame(rows)


def runs(*points: tuple[float, float, float]) -> pd.DataFrame:
    return pd.DataFrame(points, columns=["aspect_ratio", "n_flop", "tokens_per_param"])


def test_costs_are_those_of_the_audit_and_linear_between_its_cells(audit: pd.DataFrame) -> None:
    points = [(4.0, 1e4, 8.0), (32.0, 1e5, 72.0), (11.0, 3e4, 24.0)]
    costs = tuning_costs(runs(*points), audit.sample(frac=1, random_state=0))
    assert costs == pytest.approx([penalty(*point) for point in points], rel=1e-6)


def test_outside_the_audit_the_nearest_cell_counts(audit: pd.DataFrame) -> None:
    costs = tuning_costs(runs((2.0, 1e3, 1.0), (64.0, 1e6, 200.0)), audit)
    assert costs == pytest.approx([penalty(4, 1e4, 8), penalty(32, 1e5, 72)], rel=1e-6)


def test_incomplete_audits_are_errors(audit: pd.DataFrame) -> None:
    missing = audit[(audit["family"] == "deep") | (audit["tokens_per_param"] == 8)]
    with pytest.raises(DataError, match="lacks cells"):
        tuning_costs(runs((4.0, 1e4, 8.0)), missing)
    at_edge = audit.assign(loss_nats_per_token=np.log(audit["peak_lr"]))
    with pytest.raises(DataError, match="edge of the grid"):
        tuning_costs(runs((4.0, 1e4, 8.0)), at_edge)
