"""Pictures of the page of action=watch, as headless Chromium shows it; nothing is trained.

    python -m tests.watch_pictures FOLDER

Writes the page before, while and after the cells of `study=demo` run, with losses from a law, the dialog of a failed
run, and a study of 500 runs, for screens of 1280 and 400 pixels, light and dark.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from slm.studies.cells import Cell
from slm.tracking.lease import HeldLease
from tests.benchmarks.watch import STUDY, served, study_cells, write_run, write_study
from tests.browser import Browser, open_browser

DEMO = ("study=demo", "tracking=disabled")
HEIGHT = 2000  # pixels of the page's top that a picture shows
RUNNING = (*["finished"] * 10, "running", "failed", "running", "diverged")
ERROR = "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"
COMMITTED = (("while", 1280, "light"), ("while", 400, "dark"))


def write_states(cells: Sequence[Cell], states: Sequence[str]) -> list[HeldLease]:
    """Write a run in each state, and return the leases of the running ones."""
    leases: list[HeldLease] = []
    for number, (cell, state) in enumerate(zip(cells, states, strict=False)):
        share = 1.0 if state == "finished" else 0.3 + 0.1 * (number % 4)
        write_run(cell, state, share=share, error=ERROR)
        if state == "running":
            leases.append(cell.run.lease.take())
    return leases


def shoot(
    browser: Browser, url: str, name: str, counts: str, folder: Path, *, is_compared: bool = True
) -> None:
    """Save the page in four forms, when its charts and, unless it takes minutes, the comparison are complete."""
    for width in (1280, 400):
        for scheme in ("light", "dark"):
            browser.emulate(width=width, scheme=scheme)  # type: ignore[arg-type]
            browser.open(url)
            browser.wait_until(f"document.getElementById('counts').innerText.includes({counts!r})")
            browser.wait_until("document.getElementById('connection').hidden")
            if is_compared:
                verdict = "document.getElementById('verdict').innerText"
                browser.wait_until(f"/[0-9] finished cells/.test({verdict})")
            time.sleep(3)  # figures of the comparison are drawn one after another
            file = folder / f"{name}_{width}_{scheme}.png"
            file.write_bytes(browser.screenshot(height=HEIGHT))


def save_all(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_demo(folder)
    save_synthetic(folder)


def save_demo(folder: Path) -> None:
    with TemporaryDirectory() as runs, ExitStack() as held, open_browser() as browser:
        overrides = (*DEMO, f"runs_dir={runs}")
        cells = study_cells(*overrides)
        with served(*overrides) as (url, _):
            shoot(browser, url, "before", "16 planned", folder, is_compared=False)
            for lease in write_states(cells, RUNNING):
                held.callback(lease.release)
            shoot(browser, url, "while", "2 running", folder)
            failed = cells[RUNNING.index("failed")].spec.run_id
            shoot_dialog(browser, f"{url}#run={failed}", folder)
            held.close()
            shutil.rmtree(cells[0].run.path.parent)
            write_states(cells, ["finished"] * len(cells))
            shoot(browser, url, "after", "16 finished", folder)


def save_synthetic(folder: Path) -> None:
    with TemporaryDirectory() as runs, ExitStack() as held, open_browser() as browser:
        overrides = (*STUDY, f"runs_dir={runs}")
        for lease in write_study(study_cells(*overrides), rows=200):
            held.callback(lease.release)
        with served(*overrides) as (url, _):
            shoot(browser, url, "synthetic", "50 running", folder, is_compared=False)


def shoot_dialog(browser: Browser, address: str, folder: Path) -> None:
    for width in (1280, 400):
        browser.emulate(width=width)
        browser.open(address)
        browser.wait_until("document.querySelector('#run-curve svg .mark-line path') !== null")
        (folder / f"failed_{width}_light.png").write_bytes(browser.screenshot(height=900))


if __name__ == "__main__":
    save_all(Path(sys.argv[1]))
