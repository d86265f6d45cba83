"""Regenerate the committed pictures from committed results; nothing is trained.

    python -m tests.pictures

docs/img has the reports of `study=demo` and of a simulated study (`tests.full_study`), the charts of the latter that
the dashboard shows, and the page of action=watch (`tests.watch_pictures`), as headless Chromium shows them.
analysis/examples has charts of the demo, of `study=micro` and of `study=lr_transfer`.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
from PIL import Image

from analysis.charts import overview, report_figures
from analysis.learning_rate.transfer import loss_against_learning_rate
from analysis.report.html import page
from analysis.report.study_report import StudyReport, analyze_study
from analysis.report.write import FIGURE
from analysis.runs.load import load_runs
from tests.browser import Browser, open_browser
from tests.conftest import ROOT
from tests.full_study import simulated_study
from tests.watch_pictures import COMMITTED, save_all

EXAMPLES = ROOT / "analysis" / "examples"
FOLDER = ROOT / "docs" / "img"
HEIGHT = 1800  # pixels of the page's top that a picture shows
PRINT_WIDTH = 688  # CSS pixels between the margins of A4
MARGIN = 20  # CSS pixels beside them in the picture


def save_pictures(browser: Browser, name: str, report: StudyReport, folder: Path) -> None:
    """Write pictures of a report for screens of 1280 and 400 pixels, light and dark, and for print."""
    file = folder / "report.html"
    file.write_text(page(report), encoding="utf-8")
    for width in (1280, 400):
        for scheme in ("light", "dark"):
            browser.emulate(width=width, scheme=scheme)  # type: ignore[arg-type]
            browser.open(file)
            save_small(browser.screenshot(height=HEIGHT), FOLDER / f"{name}_{width}_{scheme}.png")
    browser.emulate(width=PRINT_WIDTH + 2 * MARGIN, medium="print")
    browser.open(file)
    browser.evaluate(f"document.body.style.padding = '{MARGIN}px'")
    save_small(browser.screenshot(height=HEIGHT), FOLDER / f"{name}_print.png")
    file.unlink()


def save_examples(reports: Mapping[str, StudyReport]) -> None:
    """Write the charts of the committed examples."""
    transfer = EXAMPLES / "parametrization"
    figures = {EXAMPLES / name / FIGURE: overview(report) for name, report in reports.items()}
    table = pd.read_csv(transfer / "lr_transfer.csv")
    figures[transfer / "lr_transfer.png"] = loss_against_learning_rate(table)
    for file, figure in figures.items():
        figure.save(file)
        save_small(file.read_bytes(), file)


def save_dashboard_charts(report: StudyReport, folder: Path) -> None:
    """Write the charts of a report that a W&B workspace shows."""
    for figure in report_figures(report):
        if figure.name in ("level", "loss_against_flops", "exponent_difference"):
            file = folder / f"dashboard_{figure.name}.png"
            figure.save(file)
            save_small(file.read_bytes(), file)


def save_small(png: bytes, file: Path) -> None:
    """Write a PNG with a palette of 256 colours, which is a third to a sixth of the size."""
    image = Image.open(io.BytesIO(png)).convert("RGB")
    small = image.quantize(method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    small.save(file, optimize=True)
    print(f"{file.relative_to(ROOT)}: {file.stat().st_size / 1e3:.0f} kB")


def main() -> None:
    contrasts = {"demo": (None, None), "micro": ("aspect_4", "aspect_32")}
    reports = {
        name: analyze_study(load_runs(EXAMPLES / name / "results.jsonl"), deep=deep, wide=wide)
        for name, (deep, wide) in contrasts.items()
    }
    save_examples(reports)
    FOLDER.mkdir(parents=True, exist_ok=True)
    pages = {"demo": reports["demo"], "simulated": analyze_study(simulated_study())}
    with open_browser() as browser:
        for name, report in pages.items():
            save_pictures(browser, name, report, FOLDER)
    with TemporaryDirectory() as folder:
        save_all(Path(folder))
        for name, width, scheme in COMMITTED:
            picture = Path(folder) / f"{name}_{width}_{scheme}.png"
            save_small(picture.read_bytes(), FOLDER / f"watch_{width}_{scheme}.png")
    save_dashboard_charts(pages["simulated"], FOLDER)


if __name__ == "__main__":
    main()
