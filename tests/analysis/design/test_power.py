"""Power of designs: known standard errors, agreement with simulation, refusals, next runs."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Sequence

import numpy as np
import pytest
from analysis.design.extensions import candidates
from analysis.design.power import design_power, most_valuable_next, t_power
from scipy import stats

from analysis.design.linear import Design, Law, seed_noise
from slm.errors import DataError
from tests.conftest import ROOT

pytestmark = pytest.mark.numeric

TOKENS_PER_PARAM = (5.0, 20.0, 80.0)


def make_design(
    sizes: int,
    seeds: int,
    tokens_per_param: Sequence[float],
    families: Sequence[str] = ("deep", "wide"),
    *,
    low: float = 10e6,
    high: float = 316e6,
) -> Design:
    rows = [
        (family, rung, f"{family}{rung}", n, m * n, seed, 6 * n * m * n, m)
        for family in families
        for rung, n in enumerate(np.geomspace(low, high, sizes))
        for m in tokens_per_param
        for seed in range(seeds)
    ]
    return Design(*map(list, zip(*rows, strict=True)))


@pytest.mark.parametrize(
    ("counts", "tokens_per_param", "sigma", "tau", "expected"),
    [
        ((4, 1), TOKENS_PER_PARAM, 0.005, 0, 0.0017),
        ((4, 1), TOKENS_PER_PARAM, 0.01, 0, 0.0035),
        ((4, 1), TOKENS_PER_PARAM, 0.02, 0, 0.0069),
        ((6, 1), TOKENS_PER_PARAM, 0.005, 0, 0.0015),
        ((6, 1), TOKENS_PER_PARAM, 0.01, 0, 0.0030),
        ((6, 1), TOKENS_PER_PARAM, 0.02, 0, 0.0060),
        ((6, 3), TOKENS_PER_PARAM, 0.005, 0, 0.0009),
        ((6, 3), TOKENS_PER_PARAM, 0.01, 0, 0.0017),
        ((6, 3), TOKENS_PER_PARAM, 0.02, 0, 0.0035),
        ((6, 1), TOKENS_PER_PARAM, 0.005, 0.01, 0.0055),
        ((8, 3), (5.0, 10.0, 20.0, 80.0), 0.005, 0.01, 0.0048),
    ],
)
def test_standard_errors_of_known_designs(
    counts: tuple[int, int],
    tokens_per_param: tuple[float, ...],
    sigma: float,
    tau: float,
    expected: float,
) -> None:
    sizes, seeds = counts
    design = make_design(sizes, seeds, tokens_per_param)
    power = design_power(design, "deep", "wide", sigma=sigma, tau=tau, simulations=0)
    assert not power.refusals
    assert power.se_exponent == pytest.approx(expected, rel=0.05)
    shapes = 2 * sizes
    assert power.df == (len(design) - 7 if tau == 0 else shapes - 5)
    quantiles = stats.t.ppf(0.975, power.df) + stats.t.ppf(0.8, power.df)
    assert power.mde80_exponent == pytest.approx(quantiles * power.se_exponent)


def test_exponents_are_refused_with_one_token_budget_at_any_number_of_seeds() -> None:
    for seeds in (1, 10):
        power = design_power(make_design(4, seeds, (20.0,)), "deep", "wide")
        assert "single token budget" in power.refusals[0]
        assert power.se_exponent is None and power.power_t is None and power.power_verdict is None
        assert (
            power.se_difference is not None
        )  # the loss difference at matched FLOPs is still estimated


def test_each_refusal_names_the_runs_to_add() -> None:
    three = design_power(make_design(3, 1, TOKENS_PER_PARAM), "deep", "wide")
    assert "3 sizes, at least 4 are needed; run 1 more" in three.refusals[0]
    alone = design_power(make_design(6, 1, TOKENS_PER_PARAM, ("deep",)), "deep", "wide")
    assert "one family, deep" in alone.refusals[0] and alone.se_difference is None
    narrow = make_design(6, 1, (20.0, 21.0, 22.0))
    assert (
        "correlation of ln N and ln D is 0.99" in design_power(narrow, "deep", "wide").refusals[0]
    )
    small, large = (
        make_design(6, 1, TOKENS_PER_PARAM, ("deep",)),
        make_design(6, 1, TOKENS_PER_PARAM, ("wide",), low=1e9, high=9e9),
    )
    assert "overlap" in design_power(joined(small, large), "deep", "wide").refusals[0]
    with pytest.raises(DataError, match="n_flop=-1"):
        design_power(Design(["a"], [0], ["s"], [-1.0], [1.0], [0], [1.0], [1.0]), "a", "b")
    with pytest.raises(DataError, match="one entry per run"):
        Design(["a"], [0, 1], ["s"], [1.0], [1.0], [0], [1.0], [1.0])
    with pytest.raises(DataError, match="sigma=0"):
        design_power(narrow, "deep", "wide", sigma=0)


def test_warnings_of_a_weak_design() -> None:
    power = design_power(make_design(5, 1, (5.0, 20.0), low=1e6, high=5e6), "deep", "wide")
    warnings = "\n".join(power.warnings)
    for expected in ("0.062", "0.699 decades", "2 per size", "one seed"):
        assert expected in warnings
    tiny = design_power(make_design(6, 2, TOKENS_PER_PARAM, low=1e3, high=1e5), "deep", "wide")
    assert any("far outside" in warning for warning in tiny.warnings)
    json.dumps(tiny.to_dict())


def test_t_power_agrees_with_scipy_and_is_finite_for_large_effects() -> None:
    for df in (3, 7, 29):
        critical = stats.t.ppf(0.975, df)
        for size in (0.0, 1.0, 3.0, 7.0):
            exact = stats.nct.sf(critical, df, size) + stats.nct.cdf(-critical, df, size)
            assert t_power(-size, df) == pytest.approx(exact, abs=1e-9)
    assert t_power(0, 7) == pytest.approx(0.05)
    # Where scipy's noncentral t is undefined, as at 9.5 with 3 degrees of freedom, and beyond.
    assert t_power(9.5, 3) == pytest.approx(t_power(9.5 * (1 + 1e-9), 3), abs=1e-9)
    assert t_power(9.4, 3) < t_power(9.5, 3) < t_power(9.6, 3) < 1 - 1e-6
    assert t_power(1e6, 7) == pytest.approx(1.0) and t_power(40, 101) == pytest.approx(1.0)
    assert t_power(2.0, 5000) == pytest.approx(stats.norm.cdf(2.0 - 1.96), abs=1e-3)


def test_t_power_matches_the_rejection_rate_of_simulated_studies() -> None:
    """2000 studies of 36 runs with seed noise only, tested by weighted least squares."""
    design, sigma, effect, law = make_design(6, 1, TOKENS_PER_PARAM), 0.01, 0.008, Law()
    n, tokens = np.array(design.n_flop), np.array(design.tokens)
    deep = np.array(design.family) == "deep"
    terms = law.terms(n, tokens)
    loss, share = terms.sum(axis=1), terms / terms.sum(axis=1, keepdims=True)
    x, z = np.log(n), np.log(tokens)
    a = share[:, 1]
    jacobian = np.stack(
        [
            share[:, 0],
            a * deep,
            a * ~deep,
            share[:, 2],
            -a * x * deep,
            -a * x * ~deep,
            -share[:, 2] * z,
        ],
        1,
    )
    whitened = jacobian * (loss / sigma)[:, None]
    inverse = np.linalg.pinv(whitened)
    mean = whitened[:, 4] * effect
    y = mean[:, None] + np.random.default_rng(0).normal(size=(len(n), 2000))
    theta = inverse @ y
    variance = ((y - whitened @ theta) ** 2).sum(axis=0) / (len(n) - 7)
    contrast = inverse[4] - inverse[5]
    t = (theta[4] - theta[5]) / np.sqrt(variance * (contrast @ contrast))
    rejected = float((np.abs(t) > stats.t.ppf(0.975, len(n) - 7)).mean())
    power = design_power(
        design, "deep", "wide", sigma=sigma, tau=0, effects=[effect], simulations=0
    )
    assert power.power_t is not None
    assert rejected == pytest.approx(power.power_t[effect], abs=0.035)  # 3 sd of 2000 studies


def test_the_verdict_has_less_power_than_the_t_test() -> None:
    five = design_power(make_design(5, 3, TOKENS_PER_PARAM), "deep", "wide").power_verdict
    assert five is not None and set(five.values()) == {
        0.0
    }  # the smallest permutation p is 2/32 > .05
    eight = design_power(
        make_design(8, 1, TOKENS_PER_PARAM), "deep", "wide", effects=(0.0, 0.01, 0.05)
    )
    assert eight.power_verdict is not None and eight.power_t is not None
    assert eight.power_verdict[0.0] <= 0.05 + 0.033  # 3 sd of 400 studies
    assert eight.power_verdict[0.01] < eight.power_t[0.01]
    assert eight.power_verdict[0.05] > 0.95


def test_se_of_the_loss_difference_is_that_of_a_regression_at_the_largest_flops() -> None:
    sizes, seeds, sigma, tau = 8, 2, 0.01, 0.02
    power = design_power(
        make_design(sizes, seeds, TOKENS_PER_PARAM), "deep", "wide", sigma=sigma, tau=tau
    )
    x = np.linspace(0, 1, sizes)
    leverage = 1 / sizes + (1 - x.mean()) ** 2 / ((x - x.mean()) ** 2).sum()
    expected = math.sqrt(leverage * (2 * tau**2 + 2 * sigma**2 / seeds))
    assert power.se_difference == pytest.approx(expected)
    assert (power.difference_pairs, power.difference_tokens_per_param) == (sizes, 80.0)
    quantiles = stats.t.ppf(0.975, sizes - 2) + stats.t.ppf(0.8, sizes - 2)
    assert power.mde80_difference == pytest.approx(quantiles * expected)


def joined(*designs: Design) -> Design:
    return Design(
        **{key: [x for one in designs for x in getattr(one, key)] for key in vars(designs[0])}
    )


def test_a_third_family_adds_two_parameters_and_never_raises_the_standard_error() -> None:
    deep, mid, wide = (
        make_design(6, 1, TOKENS_PER_PARAM, (name,)) for name in ("deep", "mid", "wide")
    )
    larger = make_design(6, 1, TOKENS_PER_PARAM, ("wide",), low=14e6, high=440e6)
    # A third family informs E, B and beta, which matter where the two families have different sizes.
    for other, gain in ((wide, 0.0), (larger, 0.01)):
        two, three = (
            design_power(design, "deep", "wide", simulations=0)
            for design in (joined(deep, other), joined(deep, mid, other))
        )
        assert two.se_exponent is not None and three.se_exponent is not None
        assert three.se_exponent <= (1 - gain) * two.se_exponent * (1 + 1e-9)
        assert two.se_exponent < 1.1 * three.se_exponent
        assert (two.df, three.df) == (12 - 5, 18 - 7)


def test_predicted_standard_error_of_next_runs_matches_the_extended_design() -> None:
    design = make_design(6, 1, TOKENS_PER_PARAM)
    single = make_design(8, 1, TOKENS_PER_PARAM)
    ranked = most_valuable_next(design, single, "deep", "wide", sigma=0.01, count=3)
    assert len(ranked) == 3 and len({run.index for run in ranked}) == 3
    added = [run.index for run in ranked]
    joined = Design(
        **{
            key: [*getattr(design, key), *(getattr(single, key)[i] for i in added)]
            for key in vars(design)
        }
    )
    after = design_power(joined, "deep", "wide", sigma=0.01, simulations=0)
    assert after.se_exponent == pytest.approx(ranked[-1].se_exponent, rel=1e-3)
    # Candidates are ranked even if the design alone is singular.
    assert most_valuable_next(make_design(4, 1, (20.0,)), single, "deep", "wide", count=1)


def test_seed_noise_grows_with_the_loss() -> None:
    assert seed_noise(np.array([3.0, 4.5, 7.0])).tolist() == [0.005, 0.01, 0.02]


def test_design_power_imports_neither_pandas_nor_scipy_stats() -> None:
    code = (
        "import sys\n"
        "from analysis.design.power import Design, design_power\n"
        "rows = [(f, r, f'{f}{r}', 2.0**r * 1e7, m * 2.0**r * 1e7, s, 6e14 * m * 4.0**r, m)"
        " for f in ('deep', 'wide') for r in range(5) for m in (5, 20, 80) for s in range(3)]\n"
        "design_power(Design(*map(list, zip(*rows))), 'deep', 'wide')\n"
        "assert not {'pandas', 'scipy.stats'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_candidates_are_missing_cells_further_seeds_budgets_and_sizes() -> None:
    """Budgets are labelled by rank, as in a study with fixed token counts; one cell of `wide` is missing."""
    cells = [
        (family, rung, f"{family}{rung}", n, tokens, 0, 6 * n * tokens, rank)
        for family, off in (("deep", 1.0), ("wide", 1.02))
        for rung, n in ((100, 1e6 * off), (200, 4e6 * off))
        for rank, tokens in ((1.0, 2e7), (2.0, 6e7))
        if (family, rung, rank) != ("wide", 200, 2.0)
    ]
    found = candidates(Design(*map(list, zip(*cells, strict=True))), "deep", "wide")
    rows = {
        (family, rung, rank): (seed, tokens)
        for family, rung, rank, seed, tokens in zip(
            found.family, found.rung, found.tokens_per_param, found.seed, found.tokens, strict=True
        )
    }
    assert len(rows) == len(found) == 2 * (2 * 3 + 2 * 2)
    assert rows["deep", 200, 2.0] == (1, 6e7) and rows["wide", 200, 2.0] == (0, 6e7)
    assert rows["wide", 200, 6.0] == (0, 18e7)
    assert rows["deep", "between 100 and 200", 1.0][0] == 0
    assert rows["deep", "larger than 200", 2.0] == (0, pytest.approx(6e7 * 16e6 / 4e6))
    assert found.flops == pytest.approx(
        [6 * n * tokens for n, tokens in zip(found.n_flop, found.tokens, strict=True)]
    )
