"""report.html in headless Chromium: charts, tooltips, scrolling, colour schemes, print, and no network."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from analysis.report.html import page
from analysis.report.study_report import StudyReport, analyze_study
from tests.browser import CHROMIUM, MISSING, Browser, open_browser
from tests.full_study import full_study

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason=MISSING)]

OVERFLOW = """[...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll table, svg') &&
    e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"""
TEXT_OUTSIDE = """[...document.querySelectorAll('.chart svg text')].filter(e => {
    const box = e.getBoundingClientRect(), chart = e.ownerSVGElement.getBoundingClientRect();
    return box.width && (box.left < chart.left - 2 || box.right > chart.right + 2);
}).map(e => e.textContent)"""
CHARTS = """[...document.querySelectorAll('figure')].map(e => [e.id, e.querySelectorAll(
    '.chart svg .mark-symbol path, .chart svg .mark-line path').length])"""
FIRST_POINT = """(() => {
    const figure = document.getElementById('loss_against_flops');
    figure.scrollIntoView({block: 'center'});
    const marks = figure.querySelectorAll('.role-mark.mark-symbol path');
    const box = marks[marks.length - 1].getBoundingClientRect();
    return [box.x + box.width / 2, box.y + box.height / 2];
})()"""
COLOURS = """['body', '.verdict', '#loss_against_flops svg .mark-symbol path'].map(s => {
    const style = getComputedStyle(document.querySelector(s));
    return s.includes('svg') ? style.fill + style.stroke : style.backgroundColor;
})"""


@pytest.fixture(scope="module")
def report() -> StudyReport:
    return analyze_study(full_study(level={"deep_thin": -0.1}, anchor_seeds=0), bootstrap=0)


@pytest.fixture(scope="module")
def file(report: StudyReport, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("report") / "report.html"
    file.write_text(page(report))
    return file


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as browser:
        yield browser


def problems(browser: Browser) -> list[Any]:
    """Return console errors, exceptions and requests to anything but the page."""
    return browser.problems(r"(file:.*/report\.html|data:,)$")


@pytest.mark.parametrize("width", [1280, 400])
def test_page_draws_all_charts_and_fits_the_width(
    browser: Browser, file: Path, report: StudyReport, width: int
) -> None:
    browser.events.clear()
    browser.emulate(width=width)
    browser.open(file)
    assert problems(browser) == []
    charts = dict(browser.evaluate(CHARTS))
    assert {"loss_against_flops", "level", "exponent_difference", "residuals"} <= set(charts)
    assert all(marks > 0 for marks in charts.values())
    assert charts["loss_against_flops"] >= len(report.table)
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    assert browser.evaluate(OVERFLOW) == []
    assert browser.evaluate(TEXT_OUTSIDE) == []


def test_tooltip_names_the_run_and_the_wheel_scrolls_the_page(
    browser: Browser, file: Path, report: StudyReport
) -> None:
    browser.emulate(width=1280)
    browser.open(file)
    x, y = browser.evaluate(FIRST_POINT)
    browser.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    tooltip = "document.querySelector('#vg-tooltip-element.visible')?.textContent || ''"
    browser.wait_until(f"({tooltip}) !== ''")
    shown = browser.evaluate(tooltip)
    assert any(run_id in shown for run_id in report.table["run_id"]), shown
    axis = "document.querySelector('#loss_against_flops svg .role-axis').textContent"
    before = browser.evaluate("scrollY"), browser.evaluate(axis)
    wheel = {"type": "mouseWheel", "x": x, "y": y, "deltaX": 0, "deltaY": 240}
    browser.send("Input.dispatchMouseEvent", **wheel)
    browser.wait_until(f"scrollY > {before[0]}")
    assert browser.evaluate(axis) == before[1]


def test_charts_follow_the_colour_scheme_and_print_is_light(browser: Browser, file: Path) -> None:
    colours = {}
    for scheme, medium in (("light", "screen"), ("dark", "screen"), ("dark", "print")):
        browser.emulate(width=1280, scheme=scheme, medium=medium)  # type: ignore[arg-type]
        browser.open(file)
        colours[scheme, medium] = browser.evaluate(COLOURS)
    light, dark = colours["light", "screen"], colours["dark", "screen"]
    assert all(one != other for one, other in zip(light, dark, strict=True))
    assert colours["dark", "print"] == light


def test_print_opens_folded_tables_except_the_list_of_runs(browser: Browser, file: Path) -> None:
    browser.emulate(width=1280)
    browser.open(file)
    count_closed = "document.querySelectorAll('details:not([open])').length"
    before = browser.evaluate(count_closed)
    browser.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert before > 1 and browser.evaluate(count_closed) == 1
    browser.evaluate("dispatchEvent(new Event('afterprint'))")
    assert browser.evaluate(count_closed) == before
    pdf = browser.pdf()
    assert pdf.startswith(b"%PDF") and 2 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 8
