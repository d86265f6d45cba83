"""Precision of the joint law M2 of known designs, and checks of a design."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.design.linear import Design, Law, joint_law_error, seed_noise
from slm.errors import DataError
from tests.analysis.designs import TOKENS_PER_PARAM, make_design

pytestmark = pytest.mark.numeric
CONTRAST = ("deep", "wide")


@pytest.mark.parametrize(
    ("counts", "budgets", "noise", "expected"),
    [
        ((4, 1), TOKENS_PER_PARAM, (0.005, 0), 0.0017),
        ((4, 1), TOKENS_PER_PARAM, (0.01, 0), 0.0035),
        ((4, 1), TOKENS_PER_PARAM, (0.02, 0), 0.0069),
        ((6, 1), TOKENS_PER_PARAM, (0.005, 0), 0.0015),
        ((6, 1), TOKENS_PER_PARAM, (0.01, 0), 0.0030),
        ((6, 1), TOKENS_PER_PARAM, (0.02, 0), 0.0060),
        ((6, 3), TOKENS_PER_PARAM, (0.005, 0), 0.0009),
        ((6, 3), TOKENS_PER_PARAM, (0.01, 0), 0.0017),
        ((6, 3), TOKENS_PER_PARAM, (0.02, 0), 0.0035),
        ((6, 1), TOKENS_PER_PARAM, (0.005, 0.01), 0.0055),
        ((8, 3), (5.0, 10.0, 20.0, 80.0), (0.005, 0.01), 0.0048),
    ],
)
def test_standard_errors_of_known_designs(
    counts: tuple[int, int],
    budgets: tuple[float, ...],
    noise: tuple[float, float],
    expected: float,
) -> None:
    design = make_design(*counts, budgets)
    sigma, tau = noise
    error = joint_law_error(design, CONTRAST, Law(), np.full(len(design), sigma), tau)
    assert error == pytest.approx(expected, rel=0.05)


def test_singular_designs_have_no_standard_error() -> None:
    for design in (make_design(4, 1, (20.0,)), make_design(6, 1, TOKENS_PER_PARAM, ("deep",))):
        noise = np.full(len(design), 0.005)
        assert joint_law_error(design, CONTRAST, Law(), noise, 0.01) is None


def test_seed_noise_grows_with_the_loss() -> None:
    assert seed_noise(np.array([3.0, 4.5, 7.0])).tolist() == [0.005, 0.01, 0.02]


def test_impossible_designs_are_errors() -> None:
    with pytest.raises(DataError, match="n_flop=-1"):
        Design(["a"], [0], ["s"], [-1.0], [1.0], [0], [1.0], [1.0])
    with pytest.raises(DataError, match="one entry per run"):
        Design(["a"], [0, 1], ["s"], [1.0], [1.0], [0], [1.0], [1.0])
