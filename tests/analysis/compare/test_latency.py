"""Level at equal time and time multiplier: known truth, invariances, simulated coverage."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from analysis.compare.fit_block import fit_block_model
from analysis.compare.latency import EqualTimeModel, MeasuredTimes, TimeCurve
from tests.benchmarks.simulated_latency import (
    CASES,
    LAUNCH_BOUND,
    Times,
    judge,
    markdown,
    misses,
    model_of,
    summarize,
)
from tests.benchmarks.study_generators import DEEP, WIDE, Row, simulate

pytestmark = pytest.mark.numeric
EXACT = Row(tau=0.0, sigma=0.0)


def generator() -> np.random.Generator:
    return np.random.default_rng(1)


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return simulate(Row(level=-0.05), generator())


def model(table: pd.DataFrame, times: Times | None = None) -> EqualTimeModel:
    found = model_of(table, times or Times(), generator())
    assert found is not None
    return found


def same_curve(one: EqualTimeModel) -> EqualTimeModel:
    """Return the model with one curve of times, over the sizes of both families, for both."""
    log_n = np.sort(np.concatenate([curve.log_n for curve in one.curves]))
    curve = TimeCurve(log_n, np.arange(len(log_n)))
    times = MeasuredTimes(0.7 * log_n - 20, np.zeros(len(log_n)), np.ones(len(log_n), np.int64))
    return EqualTimeModel(one.effects, (curve, curve), times)


class TestExactData:
    """Losses and times without noise: the estimates are the truth."""

    @pytest.mark.parametrize("row", [EXACT, replace(EXACT, d_alpha=0.005)])
    def test_level_and_multiplier_equal_the_truth(self, row: Row) -> None:
        times = Times(noise=0.0)
        one = model(simulate(row, generator()), times)
        for level in one.levels():
            deep, wide = (times.size(family, level.seconds) for family in (0, 1))
            assert level.n_deep == pytest.approx(deep, rel=1e-6)
            assert level.n_wide == pytest.approx(wide, rel=1e-6)
            truth = float(row.loss(24.0, deep, 1e9) - row.loss(192.0, wide, 1e9))
            assert level.level.value == pytest.approx(truth, abs=3e-4)
        for loss in one.multipliers():
            losses = row.loss(24.0, loss.n_deep, 1e9), row.loss(192.0, loss.n_wide, 1e9)
            assert float(losses[0]) == pytest.approx(float(losses[1]), abs=3e-4)
            ratio = times.log_seconds(1, loss.n_wide) - times.log_seconds(0, loss.n_deep)
            assert loss.log_multiplier.value == pytest.approx(float(ratio), abs=1e-6)

    def test_levels_reach_from_the_largest_to_the_smallest_common_time(self) -> None:
        one = model(simulate(EXACT, generator()))
        levels = one.levels()
        assert [math.log(levels[0].seconds), math.log(levels[-1].seconds)] == pytest.approx(
            one.time_range[::-1]
        )
        # wide is faster: its largest size at the largest time, the smallest size of deep at the smallest
        assert math.log(levels[0].n_wide) == pytest.approx(one.curves[1].log_n[-1])
        assert math.log(levels[-1].n_deep) == pytest.approx(one.curves[0].log_n[0])

    def test_multipliers_begin_at_the_lowest_common_loss(self) -> None:
        row = replace(EXACT, level=-0.05)  # deep is better, so wide limits
        first = (one := model(simulate(row, generator()))).multipliers()[0]
        assert math.log(first.n_wide) == pytest.approx(one.curves[1].log_n[-1])
        assert first.n_deep < first.n_wide


class TestInvariances:
    def test_equal_times_of_both_families_give_the_level_at_equal_flops(
        self, table: pd.DataFrame
    ) -> None:
        one = same_curve(model(table))
        effects = one.effects
        log_t = 0.7 * math.log(effects.point.n) - 20
        level = one.level_at(log_t)
        assert level.level.value == pytest.approx(effects.level.value, abs=1e-12)
        assert level.level.se == pytest.approx(effects.level.se, rel=1e-6)
        assert level.n_deep == pytest.approx(effects.point.n, rel=1e-9)

    def test_shapes_that_all_take_one_time_have_an_exact_multiplier_of_one(
        self, table: pd.DataFrame
    ) -> None:
        one = same_curve(model(table))
        constant = replace(one.times, log_seconds=np.full_like(one.times.log_seconds, -20.0))
        for loss in replace(one, times=constant).multipliers():
            assert (loss.log_multiplier.value, loss.log_multiplier.se) == (0.0, 0.0)

    def test_without_blocks_the_standard_error_is_that_of_the_level(self) -> None:
        one = same_curve(model(simulate(Row(offset=0.1, sizes=8), generator())))
        assert not one.effects.fit.blocks.is_matched
        level = one.level_at(0.7 * math.log(one.effects.point.n) - 20)
        assert level.level.se == pytest.approx(one.effects.level.se, rel=1e-6)

    def test_a_factor_on_all_times_changes_only_the_time(self, table: pd.DataFrame) -> None:
        one = model(table)
        scaled = replace(
            one, times=replace(one.times, log_seconds=one.times.log_seconds + math.log(1000))
        )
        for a, b in zip(one.levels(), scaled.levels(), strict=True):
            assert b.seconds == pytest.approx(1000 * a.seconds)
            assert (b.n_deep, b.n_wide) == pytest.approx((a.n_deep, a.n_wide), rel=1e-7)
            assert (b.level.value, b.level.se) == pytest.approx((a.level.value, a.level.se), 1e-5)
        for x, y in zip(one.multipliers(), scaled.multipliers(), strict=True):
            assert y.log_multiplier.value == pytest.approx(x.log_multiplier.value, abs=1e-7)
            assert y.seconds_deep == pytest.approx(1000 * x.seconds_deep)

    def test_exchanging_the_families_changes_all_signs(self, table: pd.DataFrame) -> None:
        one = model(table)
        block = fit_block_model(table, deep=WIDE, wide=DEEP)
        assert block.level_effects is not None
        other = EqualTimeModel(block.level_effects, one.curves[::-1], one.times)  # type: ignore[arg-type]
        for a, b in zip(one.levels(), other.levels(), strict=True):
            assert b.level.value == pytest.approx(-a.level.value, abs=1e-9)
            assert b.level.se == pytest.approx(a.level.se, rel=1e-6)
            assert (b.n_deep, b.n_wide) == pytest.approx((a.n_wide, a.n_deep))
        for x, y in zip(one.multipliers(), other.multipliers(), strict=True):
            assert y.log_multiplier.value == pytest.approx(-x.log_multiplier.value, abs=1e-7)
            assert y.log_multiplier.se == pytest.approx(x.log_multiplier.se, rel=1e-6)

    def test_noise_of_the_times_widens_the_intervals(self, table: pd.DataFrame) -> None:
        quiet, loud = model(table, Times(noise=0.0)), model(table, Times(noise=0.2))
        assert loud.levels(1)[0].level.se > 1.5 * quiet.levels(1)[0].level.se
        ratios = [one.multipliers(1)[0].log_multiplier.se for one in (loud, quiet)]
        assert ratios[0] > 1.5 * ratios[1]


class TestTimes:
    def test_a_larger_shape_that_is_faster_counts(self) -> None:
        curve = TimeCurve(np.array([0.0, 1.0, 2.0, 3.0]), np.arange(4))
        y = np.array([1.0, 3.0, 2.0, 4.0])
        assert curve.largest(2.5, y) == pytest.approx(2.25)  # not 0.75 or 1.5
        assert curve.largest(4.0, y) == pytest.approx(3.0)
        assert curve.least(1.0, y) == pytest.approx(2.0)
        assert curve.least(2.5, y) == pytest.approx(3.0)
        assert curve.largest(curve.least(0.4, y), y) == pytest.approx(0.4)

    def test_shapes_of_equal_time_count_as_the_largest(self) -> None:
        curve = TimeCurve(np.array([0.0, 1.0, 2.0]), np.arange(3))
        y = np.array([1.0, 1.0, 1.0])
        assert curve.largest(1.0, y) == 2.0 and curve.least(0.5, y) == 1.0

    def test_shapes_of_equal_n_have_the_mean_of_their_times(self) -> None:
        curve = TimeCurve(np.array([0.0, 1.0, 1.0, 2.0]), np.arange(4))
        y = np.array([1.0, 1.5, 2.5, 3.0])
        assert curve.sizes.tolist() == [0.0, 1.0, 2.0] and curve.times(y).tolist() == [1, 2, 3]
        assert curve.least(1.0, y) == pytest.approx(2.0)
        assert curve.least(1.5, y) == pytest.approx(2.5)
        assert curve.largest(2.5, y) == pytest.approx(1.5)

    def test_launch_bound_families_have_no_common_time_but_a_multiplier(self) -> None:
        one = model(simulate(Row(), generator()), LAUNCH_BOUND)
        assert not one.has_common_time and one.slower == 0
        multiplier = one.multipliers(1)[0].log_multiplier
        assert multiplier.interval[0] < math.log(1 / 4) < multiplier.interval[1]
        # even at its smallest size, deep is slower: a bound of the difference at any time
        assert one.bound_without_common_time().value > 0.5


def test_few_simulated_studies_are_judged_and_described() -> None:
    found = judge("k6", 0)
    assert found is not None and set(found) == {"level", "ln_multiplier"}
    bad = {"studies": 100, "truth": 0.1, "bias": 0.02, "sd": 0.01, "se": 0.01, "coverage": 0.5}
    row = {"name": "k6", "studies": 100, "level": bad}
    assert len(misses(row)) == 2 and "- k6: bias of level +0.0200" in markdown([row], "command")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["k4", "k6_times_10%", "k6_missing_25%", "k6_launch_bound"])
def test_simulated_intervals_cover(name: str) -> None:
    assert name in CASES
    assert misses(summarize(name, 60), p=0.001) == []
