"""Minimum of a fitted parabola, and data without one."""

from __future__ import annotations

import math

import numpy as np
import pytest

from slm.parabola import minimum_on_grid, parabola_minimum
from slm.rounding import first_argmin

pytestmark = pytest.mark.numeric

RATES = [math.log(1e-3 * 2**n) for n in range(6)]


def test_parabola_through_three_points_is_exact() -> None:
    x = [-7.1, -6.4, -5.9]
    found = parabola_minimum(x, [2 + 0.05 / 2 * (value + 6.3) ** 2 for value in x])
    assert found is not None
    assert (found.x, found.y, found.curvature) == pytest.approx((-6.3, 2, 0.05), rel=1e-10)
    assert found.cost(0.4) == pytest.approx(0.05 / 2 * 0.16)
    assert found.cost_of_two == pytest.approx(0.05 / 2 * math.log(2) ** 2)


@pytest.mark.parametrize("offset", [0.0, 40.0])
def test_more_points_match_numpy_polyfit(offset: float) -> None:
    generator = np.random.default_rng(0)
    x = offset + generator.uniform(-1, 1, 9)
    y = 3 + 0.2 * (x - offset - 0.3) ** 2 + generator.normal(0, 0.01, 9)
    a, b, c = np.polyfit(x - offset, y, 2)
    found = parabola_minimum(x, y)
    assert found is not None
    assert found.x == pytest.approx(offset - b / (2 * a), rel=1e-10)
    assert found.y == pytest.approx(c - b**2 / (4 * a), rel=1e-10)
    assert found.curvature == pytest.approx(2 * a, rel=1e-9)
    order = generator.permutation(9)
    assert parabola_minimum(x[order], y[order]) == found


@pytest.mark.parametrize(
    ("x", "y"),
    [
        ([0, 1, 2], [1.0, 1.0, 1.0]),
        ([0, 1, 2], [1.0, 2.0, 3.0]),
        ([0, 1, 2], [3.3, 3.3 + 4e-16, 3.3]),
        ([0.1, 0.2, 0.3], [1.1, 1.2, 1.3]),
        ([0, 1, 2], [1.0, 2.0, 1.0]),
        ([0, 1, 2], [2.0, 1.0, math.inf]),
        ([0, 1, 2], [2.0, 1.0, math.nan]),
        ([0, 0, 1, 1], [2.0, 2.1, 1.0, 1.1]),
        ([0, 1e-15, 1, 1], [2.0, 2.1, 1.0, 1.1]),
        ([0, 1], [2.0, 1.0]),
    ],
    ids=str,
)
def test_straight_concave_and_invalid_data_have_no_minimum(x: list[float], y: list[float]) -> None:
    assert parabola_minimum(x, y) is None


def test_first_argmin_ignores_rounding_and_takes_the_first_tie() -> None:
    assert first_argmin([3.0, 2.0, 2.0, 4.0]) == first_argmin([3.0, 2.0 + 4e-16, 2.0, 4.0]) == 1
    assert first_argmin([3.0, 2.0 + 1e-8, 2.0, 4.0]) == 2
    assert first_argmin([math.inf, math.inf, 5.0]) == 2 and first_argmin([math.inf, math.inf]) == 0


@pytest.mark.parametrize("rounding", [0.0, 4e-16, -4e-16])
def test_rounding_does_not_change_the_minimum_on_a_grid(rounding: float) -> None:
    tied = minimum_on_grid(RATES, [2.4, 2.2, 2.1, 2.1 + rounding, 2.2, 2.4])
    assert tied is not None and tied.x == pytest.approx((RATES[2] + RATES[3]) / 2, rel=1e-12)
    assert (
        minimum_on_grid(RATES[:3], [2.1, 2.1 + rounding, 2.2]) is None
    )  # the optimum may lie below the grid
    assert minimum_on_grid(RATES[:3], [2.1, 2.1 + rounding, 2.1]) is None


def test_minimum_on_a_grid_needs_both_neighbours_of_the_lowest_point() -> None:
    assert minimum_on_grid(RATES, [1, 2, 3, 4, 5, 6]) is None
    assert minimum_on_grid(RATES, [6, 5, 4, 3, 2, 1]) is None
    assert minimum_on_grid(RATES[:3], [2.0, 1.0, math.inf]) is None
    assert minimum_on_grid(RATES[:1], [2.0]) is None
