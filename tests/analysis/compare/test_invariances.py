"""Properties of a comparison for random studies: what must not change it, and what must change its sign only."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from analysis.compare.families import Comparison, compare_families
from tests.analysis.block.studies import study

pytestmark = pytest.mark.numeric

SIGNED = ("level", "d_alpha", "ln_kappa")
UNSIGNED = (
    "level_se",
    "d_alpha_se",
    "ln_kappa_se",
    "p_level",
    "p_exponent",
    "p_f",
    "sigma",
    "tau",
    "alpha",
    "beta",
)
OPPOSITE = {
    "depth_level_better": "width_level_better", "width_level_better": "depth_level_better",
    "depth_exponent_better": "width_exponent_better", "width_exponent_better": "depth_exponent_better",
}  # fmt: skip
NAMES = st.text("abcXYZ -_|19é", min_size=1, max_size=6).map(str.strip).filter(bool)


@st.composite
def studies(draw: Any) -> pd.DataFrame:
    return study(
        draw(st.integers(4, 7)),
        level=draw(st.sampled_from([-0.05, 0.0, 0.05])),
        d_alpha=draw(st.sampled_from([-0.05, 0.0, 0.05])),
        tau=draw(st.sampled_from([0.0, 0.005])),
        sigma=draw(st.sampled_from([0.002, 0.01])),
        budgets=draw(st.sampled_from([(5.0, 80.0), (5.0, 20.0, 80.0)])),
        seed=draw(st.integers(0, 999)),
    )


def compare(table: pd.DataFrame, deep: str = "deep", wide: str = "wide") -> Comparison:
    return compare_families(table, deep=deep, wide=wide, bootstrap=0)


def assert_equal(ours: Comparison, theirs: Comparison, sign: int = 1) -> None:
    word = ours.verdict.word if sign == 1 else OPPOSITE.get(ours.verdict.word, ours.verdict.word)
    assert theirs.verdict.word == word
    for name in (*SIGNED, *UNSIGNED):
        a, b = (getattr(one.block, name) for one in (ours, theirs))
        assert (a is None) == (b is None), name
        if a is not None:
            factor = sign if name in SIGNED else 1
            assert b == pytest.approx(factor * a, rel=1e-6, abs=1e-9), name


@pytest.mark.parametrize(
    "examples", [pytest.param(4, id="4"), pytest.param(60, id="60", marks=pytest.mark.slow)]
)
def test_order_names_and_sides(examples: int) -> None:
    @settings(
        max_examples=examples, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck), phases=[Phase.generate],
    )  # fmt: skip
    @given(studies(), st.integers(0, 99), NAMES, NAMES)
    def run(table: pd.DataFrame, order: int, deep: str, wide: str) -> None:
        ours = compare(table)
        assert_equal(ours, compare(table.sample(frac=1, random_state=order)))
        if deep != wide:
            renamed = table.assign(
                family=table["family"].map({"deep": deep, "wide": wide}),
                shape=[f"{deep} {shape}" for shape in table["shape"]],
            )
            assert_equal(ours, compare(renamed, deep, wide))
        assert_equal(ours, compare(table, "wide", "deep"), sign=-1)
        # Another unit of tokens and FLOPs moves B and the budgets, and no difference between families.
        factor = float(np.float64(2.0) ** (order % 5 - 2))
        scaled = table.assign(tokens=table["tokens"] * factor, flops=table["flops"] * factor)
        theirs = compare(scaled)
        assert theirs.block.level == pytest.approx(ours.block.level, rel=1e-5, abs=1e-8)

    run()
