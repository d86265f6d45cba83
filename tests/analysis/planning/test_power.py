"""Power of designs: standard errors, agreement with simulated regressions, refusals, additions."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from analysis.design.linear import Design, Law
from analysis.planning.extensions import additions, extensions, most_valuable_next
from analysis.planning.power import design_power
from slm.errors import DataError
from tests.analysis.designs import ASPECTS, TOKENS_PER_PARAM, make_design
from tests.conftest import ROOT

pytestmark = pytest.mark.numeric

SIGMA, TAU = 0.005, 0.01
THREE = ("deep", "balanced", "wide")


def differences(sizes: int) -> tuple[np.ndarray, np.ndarray, float, float]:
    """Return X of the regression of k rung differences on (level at N*, d_alpha), s, x at N*, and their variance.

    With two families the block model is this regression.
    """
    n = np.geomspace(10e6, 316e6, sizes)
    s, x = Law().A * n ** -Law().alpha, np.log(n) - np.log(n).mean()
    # Difference = s / s* level - s (x - x*) d_alpha
    columns = np.stack([s / s[-1], -s * (x - x[-1])], axis=1)
    return columns, s, x[-1], 2 * (TAU**2 + SIGMA**2 / len(TOKENS_PER_PARAM))


@pytest.mark.parametrize("sizes", [4, 6, 8])
def test_two_families_are_a_regression_of_the_differences(sizes: int) -> None:
    columns, _, _, variance = differences(sizes)
    covariance = np.linalg.inv(columns.T @ columns) * variance
    power = design_power(make_design(sizes), "deep", "wide", sigma=SIGMA, tau=TAU)
    assert (power.df, power.shapes, power.rungs) == (sizes - 2, 2 * sizes, sizes)
    assert power.se_level == pytest.approx(math.sqrt(covariance[0, 0]))
    assert power.se_exponent == pytest.approx(math.sqrt(covariance[1, 1]))
    # From a joint law too, which knows nothing of blocks.
    assert power.se_exponent == pytest.approx(power.se_joint_law, rel=0.05)


@pytest.mark.parametrize("sizes", [4, 6])
def test_power_is_the_share_of_simulated_studies_with_both_tests_significant(sizes: int) -> None:
    columns, s, largest_x, variance = differences(sizes)
    power = design_power(make_design(sizes), "deep", "wide", sigma=SIGMA, tau=TAU)
    assert power.power_exponent is not None and power.power_kappa is not None
    inverse, studies = np.linalg.pinv(columns), 10_000
    noise = np.random.default_rng(1).normal(size=(sizes, studies)) * math.sqrt(variance)
    for index, effect, found in (
        (1, 0.02, power.power_exponent[0.02]),
        (0, 0.10, power.power_kappa[0.10]),
    ):
        nats = (
            0.5
            * effect
            * (Law().alpha * s[-1] + Law().beta * Law().B * (power.tokens or 0) ** -Law().beta)
        )
        truth = [nats, 0.0] if index == 0 else [-s[-1] * largest_x * effect, effect]
        y = columns @ np.array(truth)[:, None] + noise
        theta = inverse @ y
        s2 = ((y - columns @ theta) ** 2).sum(axis=0) / (sizes - 2)
        normal = columns.T @ columns
        t = np.abs(theta[index]) / np.sqrt(np.linalg.inv(normal)[index, index] * s2)
        f = np.einsum("is,ij,js->s", theta, normal, theta) / 2 / s2
        rejected = (t > stats.t.ppf(0.975, sizes - 2)) & (f > stats.f.ppf(0.95, 2, sizes - 2))
        assert rejected.mean() == pytest.approx(found, abs=0.02)  # 3 sd of both shares


def test_known_detectable_effects() -> None:
    """.037 with four sizes; two shapes instead of one per family bring it from .0215 to about .0125 with six."""
    four, six = (design_power(make_design(k), "deep", "wide", sigma=SIGMA, tau=TAU) for k in (4, 6))
    assert four.mde80_exponent == pytest.approx(0.037, rel=0.04)
    assert six.mde80_exponent == pytest.approx(0.0215, rel=0.04)
    twice = [row | {"shape": f"{row['shape']} again"} for row in rows_of(make_design(6))]
    double = design_power(make_design(6).with_runs(twice), "deep", "wide", sigma=SIGMA, tau=TAU)
    assert double.mde80_exponent == pytest.approx(0.0125, rel=0.08)
    three = design_power(make_design(6, families=THREE), "deep", "wide", sigma=SIGMA, tau=TAU)
    assert three.df == 18 - 6 - 3
    assert three.mde80_exponent is not None and three.mde80_exponent < 0.9 * 0.0215


def test_equivalence_needs_small_shape_effects() -> None:
    four = design_power(make_design(4), "deep", "wide", sigma=SIGMA, tau=TAU)
    assert four.equivalence_margin is None and "cannot show it" in four.equivalence_text
    precise = design_power(make_design(8), "deep", "wide", sigma=0.002, tau=0.002)
    assert precise.equivalence_margin is not None and 1.01 < precise.equivalence_margin < 1.05


def test_one_token_budget_gives_a_level_and_refuses_the_exponent() -> None:
    for seeds in (1, 10):
        power = design_power(make_design(4, seeds, (20.0,)), "deep", "wide", sigma=SIGMA, tau=0.01)
        assert "single token budget" in power.refusals[0] and not power.level_refusals
        assert power.se_exponent is None and power.power_exponent is None
        assert power.df == 2 and power.power_kappa is not None and power.se_level is not None
    # Without an exponent the verdict is one t test.
    shift = 0.10 * (power.mde80_level or 0) / (power.mde80_log_kappa or 1) / power.se_level
    critical = stats.t.ppf(0.975, 2)
    exact = stats.nct.sf(critical, 2, shift) + stats.nct.cdf(-critical, 2, shift)
    assert power.power_kappa[0.10] == pytest.approx(exact, abs=0.01)


def test_each_refusal_names_the_runs_to_add() -> None:
    three = design_power(make_design(3), "deep", "wide")
    assert (
        "6 shapes leave 1 degree of freedom, at least 2 degrees of freedom are needed"
        in three.refusals[0]
    )
    alone = design_power(make_design(6, families=("deep",)), "deep", "wide")
    assert "one family, deep" in alone.level_refusals[0] and alone.se_level is None
    two = design_power(make_design(2, tokens_per_param=(20.0,)), "deep", "wide")
    assert (
        "0 degrees of freedom" in two.level_refusals[0] and two.refusals[0] == two.level_refusals[0]
    )
    narrow = make_design(6, tokens_per_param=(20.0, 21.0, 22.0))
    refusals = design_power(narrow, "deep", "wide").refusals
    assert "correlation of ln N and ln D is 0.99" in refusals[0]
    apart = make_design(6, families=("deep",)).with_runs(
        rows_of(make_design(6, families=("wide",), low=1e9, high=9e9))
    )
    assert design_power(apart, "deep", "wide").level_refusals
    other = [
        row | {"rung": f"{row['rung']} again"}
        for row in rows_of(make_design(6, families=("wide",)))
    ]
    unpaired = design_power(make_design(6, families=("deep",)).with_runs(other), "deep", "wide")
    assert "share no size and token budget" in unpaired.level_refusals[0]
    with pytest.raises(DataError, match="sigma=0"):
        design_power(narrow, "deep", "wide", sigma=0)


def rows_of(design: Design) -> list[dict[str, object]]:
    columns = design.columns()
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def test_a_family_that_is_a_size_ahead_changes_nothing() -> None:
    whole = make_design(7)
    largest = max(whole.n_flop)
    ahead = [row for row in rows_of(whole) if row["family"] == "deep" or row["n_flop"] != largest]
    common = [row for row in ahead if row["n_flop"] != largest]
    found, expected = (
        design_power(Design(**{key: [row[key] for row in rows] for key in rows[0]}), "deep", "wide")
        for rows in (ahead, common)
    )
    assert not found.refusals and (found.runs, found.rungs) == (36, 6)
    assert found.se_exponent == pytest.approx(expected.se_exponent)
    assert found.power_exponent == expected.power_exponent


def test_warnings_of_a_weak_design() -> None:
    power = design_power(make_design(4, 1, (5.0, 20.0), low=1e6, high=5e6), "deep", "wide")
    warnings = "\n".join(power.warnings)
    for expected in ("4 sizes common", "5-fold in N", "2 per size", "one seed"):
        assert expected in warnings
    one = design_power(make_design(1, 1, (5.0,)), "deep", "wide")
    warnings = "\n".join(one.warnings)
    assert "deep: there is only one size" in warnings and "budgets: only one;" in warnings
    assert "-fold" not in warnings.replace("10-fold in N", "") and "1.0x" not in warnings
    tiny = design_power(make_design(6, 2, low=1e3, high=1e5), "deep", "wide")
    assert any("far outside" in warning for warning in tiny.warnings)
    json.dumps(tiny.to_dict())
    assert "power of the verdict" in repr(tiny)


def test_a_drift_of_the_aspect_ratios_is_a_warning_with_two_families_only() -> None:
    for families, is_warned in ((("deep", "wide"), True), (THREE, False)):
        design = make_design(6, families=families)
        drifting = [
            ASPECTS[family] * math.exp(0.02 * rung)
            for family, rung in zip(design.family, design.rung, strict=True)
        ]
        power = design_power(
            Design(**{**design.columns(), "aspect_ratio": drifting}), "deep", "wide"
        )
        assert any("drifts by +0.10" in line for line in power.warnings) == is_warned


def test_additions_are_ranked_by_the_error_of_the_extended_design() -> None:
    design = make_design(6)
    assumed = {"law": Law(), "sigma": SIGMA, "tau": TAU}
    power = design_power(design, "deep", "wide", sigma=SIGMA, tau=TAU)
    ranked = most_valuable_next(design, power, law=Law(), sigma=SIGMA, count=3)
    parts = {name: rows for kind in additions(design).values() for name, rows in kind.items()}
    assert len(parts) == 6 + 12 + 6 + 1 + 5
    gains = []
    for addition in ranked:
        joined = design.with_runs(parts[addition.name])
        after = design_power(joined, "deep", "wide", sigma=SIGMA, tau=TAU)
        assert after.se_exponent == pytest.approx(addition.se, rel=1e-9)
        gains.append((power.se_exponent**2 - addition.se**2) / addition.flops)
    assert gains == pytest.approx(sorted(gains, reverse=True), rel=1e-6)
    found = {one.name: one for one in extensions(design, "deep", "wide", **assumed)}
    assert found["one more seed per shape"].runs == 36
    assert found["a size between each pair of adjacent sizes"].runs == 30
    assert found["the next larger size"].flops == pytest.approx(
        sum(6 * (316e6 * 31.6**0.2) ** 2 * m for m in TOKENS_PER_PARAM) * 2
    )
    # With tau = 2 sigma a further seed is nearly worthless, a size is not.
    assert found["one more seed per shape"].se_exponent > 0.95 * power.se_exponent
    assert (
        found["a size between each pair of adjacent sizes"].se_exponent < 0.85 * power.se_exponent
    )


def test_additions_that_lose_the_exponent_are_skipped() -> None:
    design = make_design(5, seeds=2, tokens_per_param=(20.0, 50.0))
    power = design_power(design, "deep", "wide", sigma=SIGMA, tau=TAU)
    assert power.se_exponent is not None
    parts = [rows for kind in additions(design).values() for rows in kind.values()]
    joined = [design.with_runs(rows) for rows in parts]
    refused = [design_power(one, "deep", "wide", sigma=SIGMA, tau=TAU) for one in joined]
    assert any(one.se_exponent is None for one in refused)
    ranked = most_valuable_next(design, power, sigma=SIGMA, count=len(parts))
    assert ranked and all(math.isfinite(one.se) for one in ranked)


def test_design_power_imports_neither_pandas_nor_most_of_scipy() -> None:
    code = (
        "import sys\n"
        "from analysis.planning.power import design_power\n"
        "from analysis.planning.extensions import most_valuable_next\n"
        "from tests.analysis.designs import make_design\n"
        "design = make_design(5)\n"
        "most_valuable_next(design, design_power(design, 'deep', 'wide'))\n"
        "assert not {'pandas', 'scipy.stats', 'scipy.optimize', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
