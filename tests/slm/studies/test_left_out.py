"""Finished runs in the folder of a study that an edit of the study leaves out: counted, with what differs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from analysis.study_actions.plan import show_plan
from analysis.study_actions.report import write_report
from slm.errors import DataError, StudyUnfinished
from slm.run.facts import saved_config
from slm.studies.cells import Cell
from slm.studies.left_out import left_out_lines
from slm.studies.status import print_status
from slm.studies.throughput import load_throughput
from tests.benchmarks.watch import result_of, study_cells, write_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with all runs of the study before its edits: 2 families, 2 sizes and 2 budgets."""
    runs = tmp_path_factory.mktemp("study") / "runs"
    for cell in expand(runs):
        write(cell)
    return runs


def expand(runs: Path, *edits: str) -> list[Cell]:
    return study_cells(
        "study=demo", "study.sizes=[80k,128k]", "study.tokens_per_param=[1.5,4]",
        "study.claim=none", f"runs_dir={runs}", *edits,
    )  # fmt: skip


def write(cell: Cell) -> None:
    write_run(cell, "finished")
    schedule = {"kind": "wsd", "warmup_tokens": cell.spec.warmup_tokens}
    result = replace(
        result_of(cell),
        schedule=schedule,
        parametrization=cell.spec.config.parametrization.kind,
    )
    cell.run.write_result(result)
    (cell.run.path / "config.yaml").write_text(yaml.safe_dump(saved_config(cell.spec)))


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        ("study.tokens_per_param=[1,1.5,4]", ["8 finished runs", "differ in schedule.warmup_tokens (the"]),
        ("optimizer.lr=3e-3", ["8 finished runs", "differ in optimizer.lr (0.004 there, 0.003 in"]),
        ("study.tokens_per_param=[1.5]", ["4 finished runs", "differ in tokens"]),
        ("study.sizes=[80k]", ["4 finished runs", "differ in size (128k is not in the study)"]),
        ("study.families=[deep_thin]", ["4 finished runs", "family (wide_shallow is not in"]),
        ("study.seeds=[1]", ["8 finished runs", "differ in seed (0 there, 1 in the study)"]),
        ("model.rope_theta=5000", ["8 finished runs", "rope_theta (10000.0 there, 5000.0 in"]),
        ("ladder.aspect_ratios.wide_shallow=20", ["finished runs", "differ in shape"]),
    ],
)  # fmt: skip
def test_what_an_edit_changes_is_named(folder: Path, edit: str, expected: Sequence[str]) -> None:
    lines = left_out_lines(expand(folder, edit))
    assert len(lines) == 2, lines
    assert all(part in lines[0] for part in expected), lines
    assert f"python -m slm runs {folder / 'demo'}" in lines[1]


def test_all_values_of_the_study_are_named(folder: Path) -> None:
    edits = ["study.sizes=[80k]", "study.tokens_per_param=[1.5,3]", "study.families=[deep_thin]"]
    cells = expand(folder, *edits)
    (before,) = {c.spec.tokens for c in expand(folder, *edits[::2])} - {
        c.spec.tokens for c in cells
    }
    values = " and ".join(str(cell.spec.tokens) for cell in cells)
    (line,) = [line for line in left_out_lines(cells) if "differs in tokens" in line]
    assert f"({before} there, {values} in the study)" in line


def test_cells_and_tuning_runs_are_not_left_out(folder: Path) -> None:
    assert left_out_lines(expand(folder)) == []
    assert left_out_lines(expand(folder, "study.lr_policy=tuned", "optimizer.lr=3e-3")) == []
    assert left_out_lines(expand(folder / "nothing_here")) == []


def test_unreadable_and_unfinished_runs_do_not_count(tmp_path: Path) -> None:
    cells = expand(tmp_path)
    for number, cell in enumerate(cells[:3]):
        write(cell)
        moved = cell.run.path.rename(cell.run.path.with_name(f"other-{number}"))
        content = {**json.loads((moved / "result.json").read_text()), "run_id": moved.name}
        content["status"] = ["finished", "diverged", "finished"][number]
        (moved / "result.json").write_text("{" if number == 2 else json.dumps(content))
        (moved / "config.yaml").write_text("model: [")
    (line, _) = left_out_lines(cells)
    assert line.startswith("1 finished run in this folder belongs to no cell") and "recipe" in line


def test_status_plan_and_report_say_it(
    folder: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    cells = expand(folder, "optimizer.lr=3e-3")
    wanted = "8 finished runs in this folder belong to no cell of the study"
    with pytest.raises(StudyUnfinished):
        print_status(cells)
    assert wanted in " ".join(capsys.readouterr().out.split())
    assert len(load_throughput(cells).measured) == 4  # shapes, timed at another learning rate
    show_plan(cells)
    assert f"Note: {wanted}" in " ".join(capsys.readouterr().out.split())
    earlier = folder / "demo" / "report"
    earlier.mkdir()
    (earlier / "report.md").write_text("# Earlier\n")
    with pytest.raises(DataError, match=wanted):
        write_report(cells)
    assert f"{earlier}: these files are of an earlier state" in caplog.text
