"""Printed summaries and notebook tables of every public result object."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
from typing import Any

import numpy as np
import pandas as pd
import pytest

import analysis
from analysis import fit_joint, fit_power_law, load_runs, power
from analysis.design.linear import Design
from analysis.fit.isoflop import fit_isoflop
from analysis.learning_rate.audit import audit_learning_rates, parse_audit
from analysis.learning_rate.transfer import curves
from analysis.report.power_of_study import design_of
from analysis.report.study_report import StudyReport, analyze_study
from analysis.runs.study import Columns, prepare
from slm.evaluation.perplexity import Score
from slm.summary import MAX_LINES, Readable
from slm.tracking.results_file import read_results
from tests.analysis.report.test_report import MICRO, SHIPPED
from tests.full_study import full_study

HOSTILE = "<b>deep</b> & thin"


def parts(result: Any) -> list[Readable]:
    """Return a result and all results inside it."""
    if isinstance(result, dict):
        return [inner for value in result.values() for inner in parts(value)]
    if isinstance(result, (list, tuple)):
        return [inner for value in result for inner in parts(value)]
    if not dataclasses.is_dataclass(result):
        return []
    inner = [getattr(result, field.name) for field in dataclasses.fields(result)]
    own = [result] if isinstance(result, Readable) else []
    return [*own, *(one for value in inner for one in parts(value))]


@pytest.fixture(scope="module")
def identified() -> StudyReport:
    table = full_study(alpha={"deep_thin": 0.02, "wide_shallow": -0.02}, anchor_seeds=1)
    audit = {name: {"interior": True, "penalty": 0.001} for name in ("deep_thin", "wide_shallow")}
    return analyze_study(table, audit=audit, bootstrap=99)


@pytest.fixture(scope="module")
def unidentified() -> StudyReport:
    return analyze_study(load_runs(SHIPPED / "aa.jsonl"), bootstrap=0)


@pytest.fixture(scope="module")
def refused() -> StudyReport:
    table = full_study(families=("deep_thin", "wide_shallow"), tokens_per_param=(8.0,))
    return analyze_study(table, bootstrap=0)


@pytest.fixture(scope="module")
def one_family() -> StudyReport:
    return analyze_study(full_study(families=("balanced",)), bootstrap=0)


@pytest.fixture(scope="module")
def hostile() -> StudyReport:
    table = full_study(families=("deep_thin", "wide_shallow")).replace(
        {"family": {"deep_thin": HOSTILE}}
    )
    return analyze_study(table, deep=HOSTILE, wide="wide_shallow", bootstrap=0)


REPORTS = ("identified", "unidentified", "refused", "one_family", "hostile")


@pytest.mark.parametrize("name", REPORTS)
def test_every_part_of_a_report_prints_and_has_html(
    name: str, request: pytest.FixtureRequest
) -> None:
    found = parts(request.getfixturevalue(name))
    kinds = {type(one).__name__ for one in found}
    assert {"StudyReport", "Comparison", "Verdict", "ExponentDifference", "HoldOut"} <= kinds
    for one in found:
        text = repr(one)
        assert str(one) == text and 1 <= len(text.splitlines()) <= MAX_LINES
        assert text.startswith(one.title()) and "object at 0x" not in text and "array(" not in text
        html = one._repr_html_()
        assert "<b>" not in html
        for row in one.rows():
            assert all(isinstance(cell, str) for cell in row.values())
            assert list(row) == list(one.rows()[0])


def test_html_escapes_names(hostile: StudyReport) -> None:
    assert hostile.power is not None
    found = hostile.comparison
    for result in (hostile, found, found.block, found.matched, hostile.power.design):
        assert result is not None
        assert "&lt;b&gt;deep&lt;/b&gt; &amp; thin" in result._repr_html_()


def test_summary_of_a_comparison_has_estimates_intervals_and_statuses(
    identified: StudyReport,
) -> None:
    found = identified.comparison
    text, block = found.summary(), found.block
    for expected in (
        "depth_level_better",
        f"{block.level_text}, p < .001",
        f"{block.kappa:.3f} [",
        f"{block.d_alpha:+.4f} [",
        "N = n_flop",
        "hold-out of the largest size: passed",
        "learning-rate audit: passed",
        "condition: the exponents are compared given equal E",
    ):
        assert expected in text
    assert found.robustness is not None and "p 0." in repr(found.robustness)
    one = found.exponents
    assert "OK" in repr(one) and f"{one.alpha['deep_thin']:.4f} [" in repr(one)
    assert identified.power is not None
    design = identified.power.design
    assert f"MDE (80% power) {design.mde80_exponent:.4f}" in repr(design)


def test_summaries_of_an_unidentified_study_give_ranges_only(unidentified: StudyReport) -> None:
    one = unidentified.comparison.exponents
    assert one.status == "UNIDENTIFIED" and one.difference is not None and one.fit is not None
    for result in (unidentified, unidentified.comparison, one, one.fit):
        shown = result.summary() + result._repr_html_()
        assert "UNIDENTIFIED" in shown and "accepted" in shown
        assert f"{abs(one.difference):.4f}" not in shown
        assert all(f"{alpha:.4f}" not in shown for alpha in one.alpha.values())


def test_summaries_of_a_refused_study_name_the_reason(refused: StudyReport) -> None:
    assert refused.power is not None
    for result in (refused.comparison.exponents, refused.power.design):
        assert "REFUSED" in repr(result) and "single token budget" in repr(result)
    assert "exponent refused" in refused.comparison.summary()


def test_summary_of_runs() -> None:
    runs = load_runs(MICRO)
    text = repr(runs)
    assert f"{len(runs.table)} finished runs" in text and "left out: " in text
    assert all(family in text for family in runs.families) and "nats/token" in text
    assert [row["family"] for row in runs.rows()] == list(runs.table["family"].unique())


def test_summaries_of_fits() -> None:
    table = full_study()
    columns = table["n_flop"], table["tokens"], table["loss_nats_per_token"]
    fit = fit_joint(*columns, list(table["family"]), "M4", cluster=list(table["shape"]))
    text = repr(fit)
    assert f"joint law M4, lsq, {len(table)} runs: {fit.status}" in text and " E" in text
    assert len(text.splitlines()) <= MAX_LINES < len(fit.summary().splitlines())
    assert "more lines in .summary()" in text
    refused = fit_joint(*(column[:2] for column in columns))
    assert "REFUSED" in repr(refused) and "reason: " in repr(refused)
    n = np.geomspace(1e6, 1e8, 8)
    line = fit_power_law(n, 400 * n**-0.3)
    assert "8 runs" in repr(line) and "alpha [95% CI]: 0.3000 [" in repr(line)
    assert "REFUSED" in repr(fit_power_law(n[:1], [3.0]))
    flops = np.repeat(np.geomspace(1e17, 1e20, 6), 9)
    best = 0.13 * flops**0.48
    sizes = best * np.tile(np.geomspace(1 / 3, 3, 9), 6)
    found = fit_isoflop(sizes, flops, 2 + np.log(sizes / best) ** 2 + 1e3 * flops**-0.3)
    assert f"6 compute budgets: {found.status}" in repr(found)
    assert "exponent [95% CI]: 0.4800" in repr(found) and len(found.rows()) == 6


def test_summaries_of_learning_rate_results() -> None:
    rows = [
        {"family": family, "shape": "L2-d32", "n_layers": 2, "d_model": 32, "parametrization": "mup",
         "peak_lr": lr, "loss_nats_per_token": 3 + 0.1 * np.log(lr / 0.01) ** 2}
        for family in ("deep", "wide")
        for lr in (0.0025, 0.005, 0.01, 0.02)
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    audit = audit_learning_rates(table)
    assert "2 families: passed" in repr(audit) and "1.00e-02" in audit._repr_html_()
    failed = parse_audit({HOSTILE: {"interior": False, "penalty": None}})
    assert failed is not None and "FAILED" in repr(failed) and "<b>" not in failed._repr_html_()
    assert "best learning rate 1.00e-02" in repr(curves(table)[0])


def test_summaries_of_designs() -> None:
    table = full_study(families=("deep_thin", "wide_shallow"))
    design = design_of(prepare(table, Columns(), "deep_thin", "wide_shallow").table)
    assert f"{len(table)} runs, 2 families" in repr(design) and len(design.rows()) == 2
    bare = power.design_power(
        Design(["deep"], ["s"], ["x"], [1.0], [1.0], [0], [6.0], [1.0]), "deep", "wide"
    )
    assert "REFUSED" in repr(bare) and bare.rows() == []


def test_summaries_of_slm_results() -> None:
    result = next(iter(read_results(MICRO).values()))
    text = repr(result)
    assert result.run_id in text and result.status in text and "nats/token" in text
    score = Score("wiki", 1000, 4000, 3000.0)
    assert (
        repr(score)
        == "wiki: 3.0000 nats/token, perplexity 20.09, 1.0820 bits/byte over 1,000 tokens"
    )
    assert "nan" in repr(Score("empty", 0, 0, 0.0))


def test_result_classes_do_not_generate_another_repr() -> None:
    """A dataclass without repr=False replaces the summary by its fields."""
    for module in pkgutil.walk_packages(analysis.__path__, "analysis."):
        if ".notebooks" not in module.name and not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    pending, classes = [Readable], []
    while pending:
        children = pending.pop().__subclasses__()
        classes += children
        pending += children
    assert len(classes) >= 20
    for one in classes:
        assert one.__repr__ is Readable.__repr__, one
        assert inspect.isfunction(one.title)
