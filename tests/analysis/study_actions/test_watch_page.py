"""The page of action=watch in headless Chromium: before, while and after a study runs, by pointer and keyboard."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from slm.studies.cells import Cell
from tests.benchmarks.watch import metric_rows, served, study_cells, write_run
from tests.browser import CHROMIUM, MISSING, Browser, open_browser

pytest.importorskip("uvicorn")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason=MISSING)]

ROWS = 50
COUNTS = "document.getElementById('counts').innerText.replaceAll(/\\s+/g, ' ')"
LINES = "document.querySelectorAll('#curves .mark-line path').length"
OVERFLOW = """[...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll table, svg') &&
    e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"""
DIALOG = "document.getElementById('details')"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> list[Cell]:
    return study_cells("study=smoke", f"runs_dir={tmp_path_factory.mktemp('study') / 'runs'}")


@pytest.fixture(scope="module")
def server(cells: list[Cell]) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    with served("study=smoke", f"runs_dir={cells[0].spec.config.runs_dir}") as found:
        yield found


def problems(browser: Browser, url: str) -> list[Any]:
    return browser.problems(f"({re.escape(url)}|data:,$)")


def has_counts(text: str) -> str:
    return f"{COUNTS}.includes({text!r})"


def label(cell: Cell) -> str:
    """Return the JavaScript of the cell's accessible name in the grid."""
    return f"[...document.querySelectorAll('.cell')].find(e => e.title.startsWith({_name(cell)!r})).title"


def _name(cell: Cell) -> str:
    from slm.run.display_name import display_name

    return display_name(cell.spec) + ":"


def test_page_follows_a_study_from_its_start_to_its_end(
    browser: Browser, cells: list[Cell], server: tuple[str, subprocess.Popen[str]]
) -> None:
    url, _ = server
    browser.emulate(width=1280)
    browser.open(url)
    browser.wait_until(has_counts("8 planned"))
    assert "No run has started yet" in browser.evaluate("document.body.innerText")

    for cell in cells[:4]:
        write_run(cell, "finished", rows=ROWS)
    write_run(cells[4], "running", share=0.2, rows=ROWS)
    write_run(cells[5], "failed", share=0.5, rows=ROWS)
    lease = cells[4].run.lease.take()
    browser.wait_until(has_counts("4 finished ▸ 1 running ✕ 1 failed · 2 planned"))
    browser.wait_until(f"{LINES} >= 6")
    assert "running 20%" in browser.evaluate(label(cells[4]))
    with (cells[4].run.path / "metrics.jsonl").open("a") as stream:
        stream.writelines(metric_rows(cells[4], 10, 40, ROWS))
    browser.wait_until(f"{label(cells[4])}.includes('running 80%')")

    for cell in cells[4:]:
        write_run(cell, "finished", rows=ROWS)
    lease.release()
    browser.wait_until(has_counts("8 finished"))
    browser.wait_until(
        "document.querySelectorAll('#pairs-rows tbody tr, #pairs-rows tr').length === 5"
    )
    browser.wait_until("document.querySelector('#verdict .tag')?.textContent === 'refused'")
    assert problems(browser, url) == []


def test_filter_details_and_keyboard(
    browser: Browser, cells: list[Cell], server: tuple[str, subprocess.Popen[str]]
) -> None:
    url, _ = server
    write_run(cells[5], "failed", share=0.5, rows=ROWS)
    for cell in cells[:5]:
        write_run(cell, "finished", rows=ROWS)
    browser.events.clear()
    browser.emulate(width=1280)
    browser.open(url)
    browser.wait_until(has_counts("1 failed"))
    browser.wait_until(f"{LINES} > 0")
    before = browser.evaluate(LINES)
    browser.evaluate("document.querySelector('#families input[value=deep_thin]').click()")
    browser.wait_until(f"{LINES} < {before}")
    assert browser.evaluate("document.querySelectorAll('#grid tbody tr:not([hidden])').length") == 1
    browser.open(url + browser.evaluate("location.hash"))  # the address keeps the filter
    assert (
        browser.evaluate("document.querySelector('#families input[value=deep_thin]').checked")
        is False
    )
    browser.evaluate("document.querySelector('#families input[value=deep_thin]').click()")

    browser.evaluate("document.querySelector('.cell.failed').focus()")
    browser.send("Input.dispatchKeyEvent", type="keyDown", key="Enter", code="Enter", text="\r")
    browser.wait_until(
        f"{DIALOG}.open && {DIALOG}.innerText.includes('Traceback (most recent call last)')"
    )
    assert "<b>out of memory</b>" in browser.evaluate(f"{DIALOG}.innerText")
    assert "run=" in browser.evaluate("location.hash")
    browser.wait_until("document.querySelector('#run-curve svg .mark-line path') !== null")
    browser.press("Escape")
    browser.wait_until(f"!{DIALOG}.open && location.hash.indexOf('run=') < 0")
    assert browser.evaluate("document.activeElement.className").startswith("cell")
    place = "(box => [box.x, box.y])(document.activeElement.getBoundingClientRect())"
    x, y = browser.evaluate(place)
    browser.press("ArrowLeft")
    assert browser.evaluate(place)[0] < x and browser.evaluate(place)[1] == y

    line = "document.querySelector('#curves .mark-line path').dispatchEvent(new MouseEvent('click', {bubbles: true}))"
    browser.evaluate(line)
    browser.wait_until(f"{DIALOG}.open")
    browser.press("Escape")
    assert problems(browser, url) == []


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_the_width_in_both_schemes(
    browser: Browser,
    cells: list[Cell],
    server: tuple[str, subprocess.Popen[str]],
    width: int,
    scheme: Any,
) -> None:
    url, _ = server
    for cell in cells[:6]:
        write_run(cell, "finished", rows=ROWS)
    browser.events.clear()
    browser.emulate(width=width, scheme=scheme)
    browser.open(url)
    browser.wait_until(f"{LINES} > 0")
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    assert browser.evaluate(OVERFLOW) == []
    paper = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(18, 23, 29)")
    browser.evaluate(f"location.hash; openDetails({cells[0].spec.run_id!r})")
    browser.wait_until(f"{DIALOG}.open")
    assert browser.evaluate(f"{DIALOG}.scrollWidth <= {DIALOG}.clientWidth")
    browser.press("Escape")
    assert problems(browser, url) == []


def test_page_says_when_the_server_has_ended(browser: Browser, tmp_path: Path) -> None:
    browser.emulate(width=1280)
    with served("study=smoke", f"runs_dir={tmp_path}") as (url, _):
        browser.open(url)
    browser.wait_until(
        "document.getElementById('connection').innerText.includes('Connection lost')"
    )
    assert "Last update" in browser.evaluate("document.getElementById('connection').innerText")
