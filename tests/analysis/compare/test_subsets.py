"""Refits of the block model without other families and without shapes of one layer."""

from __future__ import annotations

import pandas as pd
import pytest

from analysis.compare.block_result import BlockResult
from analysis.compare.families import compare_families
from analysis.compare.fit_block import fit_block_model
from analysis.report import tables, text
from analysis.report.study_report import analyze_study
from analysis.runs.load import load_runs
from tests.conftest import ROOT
from tests.full_study import full_study

pytestmark = pytest.mark.numeric

CONTRAST = {"deep": "deep_thin", "wide": "wide_shallow"}


def estimates(block: BlockResult) -> list[float | None]:
    return [block.level, block.p_level, block.d_alpha, block.p_exponent]


def expected(table: pd.DataFrame) -> list[float | None]:
    return estimates(fit_block_model(table, **CONTRAST))


def test_subsets_are_fits_of_the_other_runs() -> None:
    table = full_study(alpha={"deep_thin": 0.02}, anchor_seeds=0)
    largest = table["n_flop"].max()
    table.loc[
        (table["family"] == "wide_shallow") & (table["n_flop"] < largest / 20), "n_layers"
    ] = 1
    found = compare_families(table, **CONTRAST, bootstrap=0).by_subset
    assert set(found) == {"without balanced", "without shapes of one layer"}
    without_family = table[table["family"] != "balanced"].reset_index(drop=True)
    without_layer = table[table["n_layers"] != 1].reset_index(drop=True)
    assert estimates(found["without balanced"]) == pytest.approx(expected(without_family))
    assert estimates(found["without shapes of one layer"]) == pytest.approx(expected(without_layer))


def test_two_families_of_deeper_shapes_have_no_subsets() -> None:
    table = full_study(families=tuple(CONTRAST.values()), anchor_seeds=0)
    assert not compare_families(table, **CONTRAST, bootstrap=0).by_subset
    table["n_layers"] = 1
    assert not compare_families(table, **CONTRAST, bootstrap=0).by_subset


def test_index_of_the_table_does_not_matter() -> None:
    table = full_study(anchor_seeds=0)
    table.loc[table["family"] == "wide_shallow", "n_layers"] = [1] * 6 + [3] * 18
    other = table.set_index(pd.Index(range(100, 100 + len(table))))
    first, second = (compare_families(t, **CONTRAST, bootstrap=0).by_subset for t in (table, other))
    assert list(first) == list(second) and "without shapes of one layer" in first
    for name, block in first.items():
        assert estimates(block) == pytest.approx(estimates(second[name]))


def test_report_names_the_runs_that_decide_the_significance() -> None:
    runs = load_runs(ROOT / "analysis" / "examples" / "micro" / "results.jsonl")
    report = analyze_study(runs, deep="aspect_4", wide="aspect_32", bootstrap=0)
    lines = [each for each in text.robustness_lines(report) if each.startswith("Refits that")]
    level, exponent = lines
    assert "the loss difference" in level and "without shapes of one layer" in level
    assert "the exponent difference is significant: without aspect_2.7" in exponent
    rows = {row["check"]: row for row in tables.robustness_rows(report)}
    assert rows["without shapes of one layer"]["p, loss"] == "0.033"
