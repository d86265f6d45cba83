"""Reports on another quantity than the loss: the score of a task in bits per byte."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.__main__ import main
from analysis.charts import overview
from analysis.report.study_report import analyze_study
from analysis.report.write import _reworded_figure, markdown, results, write_report
from analysis.runs.load import Runs, load_runs
from analysis.runs.response import NATS, Response, with_response
from slm.errors import DataError
from tests.benchmarks.study_generators import DEEP, WIDE, Row, simulate

pytestmark = pytest.mark.numeric
METRIC = "arc_easy_bits_per_byte"


def load_from(table: pd.DataFrame) -> Runs:
    return Runs(table, Counter(), ())


def table_of_runs() -> pd.DataFrame:
    """Return runs of equal losses, in which the wide family is better on a task by a known amount."""
    quiet = {"sizes": 4, "tau": 0.002, "sigma": 0.001}
    losses = simulate(Row(**quiet), np.random.default_rng(0))
    scores = simulate(Row(**quiet, level=0.06), np.random.default_rng(1))
    assert list(losses["shape"]) == list(scores["shape"])
    return losses.assign(
        **{METRIC: 0.5 * scores["loss_nats_per_token"]},
        arc_easy_bits_per_byte_se=0.01,
        arc_easy_acc=0.4,
        run_id=[f"run{row}" for row in range(len(losses))],
    )


@pytest.fixture(scope="module")
def csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("metric") / "models.csv"
    table_of_runs().to_csv(path, index=False)
    return path


def test_the_report_compares_the_families_on_the_metric(
    csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "sys.argv", ["analysis", str(csv), "--out", str(tmp_path), "--metric", METRIC]
    )
    assert main() == 0
    shown = capsys.readouterr().out
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["response"] == {"column": METRIC, "unit": "bits/byte"}
    assert content["comparison"]["verdict"]["word"] == "width_level_better"
    block = content["comparison"]["block"]
    truth = 0.5 * Row(level=0.06).delta(block["at_n"], 24, 192)
    low, high = block["level_ci"]
    assert low < truth < high
    for name in ("report.md", "report.html", "results.json"):
        text = (tmp_path / name).read_text()
        assert f"Compared quantity: {METRIC}, in bits/byte" in text
        assert NATS.search(text) is None
    assert f"{METRIC} (bits/byte)" in (tmp_path / "report.html").read_text()  # axis
    assert f"Compared quantity: {METRIC}" in shown
    assert "bits/byte" in shown and "nats" not in shown


def test_the_report_on_the_loss_is_unchanged() -> None:
    report = analyze_study(load_from(table_of_runs()), bootstrap=0)
    assert report.comparison.verdict.level == "open"  # equal losses
    text = markdown(report)
    assert "Compared quantity" not in text and "nats/token" in text
    assert Response().reworded(text) == text
    assert results(report)["response"] == {"column": "loss_nats_per_token", "unit": "nats/token"}
    # The picture of the same report, as it would be for a metric.
    picture = _reworded_figure(overview(report), Response(METRIC, "bits/byte"))
    spec = json.dumps(picture.file_spec())
    assert f"{METRIC} (bits/byte)" in spec
    assert NATS.search(spec) is None


def test_estimates_equal_those_of_a_table_with_the_metric_as_loss() -> None:
    table = table_of_runs()
    renamed = table.assign(loss_nats_per_token=table[METRIC])
    runs = with_response(load_from(table), METRIC)
    ours, expected = analyze_study(runs, bootstrap=0), analyze_study(renamed, bootstrap=0)
    assert ours.comparison.block.level == pytest.approx(expected.comparison.block.level)
    assert (ours.comparison.deep, ours.comparison.wide) == (DEEP, WIDE)


def test_runs_without_the_task_are_counted() -> None:
    table = table_of_runs()
    table.loc[table.index[:3], METRIC] = np.nan
    runs = with_response(load_from(table), METRIC)
    assert len(runs.table) == len(table) - 3
    assert runs.dropped[f"no {METRIC}"] == 3
    assert "arc_easy_bits_per_byte, bits/byte" in repr(runs)


def test_runs_scored_on_other_examples_are_dropped() -> None:
    table = table_of_runs()
    unchecked = with_response(load_from(table), METRIC).response.sentence()
    assert "no column arc_easy_fingerprint, so it could not be checked" in unchecked
    table["arc_easy_fingerprint"] = ["b"] * 3 + ["a"] * (len(table) - 3)
    runs = with_response(load_from(table), METRIC)
    assert runs.dropped["scored on other examples"] == 3
    assert set(runs.table["arc_easy_fingerprint"]) == {"a"}
    assert "All runs are scored on the same examples" in runs.response.sentence()


def test_other_validation_sets_matter_only_for_quantities_of_the_validation_set(
    tmp_path: Path,
) -> None:
    runs = len(table_of_runs())
    table = table_of_runs().assign(
        val_bits_per_byte=1.5,
        val_fingerprint=["y" if row % 3 else "x" for row in range(runs)],
        recipe_id=["q" if row % 3 else "p" for row in range(runs)],
    )
    table.loc[0, "recipe_id"] = "other"
    table.to_csv(tmp_path / "models.csv", index=False)
    report = write_report(tmp_path / "models.csv", tmp_path / "task", metric=METRIC)
    assert len(report.table) == runs - 1
    assert "pool-validation-sets" not in (tmp_path / "task" / "report.md").read_text()
    loaded = load_runs(tmp_path / "models.csv", pool_validation_sets=True)
    assert loaded.dropped["other recipe"] == 1
    of_text = with_response(loaded, "val_bits_per_byte")
    assert set(of_text.table["val_fingerprint"]) == {"y"} and of_text.response.is_checked
    pooled = with_response(loaded, "val_bits_per_byte", pool_validation_sets=True)
    assert len(pooled.table) == runs - 1 and not pooled.response.is_checked


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("arc_easy_acc", "larger values are better.*usable columns are loss_nats_per_token, arc_easy_bits"),
        ("arc_esy_bits_per_byte", "no such column; did you mean arc_easy_bits_per_byte"),
        ("arc_easy_bits_per_byte_se", "must end with bits_per_byte or nats_per_token"),
        ("piqa_bits_per_byte", "0.0 of run run7 is not a finite number above 0"),
        ("empty_bits_per_byte", "no run has a value"),
    ],
)  # fmt: skip
def test_other_columns_are_refused(column: str, message: str) -> None:
    table = table_of_runs().assign(empty_bits_per_byte=np.nan, piqa_bits_per_byte=1.0)
    table.loc[table["run_id"] == "run7", "piqa_bits_per_byte"] = 0.0
    with pytest.raises(DataError, match=message):
        with_response(load_from(table), column)


def test_a_run_folder_has_one_more_metric(csv: Path) -> None:
    """`bits_per_byte` of the validation text is a column of slm's own runs."""
    table = load_runs(csv).table.assign(bits_per_byte=1.0)
    assert with_response(load_from(table), "bits_per_byte").response.unit == "bits/byte"
