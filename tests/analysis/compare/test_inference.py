"""Inference over shapes: exactness, coverage on known truths, and the secondary estimators."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest

from analysis.compare.aspect_ratio import fit_shape_curve
from analysis.compare.compute_multiplier import compute_multiplier, envelope, multiplier
from analysis.compare.exponents import (
    equivalence_p,
    exponent_difference_of,
    fitted,
    shape_misfit,
    two_sided,
)
from analysis.compare.holdout import hold_out
from analysis.compare.matched_pairs import holm_limits
from analysis.compare.permutation import any_difference
from analysis.compare.two_stage_f_test import shape_losses
from analysis.fit.frontier import Frontier, log_multiplier
from analysis.fit.isoflop import fit_isoflop
from analysis.fit.resampling import bootstrap_interval, cluster_weights, jackknife_error
from analysis.learning_rate.audit import Audit, audit_learning_rates, parse_audit
from analysis.runs.study import Columns, Study, prepare
from slm.errors import DataError
from tests.benchmarks.simulated_studies import SIGMA, Truth, naive_f, simulate
from tests.full_study import full_study

pytestmark = pytest.mark.numeric

NOTHING, EXPONENT = Truth(0, 0), Truth(0, 0.05)


def study_of(truth: Truth, tau: float = 0.0, sigma: float = 0.0, seed: int = 0) -> Study:
    columns = Columns(flops="flops", rung="rung")
    return prepare(simulate(truth, tau, sigma, seed), columns, None, None)


def test_a_difference_without_noise_is_found_exactly() -> None:
    one = exponent_difference_of(study_of(EXPONENT), permutations=False)
    assert one.difference == pytest.approx(0.05, abs=1e-6)
    assert one.standard_error == pytest.approx(0, abs=1e-6)
    assert one.alpha["wide"] == pytest.approx(0.3478, abs=1e-6)
    assert shape_misfit(fitted(study_of(EXPONENT))) < 1e-8


def test_the_jackknife_is_over_shapes() -> None:
    study = study_of(NOTHING, tau=0.01, sigma=SIGMA)
    one = exponent_difference_of(study)
    assert (one.shapes, one.df, one.runs) == (16, 11, 48)
    known = fitted(study)
    without = known.contrast(known.deleted.theta)
    expected = math.sqrt(15 / 16 * ((without - without.mean()) ** 2).sum())
    assert one.standard_error == pytest.approx(expected)
    assert one.without is not None and one.without[0].split()[1] in set(study.table["shape"])
    # A direct refit without the first shape agrees with the warm-started one.
    kept = study.table[study.table["shape"] != "deep0"].reset_index(drop=True)
    direct = fitted(Study(kept, "deep", "wide", "n_flop", ()))
    assert direct.contrast(direct.theta) == pytest.approx(without[0], abs=1e-6)
    assert one.profile is not None and one.profile[0] < one.difference < one.profile[1]  # type: ignore[operator]
    assert json.dumps(one.to_dict(), default=str)


def test_permutations_within_pairs() -> None:
    null = exponent_difference_of(study_of(NOTHING, tau=0.01, sigma=SIGMA))
    some = exponent_difference_of(study_of(EXPONENT, tau=0.005, sigma=SIGMA))
    for found in (null.permutation, null.any_permutation, some.permutation, some.any_permutation):
        assert found is not None and found.exact and (found.pairs, found.labelings) == (8, 256)
        assert found.p >= found.smallest_p == 2 / 256
    assert null.permutation is not None and null.permutation.p > 0.05
    assert some.permutation is not None and some.permutation.p < 0.05
    assert some.collapsed is not None and some.collapsed.p < 0.05 and some.collapsed.df == 11


def test_a_level_is_any_difference_but_none_of_exponents() -> None:
    one = exponent_difference_of(study_of(Truth(-0.08, 0), tau=0.005, sigma=SIGMA))
    assert one.any_permutation is not None and one.any_permutation.p < 0.05
    assert one.permutation is not None and one.permutation.p > 0.05 and not one.significant


def test_swapping_labels_is_exact() -> None:
    """Under the null every labeling is equally likely: p is uniform on its grid, 40 studies."""
    p = []
    for seed in range(40):
        known = fitted(study_of(NOTHING, 0.02, SIGMA, seed))
        p.append(any_difference(known.problem, known.theta, known.pairs, known.families).p)
    assert sum(value <= 0.05 for value in p) <= 6  # 2 expected; 7 or more has a probability of .003
    assert 0.35 < float(np.mean(p)) < 0.65


def test_losses_of_shapes_at_infinite_data() -> None:
    table = study_of(NOTHING).table.sort_values(["family", "shape", "tokens"])
    shape = np.repeat(np.arange(16), 3)
    losses, log_d = table["loss_nats_per_token"].to_numpy(), np.log(table["tokens"].to_numpy())
    u, beta = shape_losses(log_d, losses, shape)
    assert beta == pytest.approx(0.3658, abs=1e-4)
    n = table["n"].to_numpy()[::3]
    assert u == pytest.approx(1.8172 + 482.01 * n**-0.3478, abs=1e-4)


def test_t_tests_and_intervals() -> None:
    assert two_sided(2.201, 1.0, 11) == pytest.approx(0.05, abs=1e-4)
    assert two_sided(0.0, 0.0, 11) == 1.0 and two_sided(0.1, 0.0, 11) == 0.0
    assert equivalence_p(0.0, 0.005, 11, 0.02) == pytest.approx(0.001, abs=5e-4)
    assert equivalence_p(0.03, 0.005, 11, 0.02) > 0.95
    assert equivalence_p(0.0, 0.0, 11, 0.02) == 0.0
    assert jackknife_error(np.array([1.0, 1.0, 1.0])) == 0
    assert holm_limits(np.array([0.04, 0.01, math.nan]))[:2] == pytest.approx([0.05, 0.025])
    drawn = np.random.default_rng(0).normal(1, 0.1, 4000)
    assert bootstrap_interval(drawn, 1.0) == pytest.approx((0.804, 1.196), abs=0.02)
    corrected = bootstrap_interval(drawn, 1.0, np.linspace(0.9, 1.1, 11))
    assert corrected == pytest.approx((0.804, 1.196), abs=0.02)


def test_a_resample_keeps_the_number_of_shapes_of_each_family() -> None:
    cluster = np.array([0, 0, 1, 1, 2, 3, 4])
    stratum = np.array([0, 0, 0, 0, 1, 1, 1])
    weights = cluster_weights(cluster, stratum, 50, seed=0)
    assert (weights[:, 0] == weights[:, 1]).all()
    assert (weights[:, 0] + weights[:, 2] == 2).all() and (weights[:, 4:].sum(axis=1) == 3).all()


class TestComputeMultiplier:
    def test_of_curves_that_differ_by_a_factor(self) -> None:
        flops = np.geomspace(1e15, 1e19, 9)
        deep = envelope(flops, 2 + 50 * flops**-0.1, flops)
        wide = envelope(flops * 1.3, 2 + 50 * flops**-0.1, flops)
        found = multiplier(deep, wide)
        assert found is not None
        assert found.values == pytest.approx([1.3] * 9, rel=1e-3)
        assert found.slope == pytest.approx(0, abs=1e-3)
        assert found.at_flops == pytest.approx(1e19)

    def test_only_runs_that_no_cheaper_run_beats_count(self) -> None:
        found = envelope(
            np.array([1.0, 2, 3, 4]), np.array([4.0, 2.5, 3.5, 2]), np.array([1.0, 1, 2, 2])
        )
        assert np.exp(found.log_c).tolist() == pytest.approx([1, 2, 4]) and found.sizes == 2

    def test_a_run_barely_better_than_a_cheaper_one_is_above_the_hull(self) -> None:
        flops = np.array([1.0, 2, 4, 8, 16])
        found = envelope(flops, np.array([4.0, 3.2, 3.199, 2.5, 2.3]), flops)
        assert np.exp(found.log_c).tolist() == pytest.approx([1, 2, 8, 16]) and found.runs == 5

    def test_families_without_a_common_loss_have_none(self) -> None:
        flops = np.geomspace(1e15, 1e19, 9)
        low = envelope(flops, 1 + 1e-20 * flops**-0.1 + np.linspace(0.1, 0, 9), flops)
        high = envelope(flops, 3 + np.linspace(0.1, 0, 9), flops)
        assert multiplier(low, high) is None

    def test_levels_make_it_constant_and_exponents_make_it_grow(self) -> None:
        level = compute_multiplier(fitted(study_of(Truth(-0.05, 0))), bootstrap=0)
        growing = compute_multiplier(fitted(study_of(EXPONENT)), bootstrap=0)
        assert level is not None and growing is not None
        assert level.at_largest > 1.1 and abs(level.excess_slope) < 1e-6
        assert growing.excess_slope > 0.02

    def test_its_intervals_hold_it(self) -> None:
        known = fitted(study_of(Truth(-0.05, 0), tau=0.01, sigma=SIGMA))
        found = compute_multiplier(known, bootstrap=99)
        assert (
            found is not None
            and found.interval is not None
            and found.bootstrap_interval is not None
        )
        assert found.interval[0] < 1.18 < found.interval[1]
        assert found.interval[0] < found.by_law < found.interval[1]  # type: ignore[operator]
        assert (found.replicates, found.discarded) == (99, 0)

    @pytest.mark.parametrize("seed", [0, 3])
    def test_no_single_shape_makes_it_jump(self, seed: int) -> None:
        """Envelopes through predicted losses gave [0.44, 3.87] here, while the exponents were known to .01."""
        table = full_study(alpha={"deep_thin": 0.02, "wide_shallow": -0.02}, seed=seed)
        known = fitted(prepare(table, Columns(flops="flops", rung="rung"), None, None))
        found = compute_multiplier(known, bootstrap=0)
        assert found is not None and found.interval is not None
        assert 1.15 < found.interval[0] < 1.35 < found.interval[1] < 1.55

    def test_a_frontier_is_the_least_loss_within_the_measured_ranges(self) -> None:
        known = fitted(study_of(EXPONENT, tau=0.01, sigma=SIGMA))
        table, points, theta = known.study.table, known.problem.points, known.theta[None]
        deep, wide = (
            Frontier.of(table, points, name, f) for f, name in enumerate(("deep", "wide"))
        )
        e, a, b, alpha, beta = (known.theta[slots[0]] for slots in known.law.slots)
        for log_c in np.linspace(*deep.flops, 7):
            log_n = np.linspace(deep.per_token[0], deep.per_token[1], 20001) - math.log(6)
            log_d = log_c - math.log(6) - log_n
            inside = (log_d - log_n > math.log(4.9)) & (log_d - log_n < math.log(81))
            inside &= (log_d >= deep.tokens[0]) & (log_d <= deep.tokens[1])
            x, z = (log_n - points.log_n0)[inside], (log_d - points.log_d0)[inside]
            least = np.log(np.exp(e) + np.exp(a - alpha * x) + np.exp(b - beta * z)).min()
            found = deep.log_loss(known.law, theta, np.array([log_c]))[0]
            assert found == pytest.approx(least, abs=2e-4)
        log_kappa = float(log_multiplier((deep, wide), known.law, theta)[0])
        assert log_multiplier((wide, deep), known.law, theta)[0] == pytest.approx(-log_kappa)


def test_the_largest_size_is_predicted() -> None:
    exact = hold_out(study_of(EXPONENT))
    assert exact.passed and len(exact.cells) == 6
    assert max(abs(cell.error_nats) for cell in exact.cells) < 1e-5
    noisy = hold_out(study_of(NOTHING, tau=0.01, sigma=SIGMA))
    assert noisy.passed and noisy.coverage == 1.0
    assert {row["family"] for row in noisy.forward} == {"deep", "wide"}
    study = study_of(NOTHING, tau=0.005, sigma=SIGMA)
    last = study.table["rung"] == 7
    study.table.loc[last & (study.table["family"] == "deep"), "loss_nats_per_token"] += 0.3
    bent = hold_out(study)
    assert bent.passed is False and "deep is off by" in bent.reasons[0]
    few = study_of(NOTHING)
    small = Study(
        few.table[few.table["rung"] < 4].reset_index(drop=True), "deep", "wide", "n_flop", ()
    )
    assert hold_out(small).passed is None


def test_isoflop_parabolas() -> None:
    rows = []
    for flops in np.geomspace(1e18, 1e21, 6):
        best = 0.1 * flops**0.5
        for step in np.linspace(-1.1, 1.1, 7):
            rows.append((best * math.exp(step), flops, 2 + 0.05 * step**2))
    n, flops, loss = (np.array(column) for column in zip(*rows, strict=True))
    found = fit_isoflop(n, flops, loss)
    assert found.exponent == pytest.approx(0.5, abs=1e-6) and len(found.parabolas) == 6
    assert found.parabolas[0].n_best == pytest.approx(1e8, rel=1e-3)
    edge = fit_isoflop(n, flops, n)  # falls towards the smallest N: no minimum inside
    assert (
        edge.status == "REFUSED" and edge.exponent is None and "0 of 6 budgets" in edge.reasons[0]
    )


def shapes(best: float, drift: float, noise: float = 0.0, aspects: int = 3) -> pd.DataFrame:
    """Losses with a parabola of curvature .02 in ln aspect around an optimum that drifts with ln C."""
    generator = np.random.default_rng(0)
    rows = []
    for rung, n in enumerate(np.geomspace(1e7, 3e8, 6)):
        for index, aspect in enumerate((16.0, 48.0, 144.0, 432.0)[:aspects]):
            misfit = generator.normal(0, noise)
            for budget in (10.0, 40.0):
                tokens = budget * n
                flops = 6 * n * tokens
                optimum = math.log(best) + drift * math.log(flops / 1e18)
                loss = 2 + 400 * n**-0.34 + 0.02 * (math.log(aspect) - optimum) ** 2 + misfit
                rows.append(
                    (f"f{index}", f"f{index}-{rung}", rung, budget, tokens, flops, n, aspect, loss)
                )
    names = [
        "family",
        "shape",
        "rung",
        "tokens_per_param",
        "tokens",
        "flops",
        "n",
        "aspect_ratio",
        "loss_nats_per_token",
    ]
    return pd.DataFrame(rows, columns=names)


class TestShapeCurve:
    def test_the_optimum_and_its_drift_are_found(self) -> None:
        table = shapes(48.0, 0.1)
        found = fit_shape_curve(table)
        middle = float(np.log(table["flops"]).mean())
        optimum = 48 * math.exp(0.1 * (middle - math.log(1e18)))
        assert found.best_aspect == pytest.approx(optimum, rel=1e-6)
        assert found.trend == pytest.approx(0.1, abs=1e-6)
        assert found.cost_of_two == pytest.approx(0.02 * math.log(2) ** 2, rel=1e-6)
        assert found.cost_in_flops is not None and found.cost_in_flops > 1
        assert found.interior and len(found.rungs) == 12
        assert "moves with scale" in found.sentence

    def test_shape_noise_widens_it(self) -> None:
        found = fit_shape_curve(shapes(48.0, 0.0, noise=0.005))
        assert found.best_interval is not None and found.trend_interval is not None
        assert found.best_interval[0] < 48 < found.best_interval[1]
        assert found.trend_interval[0] < 0 < found.trend_interval[1]
        assert "not shown to move" in found.sentence

    def test_two_aspects_are_no_curve(self) -> None:
        found = fit_shape_curve(shapes(48.0, 0.0, aspects=2))
        assert found.status == "REFUSED" and "run a third family" in found.sentence

    def test_a_monotone_curve_has_no_optimum(self) -> None:
        table = shapes(48.0, 0.0)
        table["loss_nats_per_token"] = 3 - 0.01 * np.log(table["aspect_ratio"]) ** 2
        assert fit_shape_curve(table).best_aspect is None


def audit(best: dict[str, float], used: float = 8e-3) -> pd.DataFrame:
    rates = [1e-3 * 2**step for step in range(7)]
    rows = [
        (family, f"{family}0", rate, 2 + 0.02 * math.log(rate / optimum) ** 2, used)
        for family, optimum in best.items()
        for rate in rates
    ]
    names = ["family", "shape", "peak_lr", "loss_nats_per_token", "used_lr"]
    return pd.DataFrame(rows, columns=names)


class TestAudit:
    def test_what_a_rate_costs(self) -> None:
        found = audit_learning_rates(audit({"deep": 8e-3, "wide": 4e-3}))
        assert found.passed("deep", "wide")
        deep, wide = found.shapes
        assert deep.best_lr == pytest.approx(8e-3) and deep.penalty == pytest.approx(0, abs=1e-9)
        assert deep.curvature == pytest.approx(0.04)
        assert wide.penalty == pytest.approx(0.02 * math.log(2) ** 2) == wide.cost_of_two

    def test_a_mistuned_family_fails(self) -> None:
        found = audit_learning_rates(audit({"deep": 8e-3, "wide": 3e-3}))
        assert found.passed("deep") and not found.passed("deep", "wide")
        assert "learning rate of wide0 costs 0.019 nats" in found.reasons("deep", "wide")[0]
        edge = audit_learning_rates(audit({"deep": 1e-4, "wide": 8e-3}))
        assert "edge of the grid" in edge.failed["deep"]
        assert "not in the audit" in found.reasons("mid")[0]
        assert audit_learning_rates(audit({"deep": 8e-3}), used_lr=1e-3).failed
        assert not audit_learning_rates(audit({"deep": 1.6e-2}), used_lr={"deep": 1.6e-2}).failed

    def test_a_summary_will_do(self) -> None:
        found = parse_audit(
            {"deep": {"interior": True, "penalty": 0.002}, "wide": {"interior": False}}
        )
        assert isinstance(found, Audit) and list(found.failed) == ["wide"]
        assert parse_audit(None) is None
        with pytest.raises(DataError, match="must have the keys interior"):
            parse_audit({"deep": {}})
        with pytest.raises(DataError, match="has no column shape"):
            audit_learning_rates(pd.DataFrame({"family": ["deep"]}))
        with pytest.raises(DataError, match="run at least 3"):
            audit_learning_rates(audit({"deep": 8e-3}).iloc[:2])


def test_the_naive_test_is_wrong_where_shapes_misfit() -> None:
    rejected = [naive_f(fitted(study_of(NOTHING, 0.02, SIGMA, seed))) < 0.05 for seed in range(20)]
    assert sum(rejected) >= 4  # 1 would be right
