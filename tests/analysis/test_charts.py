"""Charts of study reports: content, labels, tooltips, and studies that lack parts."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis import charts
from analysis.compare.block_result import BlockResult
from analysis.report.study_report import StudyReport, analyze_study
from slm.charts import LIGHT, Figure
from tests.full_study import full_study

pytestmark = pytest.mark.numeric

TWO = ("deep_thin", "wide_shallow")
SPECIAL = {"deep_thin": 'a"<b>&', "wide_shallow": "x.y[0]'\\"}


@pytest.fixture(scope="module")
def report() -> StudyReport:
    table = full_study(
        alpha={"deep_thin": 0.02, "wide_shallow": -0.02},
        sizes=np.geomspace(1e7, 3e8, 5),
        anchor_seeds=1,
    )
    return analyze_study(table, bootstrap=0)


def small(**options: Any) -> StudyReport:
    """Return the report of a study whose exponents are refused, which is fast."""
    return analyze_study(full_study(families=TWO, anchor_seeds=0, **options), bootstrap=0)


def values(figure: Figure) -> list[dict[str, Any]]:
    """Return all rows of data of a figure."""
    return [row for rows in figure.spec().get("datasets", {}).values() for row in rows]


def tips(figure: Figure | None) -> list[dict[str, str]]:
    """Return the tooltips of all marks of a figure: title -> text."""
    assert figure is not None
    spec = figure.spec()
    found = []
    pending = [spec]
    while pending:
        view = pending.pop()
        shared = {"data": view["data"]} if "data" in view else {}
        pending += [shared | layer for layer in view.get("layer", [])]
        columns = {
            tip["title"]: tip["field"] for tip in view.get("encoding", {}).get("tooltip", ())
        }
        rows = spec["datasets"][view["data"]["name"]] if columns else []
        found += [{title: row[field] for title, field in columns.items()} for row in rows]
    return found


def drawn(figure: Figure, folder: Path) -> str:
    """Return the figure as SVG."""
    figure.save(folder / "chart.svg")
    return (folder / "chart.svg").read_text()


def axis_titles(spec: Any) -> set[str]:
    """Return the titles of all encodings of x and y."""
    if isinstance(spec, list):
        return set().union(*map(axis_titles, spec))
    if not isinstance(spec, dict):
        return set()
    own = {
        spec[axis]["title"]
        for axis in "xy"
        if isinstance(spec.get(axis), dict) and spec[axis].get("title")
    }
    return own.union(*map(axis_titles, spec.values()))


def test_charts_have_titles_captions_and_theme_colours(report: StudyReport) -> None:
    for figure in charts.report_figures(report):
        spec = figure.spec()
        used = set(re.findall(r"var\(--([\w-]+)\)", json.dumps(spec)))
        assert used <= LIGHT.keys() and axis_titles(spec) and figure.title and figure.caption
        assert "D/N" not in json.dumps(spec) + figure.caption


def test_every_run_has_a_tooltip_with_its_id_and_settings(report: StudyReport) -> None:
    for figure in (charts.loss_against_flops(report), charts.residuals(report)):
        assert figure is not None
        runs = {tip["run id"]: tip for tip in tips(figure) if "run id" in tip}
        assert set(runs) == set(report.table["run_id"])
        first = report.table.iloc[0]
        tip = runs[first["run_id"]]
        assert tip["shape"] == first["shape"] and tip["seed"] == str(first["seed"])
        assert tip["loss (nats/token)"] == f"{first['loss_nats_per_token']:.4f}"


def test_loss_chart_draws_the_law_the_band_and_the_names_of_token_budgets(
    report: StudyReport, tmp_path: Path
) -> None:
    svg = drawn(charts.loss_against_flops(report), tmp_path)
    curves = len(report.curves)
    assert curves == 9 and {curve.family for curve in report.curves} == set(report.families)
    assert svg.count('aria-roledescription="line mark"') == curves
    assert svg.count('aria-roledescription="area mark"') == curves
    assert svg.count('aria-roledescription="point"') == len(report.table)
    for text in ("tokens_per_param 8<", ">24<", ">72<", "training FLOPs", "loss (nats/token)"):
        assert text in svg
    assert all(f">{family}<" in svg for family in report.families)


def test_level_chart_has_the_band_the_pairs_and_the_estimate(
    report: StudyReport, tmp_path: Path
) -> None:
    figure, block = charts.level(report), report.comparison.block
    assert figure is not None and report.comparison.matched is not None
    pairs = report.comparison.matched.pairs
    shown = [tip for tip in tips(figure) if "loss, deep" in tip]
    name = "difference at equal FLOPs (nats/token)"
    assert sorted(tip[name] for tip in shown) == sorted(
        f"{value:+.4f}" for value in pairs["difference_at_equal_flops"]
    )
    assert block.level_text in {tip.get("difference [95% CI]") for tip in tips(figure)}
    svg = drawn(figure, tmp_path)
    assert svg.count('aria-roledescription="area mark"') == 1
    assert "deep_thin better" in svg and "wide_shallow better" in svg and ">0.00<" in svg


def test_exponent_chart_matches_the_report(report: StudyReport) -> None:
    figure, block = charts.exponent_difference(report), report.comparison.block
    assert figure is not None
    marks = {row["row"]: row["x"] for row in values(figure) if row.get("fill")}
    assert marks["block model"] == pytest.approx(block.d_alpha, rel=1e-6)
    assert marks["E free in each family"] == pytest.approx(block.d_alpha_free_e, rel=1e-6)
    joint = report.comparison.exponents.difference
    assert marks["joint law M2, jackknife"] == pytest.approx(joint, rel=1e-6)
    assert {"N = non-embedding", "N = all parameters", "noise as N^0.35"} < set(marks)


def test_influence_shows_the_largest_changes_first(report: StudyReport) -> None:
    found = report.comparison
    assert found.robustness is not None and found.block.level is not None
    figure = charts.influence(report, "level")
    assert figure is not None
    rows = [row["row"] for row in values(figure) if "fill" in row]
    changes = {one.name: abs(one.level - found.block.level) for one in found.robustness.without}
    assert rows[0] == "all shapes" and len(rows) == 13 < len(changes)
    assert changes[rows[1]] == pytest.approx(max(changes.values()), rel=1e-6)


@pytest.mark.parametrize("budgets", [(8.0,), tuple(2.0**k for k in range(1, 11))])
def test_one_and_ten_token_budgets(budgets: tuple[float, ...], tmp_path: Path) -> None:
    one = small(tokens_per_param=budgets, sizes=(1e7, 2e7, 5e7, 1e8))
    for figure in charts.report_figures(one):
        assert "NaN" not in drawn(figure, tmp_path)
    loss, level = charts.loss_against_flops(one), charts.level(one)
    assert level is not None
    assert ("tokens_per_param 8<" in drawn(loss, tmp_path)) == (len(budgets) == 1)
    names = {tip["tokens_per_param"] for tip in tips(level) if "loss, deep" in tip}
    assert len(names) == len(budgets)


def test_one_run_has_a_chart(tmp_path: Path) -> None:
    one = analyze_study(full_study(families=TWO).head(1))
    figures = charts.report_figures(one)
    assert [figure.name for figure in figures] == ["loss_against_flops"]
    svg = drawn(figures[0], tmp_path)
    assert svg.count('aria-roledescription="point"') == 1 and "NaN" not in svg


def test_wide_bands_are_cut_at_the_axis(tmp_path: Path) -> None:
    one = small(sizes=(1e7, 3e7, 6e7, 1e8))
    wide = tuple(row | {"low": -1e9, "high": 1e9} for row in one.comparison.block.curve)
    block = replace(one.comparison.block, curve=wide)
    figure = charts.level(replace(one, comparison=replace(one.comparison, block=block)))
    assert figure is not None and len(wide) > 1
    assert max(row["high"] for row in values(figure) if "high" in row) < 1
    svg = drawn(figure, tmp_path)
    assert "NaN" not in svg and "Infinity" not in svg


def test_family_names_with_special_characters(tmp_path: Path) -> None:
    table = full_study(families=TWO, anchor_seeds=0, sizes=(1e7, 3e7, 1e8)).replace(
        {"family": SPECIAL}
    )
    deep, wide = SPECIAL["deep_thin"], SPECIAL["wide_shallow"]
    one = analyze_study(table, deep=deep, wide=wide, bootstrap=0)
    for figure in charts.report_figures(one):
        assert "<b>" not in drawn(figure, tmp_path)
    svg = drawn(charts.loss_against_flops(one), tmp_path)
    assert svg.count('aria-roledescription="point"') == len(table)


def test_shape_curve_shows_every_shape_and_the_best_aspect_ratios(report: StudyReport) -> None:
    figure, block = charts.shape_curve(report), report.comparison.block
    assert figure is not None
    shapes = report.table.groupby(["family", "shape"]).ngroups
    assert len({tip["shape"] for tip in tips(figure) if "shape" in tip}) == shapes
    bounds = {"best_aspect": 60.0, "low": 40.0, "high": 90.0}
    optima = tuple(row | bounds for row in block.optima)
    with_optima = replace(report.comparison, block=replace(block, optima=optima))
    figure = charts.shape_curve(replace(report, comparison=with_optima))
    best = [tip for tip in tips(figure) if "best d_model / n_layers" in tip]
    assert {tip["best d_model / n_layers"] for tip in best} == {"60 [40, 90]"}
    assert charts.shape_curve(small(sizes=(1e7, 3e7, 6e7, 1e8))) is None  # two aspect ratios


def test_overview_has_both_panels(report: StudyReport, tmp_path: Path) -> None:
    charts.overview(report).save(tmp_path / "overview.png", titled=False)
    assert (tmp_path / "overview.png").stat().st_size > 30_000
    assert len(charts.overview(report).spec()["concat"]) == 2
    refused = replace(report.comparison, matched=None, block=BlockResult("a", "b", "n_flop"))
    single = replace(report, comparison=refused)
    assert len(charts.overview(single).spec()["concat"]) == 1


def test_peak_learning_rate_is_in_the_tooltip_if_known(report: StudyReport) -> None:
    table = report.table.assign(peak_lr=2e-3)
    shown = tips(charts.loss_against_flops(replace(report, table=pd.DataFrame(table))))
    assert {tip["peak learning rate"] for tip in shown} == {"0.002"}
