"""Loss curves of runs: what is read, the page, pictures, and the run under the pointer."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from slm.charts import LossCurve, loss_curves, script_json
from slm.run_index.curves import curve_of, curves_of
from slm.run_index.scan import read_run
from slm.tracking.run_dir import TRAIN_LOSS, RunDirectory
from tests.browser import CHROMIUM, MISSING, open_browser
from tests.slm.run_index.made import log_losses, make_run, slm

HIT_LINES = "[...document.querySelectorAll('#loss_curves .mark-line path[stroke-width=\"9\"]')]"
MIDDLE = f"""(() => {{
    const line = {HIT_LINES}[1], at = line.getPointAtLength(line.getTotalLength() / 2);
    const point = at.matrixTransform(line.getScreenCTM());
    return [point.x, point.y];
}})()"""
TEXTS = (
    "[...document.querySelectorAll('#loss_curves .mark-text')].map(e => e.textContent).join(' ')"
)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Return a study of two families and a run that has not logged yet."""
    study = tmp_path / "runs" / "mine"
    for number, family in enumerate(("deep_thin", "wide_shallow")):
        run = make_run(study, family)
        log_losses(run, {step: 5 - number - math.log10(step) for step in range(1, 60)})
    make_run(study, "deep_thin", seed=1, loss=None)
    return study


def test_of_a_step_logged_twice_the_last_row_counts(study: Path) -> None:
    run = make_run(study, seed=4)
    log_losses(run, {1: 3.0, 2: 2.0, 3: 9.0})
    log_losses(run, {3: 1.5, 4: None})
    log_losses(run, {4: 1.25}, key="val/loss")
    with (run / "metrics.jsonl").open("a") as stream:
        stream.write('[1]\n{"progress/step": 5, "prog')
    curve = curve_of(read_run(run), RunDirectory(run).read_metrics(), TRAIN_LOSS)
    assert curve.tokens == (1000, 2000, 3000, 4000) and curve.losses == (3.0, 2.0, 1.5, None)
    assert curve.flops_per_token == 6e3
    assert curve.points(10) == [(1000, 3.0), (2000, 2.0), (3000, 1.5)]


def test_only_the_named_runs_are_read(study: Path) -> None:
    (run,) = study.glob("wide*")
    assert [curve.run_id for curve in curves_of(study, {run.name, "absent"})] == [run.name]
    assert curves_of(study / "absent", {run.name}) == []


def test_page_is_in_the_study_and_names_the_runs(study: Path) -> None:
    done = slm("curves", study)
    assert done.returncode == 0 and str(study / "curves.html") in done.stdout
    text = (study / "curves.html").read_text()
    assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", text)
    (content,) = re.findall(r'<script type="application/json">(.*?)</script>', text, re.DOTALL)
    (rows,) = json.loads(content)["datasets"].values()
    assert [row["text"][0] for row in rows] == [
        "deep_thin 50k, 20.5k tokens, s0",
        "wide_shallow 50k, 20.5k tokens, s0",
    ]
    assert all(len(row["x"]) == len(row["y"]) == 59 for row in rows)
    assert rows[0]["x"][0] == 1000 and rows[0]["y"][0] == 5


def test_validation_losses_are_a_second_chart_where_there_are_several(study: Path) -> None:
    (run,) = study.glob("wide*")
    log_losses(run, {10: 3.0, 20: 2.5}, key="val/loss")
    slm("curves", study, "out=" + str(study / "both.html"), "against=flops")
    text = (study / "both.html").read_text()
    assert re.findall(r'<figure id="(\w+)"', text) == ["loss_curves", "validation_curves"]
    assert "Validation loss against training FLOPs" in text


@pytest.mark.parametrize(("suffix", "start"), [("png", b"\x89PNG"), ("svg", b"<svg")])
def test_picture(study: Path, suffix: str, start: bytes) -> None:
    out = study / f"curves.{suffix}"
    assert slm("curves", study, "--out", out).returncode == 0
    assert out.read_bytes().startswith(start)


def test_wrong_file_type_and_study_without_losses_are_errors(study: Path, tmp_path: Path) -> None:
    done = slm("curves", study, "out=curves.pdf")
    assert done.returncode == 2 and "must end with .html, .png, .svg" in done.stderr
    make_run(tmp_path / "other" / "empty")
    done = slm("curves", tmp_path / "other")
    assert done.returncode == 1 and "no run has logged a loss yet" in done.stderr


def curve(number: int, steps: int) -> LossCurve:
    tokens = [1000 * step for step in range(1, steps + 1)]
    losses: list[Any] = [2 + 3 * step**-0.3 for step in range(1, steps + 1)]
    family = ("deep_thin", "wide_shallow")[number % 2]
    return LossCurve(f"run-{number}", f"{family} 50k, s{number}", family, 6e5, tokens, losses)


def test_chart_of_many_runs_is_small_and_keeps_the_ends() -> None:
    many = loss_curves(
        [curve(number, 3000) for number in range(150)], ["deep_thin", "wide_shallow"]
    )
    assert many is not None
    spec = many.spec()
    assert len(script_json(spec)) < 300_000
    (rows,) = spec["datasets"].values()
    assert all(20 <= len(row["x"]) <= 150 for row in rows)
    assert max(row["x"][-1] for row in rows) > 2.8e6 and rows[0]["x"][0] == 1000


def test_chart_of_a_run_that_diverged_leaves_out_what_is_not_finite() -> None:
    broken = LossCurve("a", "a", "deep_thin", 1.0, [0, 1, 2, 3], [4.0, 3.0, math.nan, math.inf])
    figure = loss_curves([broken], ["deep_thin"])
    assert figure is not None
    (rows,) = figure.spec()["datasets"].values()
    assert (rows[0]["x"], rows[0]["y"]) == ([1.0], [3.0])
    nothing = LossCurve("a", "a", "deep_thin", 1.0, [1], [math.nan])
    assert loss_curves([nothing], ["deep_thin"]) is None


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason=MISSING)
@pytest.mark.parametrize("width", [1280, 400])
def test_page_in_a_browser_names_the_run_under_the_pointer(study: Path, width: int) -> None:
    slm("curves", study)
    with open_browser() as browser:
        browser.emulate(width=width)
        browser.open(study / "curves.html")
        assert browser.evaluate("document.documentElement.scrollWidth") == width
        assert browser.evaluate(f"{HIT_LINES}.length") == 2
        x, y = browser.evaluate(MIDDLE)
        browser.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        browser.wait_until(f"{TEXTS}.includes('50k, 20.5k tokens, s0')")
        assert "wide_shallow 50k" in browser.evaluate(TEXTS)
        events = [event["method"] for event in browser.events]
        assert "Runtime.exceptionThrown" not in events and "Log.entryAdded" not in events
