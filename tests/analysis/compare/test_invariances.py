"""Properties of a comparison for random studies: what must not change it, and what must change its sign only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from analysis.compare.families import Comparison, compare_families
from analysis.report.study_report import analyze_study
from analysis.report.write import markdown, results
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
SIDES: dict[str, str] = {"depth": "width", "width": "depth"}
FORMS: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
    "other order of columns, one index label": lambda table: table[table.columns[::-1]].set_index(
        np.zeros(len(table), int)
    ),
    "categories, index of texts": lambda table: table.astype(
        dict.fromkeys(("family", "shape", "rung", "seed"), "category")
    ).set_index(table["shape"] + "/"),
    "objects": lambda table: table.astype(object),
    "pyarrow": lambda table: table.convert_dtypes(dtype_backend="pyarrow"),
}
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
    mine, other = ours.verdict, theirs.verdict
    findings = [mine.level, mine.exponent]
    if sign == -1:
        findings = [SIDES.get(finding, finding) for finding in findings]
    assert other.word == (mine.word if sign == 1 else OPPOSITE.get(mine.word, mine.word))
    assert [other.level, other.exponent] == findings
    assert len(other.conditions) == len(mine.conditions)
    assert theirs.hold_out.status == ours.hold_out.status and theirs.status == ours.status
    for name in (*SIGNED, *UNSIGNED):
        a, b = (getattr(one.block, name) for one in (ours, theirs))
        assert (a is None) == (b is None), name
        if a is not None:
            factor = sign if name in SIGNED else 1
            assert b == pytest.approx(factor * a, rel=1e-6, abs=1e-9), name


@pytest.mark.parametrize(
    "examples", [pytest.param(4, id="4"), pytest.param(100, id="100", marks=pytest.mark.slow)]
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
        # Another unit of N and tokens moves A, B and the budgets, and nothing else.
        n_unit, tokens_unit = 2.0 ** (order % 3 - 1), 2.0 ** (order % 5 - 2)
        scaled = table.assign(
            n_flop=table["n_flop"] * n_unit,
            tokens=table["tokens"] * tokens_unit,
            flops=table["flops"] * n_unit * tokens_unit,
        )
        assert_equal(ours, compare(scaled))

    run()


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return study(5, level=0.05, tau=0.004, sigma=0.003, seeds=2, budgets=(5.0, 80.0), seed=4)


@pytest.fixture(scope="module")
def compared(table: pd.DataFrame) -> Comparison:
    return compare(table)


@pytest.mark.parametrize("form", FORMS)
def test_types_index_and_order_of_columns(
    table: pd.DataFrame, compared: Comparison, form: str
) -> None:
    assert_equal(compared, compare(FORMS[form](table)))


def results_and_text(table: pd.DataFrame, deep: str, wide: str) -> tuple[dict[str, Any], str]:
    """Return the content of results.json and of report.md."""
    report = analyze_study(table, deep=deep, wide=wide, bootstrap=19)
    return results(report), markdown(report)


def test_a_report_with_other_names_and_rows_differs_in_the_names_only(table: pd.DataFrame) -> None:
    table = table.assign(run_id=[f"run{row}" for row in range(len(table))])
    renamed = table.assign(
        family=table["family"].map({"deep": "<z>", "wide": "<a>"}),
        run_id=[f"{1000 - row}" for row in range(len(table))],
    )
    ours = results_and_text(table, "deep", "wide")[1]
    theirs = results_and_text(renamed.sample(frac=1, random_state=1), "<z>", "<a>")[1]
    assert theirs.replace("<z>", "deep").replace("<a>", "wide") == ours


def test_a_report_with_swapped_sides_names_the_same_better_family(table: pd.DataFrame) -> None:
    names = {"deep": "red", "wide": "blue"}  # so that the words of the verdict are no names
    table = table.drop(columns="aspect_ratio").assign(family=table["family"].map(names))
    ours, our_text = results_and_text(table, "red", "blue")
    theirs, their_text = results_and_text(table, "blue", "red")
    assert ours["comparison"]["verdict"]["word"] == "width_level_better"
    assert theirs["comparison"]["verdict"]["word"] == "depth_level_better"
    assert theirs["headline"] == ours["headline"] and "blue" in ours["headline"].split("red")[0]
    assert "red has the higher loss: red minus blue is +" in ours["findings"][0]
    assert "blue has the lower loss: blue minus red is -" in theirs["findings"][0]
    assert our_text.count("in favour of blue") == their_text.count("in favour of blue") > 0
    assert "in favour of red" not in our_text + their_text
    for key in ("conditions", "warnings", "dropped", "runs"):
        assert theirs[key] == ours[key]
    for name, sign in {**dict.fromkeys(SIGNED, -1), **dict.fromkeys(UNSIGNED, 1)}.items():
        a, b = (one["comparison"]["block"][name] for one in (ours, theirs))
        assert b == pytest.approx(sign * a, rel=1e-6, abs=1e-9), name
