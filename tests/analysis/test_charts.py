"""Charts of study reports: content, labels, tooltips, and studies that lack parts."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from analysis.compare.aspect_ratio import RungCurve, ShapeCurve
from analysis.compare.compute_multiplier import Kappa

from analysis import charts
from analysis.fit.isoflop import IsoFlop, Parabola
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


def tips(figure: Figure) -> list[dict[str, str]]:
    """Return the tooltips of all marks of a figure: title -> text."""
    spec = figure.spec()
    found = []
    pending = [spec]
    while pending:
        view = pending.pop()
        pending += view.get("layer", [])
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


def test_report_has_all_figures_in_the_order_of_its_sections(report: StudyReport) -> None:
    figures = charts.report_figures(report)
    assert [figure.name for figure in figures] == [
        "loss_against_flops", "differences", "compute_multiplier", "shape_curve", "alphas",
        "exponent_difference", "residuals", "hold_out",
    ]  # fmt: skip
    for figure in figures:
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
    assert curves == 9
    assert svg.count('aria-roledescription="line mark"') == curves
    assert svg.count('aria-roledescription="area mark"') == curves
    assert svg.count('aria-roledescription="point"') == len(report.table)
    for text in ("tokens_per_param 8<", ">24<", ">72<", "training FLOPs", "loss (nats/token)"):
        assert text in svg
    assert all(f">{family}<" in svg for family in report.families)


def test_differences_have_a_zero_rule_both_sides_and_intervals(
    report: StudyReport, tmp_path: Path
) -> None:
    figure = charts.differences(report)
    assert figure is not None and report.comparison.matched is not None
    summary = report.comparison.matched.summary
    estimates = {tip["difference [95% CI]"] for tip in tips(figure) if "p value (Holm)" in tip}
    assert estimates == {
        f"{row.largest:+.4f} [{row.largest_low:+.4f}, {row.largest_high:+.4f}]"
        for row in summary.itertuples()
    }
    svg = drawn(figure, tmp_path)
    assert "deep_thin better" in svg and "wide_shallow better" in svg and ">0.00<" in svg


def test_exponents_match_the_report(report: StudyReport) -> None:
    alphas, difference = charts.alphas(report), charts.exponent_difference(report)
    assert alphas is not None and difference is not None
    exponents = report.comparison.exponents
    marks = {row["row"]: row["x"] for row in values(alphas) if row.get("fill")}
    assert marks == pytest.approx(exponents.alpha, rel=1e-6)
    first = values(difference)
    shown = next(row for row in first if row.get("row") == "n_flop" and "fill" in row)
    assert shown["x"] == pytest.approx(exponents.difference, rel=1e-6)
    rows = {row["row"] for row in first if "row" in row}
    assert {"n_flop", "non-embedding", "all parameters", "profile likelihood"} < rows


def test_unidentified_exponents_are_ranges_without_an_estimate(
    report: StudyReport, tmp_path: Path
) -> None:
    exponents = replace(report.comparison.exponents, status="UNIDENTIFIED")
    comparison = replace(report.comparison, exponents=exponents)
    unidentified = replace(report, comparison=comparison)
    figure = charts.alphas(unidentified)
    assert figure is not None and charts.exponent_difference(unidentified) is None
    svg = drawn(figure, tmp_path)
    assert 'aria-roledescription="point"' not in svg
    assert svg.count('stroke-dasharray="3,4"') == len(report.families)
    assert "UNIDENTIFIED" in figure.caption


@pytest.mark.parametrize("budgets", [(8.0,), tuple(2.0**k for k in range(1, 11))])
def test_one_and_ten_token_budgets(budgets: tuple[float, ...], tmp_path: Path) -> None:
    one = small(tokens_per_param=budgets, sizes=(1e7, 3e7, 1e8))
    for figure in charts.report_figures(one):
        assert "NaN" not in drawn(figure, tmp_path)
    loss, differences = charts.loss_against_flops(one), charts.differences(one)
    assert differences is not None
    assert ("tokens_per_param 8<" in drawn(loss, tmp_path)) == (len(budgets) == 1)
    names = {tip["tokens_per_param"] for tip in tips(differences) if "size" in tip}
    assert len(names) == len(budgets)


def test_one_run_has_a_chart(tmp_path: Path) -> None:
    one = analyze_study(full_study(families=TWO).head(1))
    figures = charts.report_figures(one)
    assert [figure.name for figure in figures] == ["loss_against_flops"]
    svg = drawn(figures[0], tmp_path)
    assert svg.count('aria-roledescription="point"') == 1 and "NaN" not in svg


def test_infinite_and_undefined_intervals_are_cut_at_the_axis(tmp_path: Path) -> None:
    one = small(sizes=(1e7, 3e7, 1e8))
    matched = one.comparison.matched
    assert matched is not None
    summary = matched.summary.copy()
    summary.loc[0, ["largest_low", "largest_high"]] = [-1e9, 1e9]
    summary.loc[1, ["largest_low", "largest_high"]] = [math.nan, math.nan]
    comparison = replace(one.comparison, matched=replace(matched, summary=summary))
    figure = charts.differences(replace(one, comparison=comparison))
    assert figure is not None
    ends = {row["high"] for row in values(figure) if "high" in row}
    assert len(ends) == 2 and max(ends) < 1
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


def test_compute_multiplier_with_and_without_a_law(report: StudyReport) -> None:
    kappa = report.comparison.kappa
    assert isinstance(kappa, Kappa) and kappa.interval is not None
    with_law = charts.compute_multiplier(report)
    bare = replace(kappa, by_law=None, interval=None, drift=None)
    without = charts.compute_multiplier(
        replace(report, comparison=replace(report.comparison, kappa=bare))
    )
    assert with_law is not None and without is not None
    assert "joint law" in with_law.caption and "joint law" not in without.caption
    assert len({tip["loss (nats/token)"] for tip in tips(without)}) == len(kappa.values)


def test_shape_curve_marks_the_best_aspect_ratio_only_if_it_lies_inside(
    report: StudyReport,
) -> None:
    rungs = tuple(
        RungCurve(str(rung), 8.0, 1e16 * 10**rung, (24, 64, 192), (3.1, 3.0, 3.2), 60.0, 0.01, 1.02)
        for rung in range(3)
    )
    curve = ShapeCurve(
        "OK", (), rungs, 9, 60.0, (50.0, 80.0), 0.1, (-0.1, 0.3), 0.01, (0.0, 0.02), 1.02, True
    )
    specs = []
    for interior in (True, False):
        comparison = replace(report.comparison, shape_curve=replace(curve, interior=interior))
        figure = charts.shape_curve(replace(report, comparison=comparison))
        assert figure is not None and {tip["rung"] for tip in tips(figure)} == set("012")
        specs.append(json.dumps(figure.spec()))
    assert '"datum": 60.0' in specs[0] and '"datum": 60.0' not in specs[1]


def test_isoflop_chart_leaves_out_refused_parabolas(report: StudyReport) -> None:
    good = [Parabola(10.0**k, 6, 1e8 * 3.0 ** (k - 19), 3.0, 0.1) for k in (18, 19, 20)]
    fit = IsoFlop("OK", (), (*good, Parabola(1e21, 2, reason="too few")), 0.5, (0.4, 0.6))
    refused = IsoFlop("REFUSED", ("too few budgets",), (Parabola(1e18, 2, reason="too few"),))
    figure = charts.isoflop(replace(report, isoflop={"deep_thin": fit, "wide_shallow": refused}))
    assert figure is not None and {tip["training FLOPs"] for tip in tips(figure)} == {
        "10¹⁸",
        "10¹⁹",
        "10²⁰",
    }
    assert "best N grows as C to the 0.50" in figure.caption and "too few budgets" in figure.caption
    assert charts.isoflop(replace(report, isoflop={"deep_thin": refused})) is None


def test_hold_out_shows_observed_against_predicted(report: StudyReport) -> None:
    figure = charts.hold_out(report)
    cells = report.comparison.hold_out.cells
    assert figure is not None and len(
        {row["row"] for row in values(figure) if "row" in row}
    ) == len(cells)
    marks = sorted(row["x"] for row in values(figure) if "fill" in row)
    assert marks == pytest.approx(sorted(cell.error_percent for cell in cells), rel=1e-5, abs=1e-6)


def test_overview_has_both_panels(report: StudyReport, tmp_path: Path) -> None:
    charts.overview(report).save(tmp_path / "overview.png", titled=False)
    assert (tmp_path / "overview.png").stat().st_size > 30_000
    assert len(charts.overview(report).spec()["concat"]) == 2
    single = replace(report, comparison=replace(report.comparison, matched=None))
    assert len(charts.overview(single).spec()["concat"]) == 1


def test_peak_learning_rate_is_in_the_tooltip_if_known(report: StudyReport) -> None:
    table = report.table.assign(peak_lr=2e-3)
    shown = tips(charts.loss_against_flops(replace(report, table=pd.DataFrame(table))))
    assert {tip["peak learning rate"] for tip in shown} == {"0.002"}
