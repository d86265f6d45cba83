"""The block model: recovery of known laws, signs, invariances, and agreement with statsmodels."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.optimize import brentq

from analysis.block.blocks import arrange
from analysis.block.mixed_model import MixedModel, best_trunk_ratio
from analysis.block.model import fit_runs, left_side
from analysis.block.planned import planned_effects
from analysis.block.pooled_law import PooledLaw
from analysis.compare.block_result import BlockResult
from analysis.compare.fit_block import fit_block_model
from tests.analysis.block.studies import ALPHA, BETA, A, B, E, loss_at, study

pytestmark = pytest.mark.numeric

ESTIMATES = ("level", "level_se", "d_alpha", "d_alpha_se", "ln_kappa", "df", "sigma", "tau", "p_f")


def fitted(
    table: pd.DataFrame, deep: str = "deep", wide: str = "wide", **options: Any
) -> BlockResult:
    return fit_block_model(table, deep=deep, wide=wide, **options)


def curved(table: pd.DataFrame) -> pd.DataFrame:
    """Add a minimum in u at 0.25 x: the relative loss 0.01 u^2 - 0.005 u x, with u = 0 at an aspect ratio of 48."""
    u, x = np.log(table["aspect_ratio"] / 48), np.log(table["n_flop"] / 5.62e7)
    added = A * table["n_flop"] ** -ALPHA * (0.01 * u**2 - 0.005 * u * x)
    return table.assign(loss_nats_per_token=table["loss_nats_per_token"] + added)


def values(one: BlockResult) -> list[float]:
    return [getattr(one, name) for name in ESTIMATES]


class TestNoiseFree:
    @pytest.mark.parametrize("aspects", [(24, 192), (24, 64, 192)])
    def test_an_exponent_difference_and_its_sign(self, aspects: tuple[float, ...]) -> None:
        one = fitted(study(8, aspects, d_alpha=0.02))
        assert one.d_alpha == pytest.approx(0.02, abs=1e-4)
        assert one.is_exponent_significant and one.d_alpha is not None

    def test_swapping_deep_and_wide_flips_the_signs_and_nothing_else(self) -> None:
        table = study(6, (24, 64, 192), level=-0.03, d_alpha=0.02, tau=0.01, sigma=0.005)
        one, other = fitted(table), fitted(table, deep="wide", wide="deep")
        for name in ("level", "d_alpha", "ln_kappa", "free_e", "d_alpha_free_e"):
            assert getattr(other, name) == pytest.approx(-getattr(one, name), rel=1e-9)
        same = (
            "level_se",
            "d_alpha_se",
            "ln_kappa_se",
            "p_level",
            "p_exponent",
            "p_f",
            "sigma",
            "tau",
            "df",
        )
        for name in same:
            assert getattr(other, name) == pytest.approx(getattr(one, name), rel=1e-9)

    def test_identical_laws_have_no_difference_whatever_the_ranges(self) -> None:
        table = study(8)
        table = table[(table["family"] == "deep") | (table["rung"].between(2, 5))]
        one = fitted(table)
        assert one.level == pytest.approx(0, abs=1e-6) and one.kappa == pytest.approx(1, abs=1e-6)
        assert one.d_alpha == pytest.approx(0, abs=1e-6) and one.p_level == pytest.approx(1)
        assert one.rungs == 4 and one.left_out == 12

    @pytest.mark.parametrize(("level", "d_alpha"), [(-0.02, 0.0), (0.02, 0.0), (0.0, 0.0116)])
    def test_kappa_is_the_root_of_equal_losses(self, level: float, d_alpha: float) -> None:
        """Laws that differ by 2% at the largest size."""
        one = fitted(study(8, level=level, d_alpha=d_alpha))
        assert one.at_n is not None and one.at_tokens is not None and one.kappa is not None

        def gap(log_kappa: float) -> float:
            root = math.exp(log_kappa / 2)
            wide = loss_at(one.at_n * root, one.at_tokens * root, -0.5, level, d_alpha)  # type: ignore[operator]
            return loss_at(one.at_n, one.at_tokens, 0.5, level, d_alpha) - wide  # type: ignore[arg-type]

        assert math.log(one.kappa) == pytest.approx(brentq(gap, -1, 1), abs=1e-3)
        assert (one.kappa > 1) == (one.level < 0)  # type: ignore[operator]

    def test_the_pooled_law_is_recovered(self) -> None:
        law = fit_runs(arrange(study(6), deep="deep", wide="wide")).law
        assert pytest.approx((E, A, B), rel=1e-6) == (law.E, law.A, law.B)
        assert (law.alpha, law.beta) == pytest.approx((ALPHA, BETA), rel=1e-7)

    def test_a_shape_optimum_and_its_drift(self) -> None:
        """q = h2 u^2 - gamma u x has its minimum at u = gamma x / (2 h2)."""
        one = fitted(curved(study(6, (12, 24, 48, 96, 192))))
        assert one.curvature == pytest.approx(0.01, rel=0.015)  # relative to the mean size term
        best = [row["best_aspect"] for row in one.optima]
        expected = [48 * math.exp(0.25 * math.log(row["n"] / 5.62e7)) for row in one.optima]
        assert best == pytest.approx(expected, rel=5e-3)
        assert one.optimum_trend == pytest.approx(0.25, abs=5e-3)

    def test_the_interval_of_the_drift_is_fieller_s(self) -> None:
        """Its ends are the trends at which gamma - 2 h2 trend is t standard errors from 0."""
        one = fitted(curved(study(6, (12, 24, 48, 96, 192), tau=0.002, sigma=0.002, seed=1)))
        assert one.effects is not None and one.optimum_trend_ci is not None
        fit = one.effects.fit
        gamma, h2 = fit.names.index("gamma"), fit.names.index("h2")
        for end in one.optimum_trend_ci:
            weights = np.zeros(len(fit.names))
            weights[[gamma, h2]] = 1.0, -2 * end
            error = math.sqrt(weights @ fit.covariance @ weights)
            assert abs(weights @ fit.coef) / error == pytest.approx(stats.t.ppf(0.975, fit.df))

    def test_no_drift_without_curvature(self) -> None:
        noisy = study(6, (12, 48, 192), d_alpha=0.01, tau=0.01, sigma=0.005, seed=2)
        one = fitted(noisy)
        assert one.curvature is not None and one.p_curvature > 0.05  # type: ignore[operator]
        assert one.optimum_trend is None and one.optimum_trend_ci is None


def test_reml_agrees_with_statsmodels() -> None:
    """Positive variances, so that both find the same optimum."""
    import statsmodels.api as sm

    table = study(6, (24, 64, 192), d_alpha=0.02, tau=0.02, sigma=0.005, seed=3)
    fit = fit_runs(arrange(table, deep="deep", wide="wide"))
    blocks = fit.blocks
    indicator = (blocks.block[:, None] == np.arange(blocks.block.max() + 1)).astype(float)
    design = np.column_stack([indicator, fit.columns.design(blocks.u)])
    y = left_side(blocks, fit.law, fit.columns)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = sm.MixedLM(y, design, groups=blocks.shape).fit(
            reml=True, method=["powell", "lbfgs"]
        )
    assert fit.coef == pytest.approx(other.fe_params[-3:], abs=1e-7)
    errors = np.sqrt(np.diag(fit.covariance))
    assert errors == pytest.approx(other.bse_fe[-3:], rel=2e-3)
    assert fit.sigma**2 == pytest.approx(other.scale, rel=2e-3)
    assert fit.tau**2 == pytest.approx(float(other.cov_re.squeeze()), rel=5e-3)


def test_two_families_are_least_squares_on_the_differences_of_the_rungs() -> None:
    """In a complete design t is exact: tau^2 may be negative, so tau = 0 is no special case."""
    for seed in range(3):
        table = study(6, tau=0.0, sigma=0.01, seed=seed)
        fit = fit_runs(arrange(table, deep="deep", wide="wide"))
        blocks = fit.blocks
        y = left_side(blocks, fit.law, fit.columns)
        sides = blocks.u < 0
        means = [
            [y[(blocks.rung == r) & side].mean() for r in range(6)] for side in (sides, ~sides)
        ]
        gap = blocks.u_deep - blocks.u_wide
        first = [np.flatnonzero(blocks.rung == r)[0] for r in range(6)]
        scale, x = fit.columns.scale[first], fit.columns.x[first]
        design = np.column_stack([scale, -scale * x]) * gap
        difference = np.array(means[0]) - np.array(means[1])
        coef, rest, *_ = np.linalg.lstsq(design, difference)
        covariance = np.linalg.inv(design.T @ design) * rest[0] / 4
        assert fit.coef == pytest.approx(coef, rel=1e-6)
        assert fit.covariance == pytest.approx(covariance, rel=1e-3)
        assert fit.df == 4


def test_degrees_of_freedom_count_shapes() -> None:
    """Shapes - rungs - p; seeds and budgets add none, and neither does a shape alone in its blocks."""
    assert fitted(study(6, sigma=0.01)).df == 6 - 2
    assert fitted(study(6, sigma=0.01, seeds=3, budgets=(8, 12, 24, 48, 72))).df == 6 - 2
    assert fitted(study(6, (24, 64, 192), sigma=0.01)).df == 12 - 3
    table = study(6, (24, 64, 192), sigma=0.01)
    assert fitted(table[(table["family"] != "aspect_64") | (table["rung"] < 2)]).df == 8 - 3
    ahead = study(7, sigma=0.01)
    assert fitted(ahead[(ahead["family"] == "deep") | (ahead["rung"] < 6)]).df == 6 - 2


def test_negative_tau_is_for_complete_designs_only() -> None:
    table = study(6, sigma=0.01, seed=5)
    fit = fit_runs(arrange(table, deep="deep", wide="wide"))
    incomplete = fit_runs(arrange(table.drop(index=[4, 17]), deep="deep", wide="wide"))
    assert fit.blocks.is_complete and not incomplete.blocks.is_complete
    ratios = []
    for seed in range(12):
        rows = study(6, sigma=0.01, seed=seed)
        ratios.append(fit_runs(arrange(rows, deep="deep", wide="wide")).ratio)
        assert fit_runs(arrange(rows.drop(index=[4, 17]), deep="deep", wide="wide")).ratio >= 0
    assert min(ratios) < -0.01


class TestInvariance:
    table = study(5, (24, 64, 192), level=-0.02, tau=0.01, sigma=0.005)

    def test_row_order_and_index(self) -> None:
        shuffled = self.table.sample(frac=1, random_state=1)
        assert values(fitted(shuffled)) == pytest.approx(values(fitted(self.table)), rel=1e-6)

    def test_names(self) -> None:
        renamed = self.table.assign(
            family=self.table["family"].map({"deep": "z", "wide": "a", "aspect_64": "m"}),
            shape=self.table["shape"].str[::-1],
            rung=self.table["rung"].map(lambda r: f"r{9 - r}"),
        )
        assert values(fitted(renamed, "z", "a")) == pytest.approx(
            values(fitted(self.table)), rel=1e-6
        )

    def test_units_of_tokens_and_rounding(self) -> None:
        """Tokens of a block rounded to whole batches stay one block."""
        rounded = self.table.assign(tokens=(self.table["tokens"] / 65536).round() * 65536)
        rounded["tokens"] += np.where(self.table["family"] == "deep", 65536, 0)
        assert fitted(rounded).df == fitted(self.table).df

    def test_a_common_shift_of_a_block_changes_nothing(self) -> None:
        shifted = self.table.copy()
        blocks = shifted.groupby(["rung", "tokens"]).ngroup()
        shift = np.random.default_rng(0).normal(0, 0.02, 15)[blocks]
        shifted["loss_nats_per_token"] += shift
        model = fit_runs(arrange(self.table, deep="deep", wide="wide"))
        again = fit_runs(arrange(shifted, deep="deep", wide="wide"), law=model.law)
        assert again.coef == pytest.approx(model.coef, abs=1e-9)


class TestSeveralSeeds:
    def test_trunks_and_shapes_are_told_apart(self) -> None:
        """The variances of a large design are recovered within their errors."""
        generator = np.random.default_rng(0)
        shape, trunk = np.repeat(np.arange(80), 12), np.repeat(np.arange(320), 3)
        block = np.tile(np.arange(12) % 3, 80)
        nuisance = (block[:, None] == np.arange(3)).astype(float)
        x = generator.normal(size=(80, 1))[shape]
        sd = 2.0, 1.0, 0.5
        y = generator.normal(0, sd[0], 80)[shape] + generator.normal(0, sd[1], 320)[trunk]
        y = y + generator.normal(0, sd[2], 960)
        ratio = best_trunk_ratio(nuisance, x, (shape, trunk), y)
        fit = MixedModel(nuisance, x, shape, trunk, trunk_ratio=ratio).fit(y)
        assert fit.sigma[0] == pytest.approx(0.5, rel=0.1)
        assert math.sqrt(ratio) * fit.sigma[0] == pytest.approx(1.0, rel=0.15)
        assert math.sqrt(fit.ratio[0]) * fit.sigma[0] == pytest.approx(2.0, rel=0.25)

    def test_anchor_seeds_leave_the_degrees_of_freedom(self) -> None:
        table = study(6, tau=0.01, sigma=0.005, seeds=3)
        anchors = table[(table["seed"] == 0) | table["rung"].isin([0, 3, 5])]
        one = fitted(anchors)
        assert one.df == 4 and one.trunk_sigma is not None and one.level_se is not None
        assert not arrange(anchors, deep="deep", wide="wide").is_complete


class TestLabels:
    """Families with equal aspect ratios, or without, enter by their names."""

    def test_without_aspect_ratios(self) -> None:
        table = study(6, level=-0.02, tau=0.005, sigma=0.005)
        labelled = fitted(table.drop(columns="aspect_ratio"))
        assert labelled.is_labelled and not labelled.is_curved
        assert values(labelled) == pytest.approx(values(fitted(table)), rel=1e-6)

    def test_a_third_family_adds_no_information(self) -> None:
        table = study(6, (24, 64, 192), tau=0.01, sigma=0.005).assign(aspect_ratio=64.0)
        pair = table[table["family"] != "aspect_64"]
        assert values(fitted(table)) == pytest.approx(values(fitted(pair)), rel=1e-9)


class TestRefusals:
    def test_one_token_budget_gives_a_level_only(self) -> None:
        one = fitted(study(6, level=-0.04, sigma=0.002, tau=0.002, budgets=(20,)))
        assert one.d_alpha is None and "single token budget" in " ".join(one.exponent_reasons)
        assert one.is_law_assumed and one.is_level_significant and one.kappa > 1  # type: ignore[operator]

    def test_three_rungs_give_no_exponent(self) -> None:
        one = fitted(study(3, (24, 64, 192), sigma=0.005))
        assert one.d_alpha is None and one.level is not None
        assert "3 sizes, at least 4 are needed" in " ".join(one.exponent_reasons)

    def test_too_few_degrees_of_freedom(self) -> None:
        one = fitted(study(2, sigma=0.005))
        assert one.refused and "degrees of freedom" in one.reasons[0]

    def test_no_common_block(self) -> None:
        table = study(6)
        table = table[(table["family"] == "deep") == (table["rung"] % 2 == 0)]
        one = fitted(table)
        assert not one.is_matched and one.refused and "1 degree of freedom" in one.reasons[0]


def test_unmatched_runs_share_no_blocks() -> None:
    table = study(8, (24, 64, 192), d_alpha=0.03, tau=0.002, sigma=0.002)
    shift = table["family"].map({"deep": 0.85, "wide": 1.2, "aspect_64": 1.0})
    for name in ("n_flop", "tokens"):
        table[name] *= shift
    table["flops"] = 6 * table["n_flop"] * table["tokens"]
    side = table["family"].map({"deep": 0.5, "wide": -0.5, "aspect_64": 0.0283})
    noise = np.random.default_rng(0).normal(0, 0.002, len(table))
    table["loss_nats_per_token"] = [
        loss_at(n, d, s, 0.0, 0.03)
        for n, d, s in zip(table["n_flop"], table["tokens"], side, strict=True)
    ] + noise
    one = fitted(table)
    assert not one.is_matched and one.d_alpha is not None
    assert one.d_alpha == pytest.approx(0.03, abs=3 * one.d_alpha_se)  # type: ignore[operator]


def test_each_compared_family_needs_four_sizes() -> None:
    """With two sizes of deep the difference of exponents would come from the third family."""
    table = study(8, (24, 64, 192), tau=0.004, sigma=0.004)
    few = table[(table["family"] != "deep") | table["rung"].isin([3, 7])]
    one = fitted(few)
    assert one.d_alpha is None and "deep: 2 sizes, at least 4 are needed" in one.exponent_reasons[0]
    assert one.level is not None
    assert not one.is_law_assumed  # all shapes together identify the common law
    shift = few["family"].map({"deep": 0.85, "wide": 1.2, "aspect_64": 1.0})
    unmatched = few.assign(n_flop=few["n_flop"] * shift, tokens=few["tokens"] * shift)
    unmatched = unmatched[(unmatched["family"] != "deep") | unmatched["rung"].isin([0, 7])]
    unmatched["flops"] = 6 * unmatched["n_flop"] * unmatched["tokens"]
    two = fitted(unmatched)
    assert not two.is_matched and two.d_alpha is None


def test_refits_for_large_differences_converge() -> None:
    """The stored left side gives the stored coefficients."""
    table = study(8, (24, 64, 192), level=-0.3, tau=0.002, sigma=0.002)
    effects = fitted(table).effects
    assert effects is not None
    fit = effects.fit
    assert 0.1 < fit.largest_q < 1
    assert fit.model.fit(fit.y).coef[0] == pytest.approx(fit.coef, rel=1e-9)


def test_rounded_aspect_ratios_of_two_unmatched_families_are_no_curvature() -> None:
    table = study(8, tau=0.002, sigma=0.002)
    shift = table["family"].map({"deep": 0.85, "wide": 1.2})
    table = table.assign(n_flop=table["n_flop"] * shift, tokens=table["tokens"] * shift)
    table["flops"] = 6 * table["n_flop"] * table["tokens"]
    table["aspect_ratio"] *= 1 + 0.15 * np.sin(table["rung"] * 2.0)
    one = fitted(table)
    assert not one.is_matched and not one.is_curved
    cloud = table.assign(aspect_ratio=table["aspect_ratio"] * np.where(table["rung"] % 2, 1, 2.5))
    assert fitted(cloud).is_curved


def test_unmatched_families_of_different_sizes_are_refused() -> None:
    table = study(8, (24, 64, 192))
    table["tokens"] *= table["family"].map({"deep": 0.9, "wide": 1.1, "aspect_64": 1.0})
    table["flops"] = 6 * table["n_flop"] * table["tokens"]
    common = fitted(table)
    assert not common.is_matched and not common.refused
    small = table["n_flop"] < table["n_flop"].median()
    one = fitted(table[(table["family"] != "deep") | small])
    assert one.refused and "overlap over" in one.reasons[0]
    assert one.level is None and one.d_alpha is None


def test_planned_precision_agrees_with_the_analysis() -> None:
    """SE of the plan = GLS covariance of the fit at the same variances."""
    table = study(6, (24, 64, 192), tau=0.01, sigma=0.005)
    blocks = arrange(table, deep="deep", wide="wide")
    law = PooledLaw(E, A, B, ALPHA, BETA)
    plan = planned_effects(blocks, law, np.full(len(blocks), 0.005), 0.01)
    fit = fit_runs(blocks, law=law)
    covariance = fit.model.covariance(0.005, 0.01)
    gap = blocks.u_deep - blocks.u_wide
    assert plan.covariance[1, 1] == pytest.approx(gap**2 * covariance[2, 2], rel=1e-9)
    assert plan.df == fit.df == 9
    drawn = [fitted(study(6, (24, 64, 192), tau=0.01, sigma=0.005, seed=s)) for s in range(40)]
    ratio = np.var([one.d_alpha for one in drawn]) / plan.covariance[1, 1]  # type: ignore[arg-type]
    low, high = stats.chi2.ppf([0.001, 0.999], 39) / 39
    assert low < ratio < high * 1.2


def test_planned_precision_has_effects_of_shapes_and_seeds() -> None:
    """Equal to GLS with the covariance of all runs written out."""
    blocks = arrange(study(5, (24, 64, 192), seeds=3), deep="deep", wide="wide")
    law, sigma, tau, trunk_sigma = PooledLaw(E, A, B, ALPHA, BETA), 0.005, 0.008, 0.012
    plan = planned_effects(blocks, law, np.full(len(blocks), sigma), tau, trunk_sigma)
    same_shape, same_trunk = (code[:, None] == code for code in (blocks.shape, blocks.trunk))
    noise = sigma**2 * np.eye(len(blocks)) + tau**2 * same_shape + trunk_sigma**2 * same_trunk
    columns = fit_runs(blocks, law=law).columns.design(blocks.u)
    indicator = (blocks.block[:, None] == np.arange(blocks.block.max() + 1)).astype(float)
    design = np.column_stack([columns, indicator])
    covariance = np.linalg.inv(design.T @ np.linalg.solve(noise, design))
    gap = blocks.u_deep - blocks.u_wide
    assert plan.covariance[1, 1] == pytest.approx(gap**2 * covariance[2, 2], rel=1e-8)
    without = planned_effects(blocks, law, np.full(len(blocks), sigma), tau)
    assert plan.covariance[1, 1] > 1.05 * without.covariance[1, 1]
