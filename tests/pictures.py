"""Regenerate the pictures of reports in docs/img with headless Chromium; nothing is trained.

    python -m tests.pictures [RUNS]

RUNS is a source of runs as for `python -m analysis`, by default the committed runs of `study=demo`. The second
report is that of a simulated study (`tests.full_study`).
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

from PIL import Image

from analysis.report.html import page
from analysis.report.study_report import StudyReport, analyze_study
from analysis.runs.load import load_runs
from tests.browser import Browser, open_browser
from tests.conftest import ROOT
from tests.full_study import simulated_study

DEMO = ROOT / "analysis" / "examples" / "demo" / "results.jsonl"
FOLDER = ROOT / "docs" / "img"
HEIGHT = 1800  # pixels of the page's top that a picture shows
PRINT_WIDTH, MARGIN = (
    688,
    20,
)  # CSS pixels between the margins of A4, and beside them in the picture


def save_pictures(browser: Browser, name: str, report: StudyReport, folder: Path) -> None:
    """Write pictures of a report for screens of 1280 and 400 pixels, light and dark, and for print."""
    file = folder / "report.html"
    file.write_text(page(report), encoding="utf-8")
    for width in (1280, 400):
        for scheme in ("light", "dark"):
            browser.emulate(width=width, scheme=scheme)  # type: ignore[arg-type]
            browser.open(file)
            _save(browser, FOLDER / f"{name}_{width}_{scheme}.png")
    browser.emulate(width=PRINT_WIDTH + 2 * MARGIN, medium="print")
    browser.open(file)
    browser.evaluate(f"document.body.style.padding = '{MARGIN}px'")
    _save(browser, FOLDER / f"{name}_print.png")
    file.unlink()


def _save(browser: Browser, file: Path) -> None:
    image = Image.open(io.BytesIO(browser.screenshot(height=HEIGHT))).convert("RGB")
    small = image.quantize(method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    small.save(file, optimize=True)
    print(f"{file.relative_to(ROOT)}: {file.stat().st_size / 1e3:.0f} kB")


def main() -> None:
    runs = load_runs(sys.argv[1] if len(sys.argv) > 1 else DEMO)
    FOLDER.mkdir(parents=True, exist_ok=True)
    with open_browser() as browser:
        for name, table in (("demo", runs), ("simulated", simulated_study())):
            save_pictures(browser, name, analyze_study(table), FOLDER)


if __name__ == "__main__":
    main()
