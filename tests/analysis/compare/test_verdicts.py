"""The verdicts: each rule on a study made for it, and what is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

import analysis
from analysis.compare.block_result import BlockResult
from analysis.compare.families import Comparison, compare_families
from analysis.compare.fit_block import fit_block_model
from analysis.compare.holdout import HoldOut
from analysis.compare.robustness import WithoutOne, bootstrap_p, deletions, permutation_p
from analysis.compare.verdict import Evidence, decide
from analysis.formatting import count, format_p_value
from analysis.runs.study import Columns, prepare
from slm.errors import DataError
from tests.analysis.block.studies import loss_at, study

pytestmark = pytest.mark.numeric

LEVEL, EXPONENT = {"level": -0.08}, {"d_alpha": 0.08}
NOISE: dict[str, Any] = {"tau": 0.004, "sigma": 0.004, "seed": 1}


def compared(
    law: dict[str, float], rungs: int = 8, aspects: Any = (24, 192), **options: Any
) -> Comparison:
    return compare_families(study(rungs, aspects, **law, **NOISE), bootstrap=0, **options)


def test_each_truth_has_its_findings() -> None:
    level = compared(LEVEL)
    assert (level.verdict.word, level.verdict.level) == ("depth_level_better", "depth")
    assert level.verdict.exponent == "open" and "has the lower loss" in level.verdict.sentence
    exponent = compared(EXPONENT)
    assert exponent.verdict.exponent == "depth" and exponent.verdict.level == "depth"
    assert exponent.verdict.word == "depth_level_better"  # at the largest size deep is ahead
    assert "falls faster with size" in exponent.verdict.sentence
    crossing = compared({"level": 0.2, "d_alpha": 0.08})
    assert (crossing.verdict.level, crossing.verdict.exponent) == ("width", "depth")
    assert "opposite sides" in crossing.verdict.sentence
    null = compare_families(study(6, tau=0.01, sigma=0.005, seed=2), bootstrap=0)
    assert null.verdict.word == "inconclusive"
    assert "with a probability of 80%" in null.verdict.sentence


def test_wide_may_win_too() -> None:
    assert compared(LEVEL, deep="wide", wide="deep").verdict.word == "width_level_better"
    assert compared(EXPONENT, deep="wide", wide="deep").verdict.exponent == "width"


def test_no_difference_needs_equivalence_of_level_and_exponent() -> None:
    exact = {"tau": 0.0005, "sigma": 0.0005, "seed": 1}
    same = compare_families(study(8, **exact), bootstrap=0)
    assert same.verdict.word == "no_difference" and "equivalent" in same.verdict.sentence
    level = compare_families(study(8, level=-0.03, **exact), bootstrap=0)
    assert level.block.p_equal_exponents is not None and level.block.p_equal_exponents < 0.05
    assert level.verdict.word == "depth_level_better"
    noisy = compare_families(study(8, tau=0.01, sigma=0.005, seed=1), bootstrap=0)
    assert noisy.verdict.word == "inconclusive"


def block(**fields: Any) -> BlockResult:
    """A result with a significant level and exponent on the side of deep."""
    usual: dict[str, Any] = {
        "level": -0.02, "level_se": 0.004, "level_ci": (-0.03, -0.01), "p_level": 0.001, "p_f": 0.001,
        "d_alpha": 0.04, "d_alpha_se": 0.01, "d_alpha_ci": (0.02, 0.06), "p_exponent": 0.002, "df": 6,
        "ln_kappa": 0.1, "ln_kappa_ci": (0.05, 0.15), "at_flops": 1e18, "at_n": 1e8, "p_free_e": 0.5,
    }  # fmt: skip
    return BlockResult("deep", "wide", "n_flop", **(usual | fields))


class TestRules:
    def test_equal_e_rejected_leaves_the_exponent_open(self) -> None:
        found = decide(Evidence(block(p_free_e=0.01, free_e=0.03)))
        assert (found.level, found.exponent) == ("depth", "open")
        assert "equal E is rejected" in found.reasons[0]

    def test_another_sign_under_another_definition(self) -> None:
        other = BlockResult("deep", "wide", "params_non_embedding", d_alpha=-0.01)
        found = decide(Evidence(block(p_level=0.5), [other]))
        assert found.word == "definition_dependent" == found.exponent
        total = replace(other, n_name="params_total")
        assert decide(Evidence(block(p_level=0.5), [total])).exponent == "depth"

    def test_a_sign_that_hangs_on_one_shape_is_fragile(self) -> None:
        without = (WithoutOne("deep-5", 0.001, 0.03),)
        found = decide(Evidence(block(), without=without))
        assert (found.level, found.exponent, found.word) == (
            "fragile",
            "depth",
            "depth_exponent_better",
        )
        both = decide(Evidence(block(), without=(WithoutOne("deep-5", 0.001, -0.01),)))
        assert both.word == "fragile" and "without deep-5" in both.reasons[0]

    def test_a_fragile_level_is_named_and_is_no_finding(self) -> None:
        without = (WithoutOne("deep-5", 0.001, 0.03),)
        found = decide(Evidence(block(p_exponent=0.5), without=without))
        assert found.word == "fragile" and found.reasons == (
            "the loss difference changes sign without deep-5",
        )
        assert "without deep-5, so it is not a finding" in found.sentence

    def test_a_missing_check_without_embeddings_is_a_condition(self) -> None:
        missing = "not checked with N as params_non_embedding"
        other = replace(block(), n_name="params_non_embedding")
        for others, expected in (
            ([], True),
            ([replace(other, d_alpha=None)], True),
            ([other], False),
        ):
            found = decide(Evidence(block(), others))
            assert found.exponent == "depth"
            assert (missing in " ".join(found.conditions)) == expected
        assert missing not in " ".join(decide(Evidence(block(p_exponent=0.5))).conditions)

    def test_a_refused_exponent_never_blocks_a_level(self) -> None:
        found = decide(
            Evidence(block(d_alpha=None, p_exponent=None, exponent_reasons=("one budget",)))
        )
        assert (found.word, found.exponent) == ("depth_level_better", "refused")

    def test_conditions_are_named(self) -> None:
        hold_out = HoldOut(passed=False, reasons=("3 of 3 cells of deep are outside",))
        found = decide(Evidence(block(is_matched=False, largest_q=0.2), hold_out=hold_out))
        doubt = HoldOut(is_borderline=True, reasons=("1 to 2 of 3 cells of deep are outside",))
        conditions = " ".join(decide(Evidence(block(), hold_out=doubt)).conditions)
        assert "the largest size is borderline (1 to 2 of 3 cells" in conditions
        text = " ".join(found.conditions)
        for part in (
            "given equal E",
            "no learning-rate audit",
            "do not predict",
            "unmatched",
            "20% of the size",
            "two aspect ratios",
        ):
            assert part in text

    def test_a_failed_audit_comes_first(self) -> None:
        summary = {
            "deep": {"interior": True, "penalty": 0.0},
            "wide": {"interior": True, "penalty": 0.06},
        }
        found = compared(EXPONENT, audit=summary)
        assert found.verdict.word == "audit_failed"
        assert "of tuning, not of architecture" in found.verdict.sentence
        tuned = {name: {"interior": True, "penalty": 0.001} for name in ("deep", "wide")}
        assert compared(LEVEL, audit=tuned).verdict.word == "depth_level_better"
        assert "audit" not in " ".join(compared(LEVEL, audit=tuned).verdict.conditions)
        cells = {"cells": [{"n_flop": 1e7, "tokens": 1e9}]}
        partly = {name: summary | cells for name, summary in tuned.items()}
        conditions = compared(LEVEL, audit=partly).verdict.conditions
        assert any("audit is incomplete (deep: only one size" in one for one in conditions)

    def test_a_finding_that_no_deletion_can_check_has_a_condition(self) -> None:
        """With two families and four sizes every deletion leaves one degree of freedom."""
        few = compared({"level": -0.3, "d_alpha": 0.3}, 4)
        assert few.verdict.level == "depth" and few.robustness is not None
        assert not few.robustness.without
        assert any("is not checked without single shapes" in one for one in few.verdict.conditions)
        many = " ".join(compared(LEVEL, 8).verdict.conditions)
        assert "without single shapes" not in many


class TestRobustness:
    def test_deletions_equal_refits(self) -> None:
        table = study(6, (24, 64, 192), **NOISE)
        found = compare_families(table, bootstrap=0)
        assert found.robustness is not None and len(found.robustness.without) == 18
        name = found.robustness.without[0].name
        kept = table[table["family"] + " " + table["shape"] != name]
        again = compare_families(kept, bootstrap=0).block
        assert found.robustness.without[0].level == pytest.approx(again.level, abs=2e-5)
        assert found.robustness.without[0].d_alpha == pytest.approx(again.d_alpha, abs=2e-4)

    def test_the_level_without_a_shape_comes_from_the_model_of_the_level(self) -> None:
        """Equal E is clearly wrong, so the level is that of the model with E free."""
        table = study(8, (24, 64, 192), tau=0.001, sigma=0.001, seed=1)
        table["loss_nats_per_token"] += 0.05 * table["family"].map(
            {"deep": 1, "aspect_64": 0.057, "wide": -1}
        )
        found = compare_families(table, bootstrap=0)
        assert found.robustness is not None and found.block.level_effects is not None
        assert found.block.level_effects is not found.block.effects
        name = found.robustness.without[0].name
        kept = table[table["family"] + " " + table["shape"] != name]
        again = compare_families(kept, bootstrap=0).block
        assert again.level_effects is not again.effects
        assert found.robustness.without[0].level == pytest.approx(again.level, abs=2e-3)

    def test_two_families_lose_a_rung_at_a_time(self) -> None:
        effects = compared({}, 6).block.effects
        assert effects is not None
        assert [one.name for one in deletions(effects)] == [f"rung {r}" for r in range(6)]

    def test_p_values_by_resampling_follow_the_t_test(self) -> None:
        """Under the null all three are uniform; with a large effect all three are small."""
        null = compared({}, 6).block.effects
        assert null is not None and null.d_alpha is not None
        assert bootstrap_p(null, 999) == pytest.approx(null.d_alpha.p, abs=0.06)
        p, smallest = permutation_p(null)
        assert p == pytest.approx(null.d_alpha.p, abs=0.2) and smallest == 2 / 64
        clear = compared({"d_alpha": 0.1}, 8).block.effects
        assert clear is not None and bootstrap_p(clear, 999) < 0.01  # type: ignore[operator]
        assert permutation_p(clear)[0] <= 2 / 256  # type: ignore[operator]


def test_results_are_reached_and_serialised() -> None:
    found = compare_families(study(8, **EXPONENT, **NOISE), bootstrap=99)
    assert found.difference == pytest.approx(0.08, abs=0.02)
    assert set(found.estimates) == {"deep", "wide"} == set(found.intervals)
    assert found.exponents.interval is not None and found.exponents.standard_error is not None
    assert found.robustness is not None and found.robustness.permutation_p < 0.05  # type: ignore[operator]
    assert found.status == "OK" and found.runs == 48
    assert found.block.tau == pytest.approx(0.004, abs=0.004) and found.seed_sd is None
    saved = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert saved["verdict"]["exponent"] == "depth"
    for name in (
        "d_alpha",
        "d_alpha_se",
        "d_alpha_ci",
        "level",
        "level_se",
        "level_ci",
        "ln_kappa",
        "ln_kappa_se",
        "df",
        "sigma",
        "tau",
        "p_f",
    ):
        assert saved["block"][name] is not None
    assert "joint law M2" in found.summary()
    assert analysis.compare_families is compare_families


def test_columns_may_have_any_names() -> None:
    table = study(6, **EXPONENT, **NOISE)
    names = {
        "n_flop": "N",
        "tokens": "D",
        "loss_nats_per_token": "L",
        "family": "kind",
        "shape": "model",
    }
    found = compare_families(
        table.rename(columns=names), n_column="N", tokens_column="D", loss_column="L", family_column="kind",
        shape_column="model", bootstrap=0
    )  # fmt: skip
    expected = compare_families(table, bootstrap=0)
    assert found.difference == pytest.approx(expected.difference)
    assert found.block.p_level == pytest.approx(expected.block.p_level)


def test_the_level_is_at_equal_flops_under_every_definition_of_n() -> None:
    table = study(8, **LEVEL, **NOISE)
    deep = table["family"] == "deep"
    table["params_total"] = table["n_flop"] * np.where(deep, 1.3, 1.0)
    flops = compare_families(table, bootstrap=0).block
    total = compare_families(table, n_column="params_total", bootstrap=0)
    assert total.block.level == pytest.approx(flops.level) and total.block.kappa == pytest.approx(
        flops.kappa
    )
    assert set(total.by_definition) == {"params_total", "n_flop"}


def test_runs_that_share_a_token_grid_are_no_replicates() -> None:
    """Identical laws, all sizes at the same token counts: 6 shapes per family are 6 rungs, not 56 pairs."""
    significant = 0
    for seed in range(12):
        generator = np.random.default_rng(seed)
        rows = []
        for rung, n in enumerate(np.geomspace(1e7, 3.16e8, 6)):
            for family, aspect in (("deep", 24.0), ("wide", 192.0)):
                misfit = generator.normal(0, 0.01)
                for tokens in np.geomspace(2e8, 2e10, 9):
                    loss = loss_at(n, tokens, 0.0) + misfit + generator.normal(0, 0.002)
                    rows.append((family, f"{family}{rung}", n, tokens, aspect, loss))
        names = ["family", "shape", "n_flop", "tokens", "aspect_ratio", "loss_nats_per_token"]
        runs = prepare(
            pd.DataFrame(rows, columns=names), Columns(aspect="aspect_ratio"), None, None
        )
        found = fit_block_model(runs.table, deep="deep", wide="wide", n="n")
        assert found.df == 4
        significant += found.is_level_significant
    assert significant <= 3  # 4 or more have a probability below .003


def refused(table: pd.DataFrame, **options: Any) -> Comparison:
    found = compare_families(table, bootstrap=0, **options)
    assert found.verdict.word == "refused" and found.block.refused and found.difference is None
    json.dumps(found.to_dict(), allow_nan=False)
    return found


def test_what_the_design_forbids_is_refused() -> None:
    table = study(8, **EXPONENT, **NOISE)
    assert "one family" in refused(table[table["family"] == "deep"]).verdict.sentence
    assert "degrees of freedom" in refused(table[table["rung"] == 0]).verdict.sentence
    wide = table["family"] == "wide"
    strangers = table.assign(tokens=table["tokens"].where(~wide, table["tokens"] * 1.05))
    strangers["flops"] = 6 * strangers["n_flop"] * strangers["tokens"]
    assert not compare_families(strangers, bootstrap=0).block.is_matched


def test_a_family_that_is_a_size_ahead_does_not_refuse_the_rest() -> None:
    table = study(8, **LEVEL, **NOISE)
    partial = table[(table["family"] == "deep") | (table["rung"] < 6)]
    found = compare_families(partial, bootstrap=0)
    assert found.verdict.word == "depth_level_better"
    assert "6 runs" in " ".join(found.warnings)


def test_verdicts_of_noise_free_data_do_not_depend_on_rounding() -> None:
    for scale in (1.0, 1 + 1e-15):
        table = study(6)
        table["loss_nats_per_token"] *= scale
        found = compare_families(table, bootstrap=0)
        assert found.verdict.word == "no_difference" and found.block.p_level == pytest.approx(1)


def test_numbers_in_sentences() -> None:
    assert format_p_value(0.0004) == "p < .001" and format_p_value(0.0123, " = ") == "p = 0.012"
    assert count(1, "size") == "1 size" and count(0, "size") == "0 sizes"


def test_bad_tables_say_what_is_wrong() -> None:
    table = study(6, **NOISE)
    with pytest.raises(DataError, match="did you mean tokens"):
        compare_families(table, tokens_column="token")
    with pytest.raises(DataError, match="did you mean deep"):
        compare_families(table, deep="dep")
    with pytest.raises(DataError, match="pass two different families"):
        compare_families(table, deep="deep", wide="deep")
    plain = table.drop(columns="aspect_ratio")
    with pytest.raises(DataError, match="name them with --contrast DEEP,WIDE"):
        compare_families(plain.assign(family=table["family"].map({"deep": "a", "wide": "b"})))
    for bad in (math.nan, -1.0):
        broken = table.copy()
        broken.loc[3, "loss_nats_per_token"] = bad
        with pytest.raises(DataError, match="row 3"):
            compare_families(broken)
    with pytest.raises(DataError, match="perplexities"):
        compare_families(table.assign(loss_nats_per_token=table["loss_nats_per_token"] * 4))
    with pytest.raises(DataError, match="no runs"):
        compare_families(table.iloc[:0])
