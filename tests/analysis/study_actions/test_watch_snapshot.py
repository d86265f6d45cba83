"""Content of the page of action=watch against run directories with known content."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from analysis.study_actions.watch.snapshot import Snapshot
from analysis.study_actions.watch.verdict import Request, analyze
from slm.studies.cells import Cell
from slm.tracking import run_dir
from tests.benchmarks.watch import result_of, study_cells, write_run

pytestmark = pytest.mark.numeric


OPTIONS = ("study=smoke", "study.analysis=lr_transfer")  # without a comparison in another process


@pytest.fixture(scope="module")
def composed(tmp_path_factory: pytest.TempPathFactory) -> list[Cell]:
    """The cells of smoke: 2 families, sizes and budgets."""
    return study_cells(*OPTIONS, f"runs_dir={tmp_path_factory.mktemp('study') / 'runs'}")


@pytest.fixture
def cells(composed: list[Cell]) -> list[Cell]:
    """The cells without any run directory."""
    shutil.rmtree(composed[0].run.path.parent, ignore_errors=True)
    return composed


def state_of(snapshot: Snapshot) -> dict[str, Any]:
    while snapshot.refresh():
        pass
    return dict(json.loads(snapshot.state.body))


def find(cells: list[Cell], family: str, budget: float, size: int) -> Cell:
    (found,) = [
        cell for cell in cells
        if (cell.family, cell.spec.config.budget.amount, cell.rung) == (family, budget, size)
    ]  # fmt: skip
    return found


def test_a_study_that_starts_later(cells: list[Cell]) -> None:
    snapshot = Snapshot(cells)
    state = state_of(snapshot)
    assert state["summary"]["counts"] == {"planned": 8} and state["summary"]["flops_share"] == 0
    assert state["summary"]["remaining"] is None  # the throughput is unknown
    assert json.loads(snapshot.curves("tokens").body) is None
    write_run(cells[0], "finished")
    assert state_of(snapshot)["summary"]["counts"] == {"finished": 1, "planned": 7}
    for against in ("tokens", "flops"):
        assert json.loads(snapshot.curves(against).body)["spec"]


def test_states_share_of_flops_and_layout(cells: list[Cell]) -> None:
    states = ("finished", "running", "failed", "diverged", "interrupted")
    for cell, state in zip(cells, states, strict=False):
        write_run(cell, state, share=1.0 if state == "finished" else 0.5, rows=10)
    lease = cells[1].run.lease.take()
    snapshot = Snapshot(cells)
    state = state_of(snapshot)
    lease.release()
    assert [run["state"] for run in state["runs"]] == [*states, "planned", "planned", "planned"]
    assert state["runs"][2]["note"] == "RuntimeError: <b>out of memory</b>"
    # Nothing remains of the diverged cell; without a checkpoint the failed and the interrupted one start over.
    step = cells[1].run.last_metrics()[run_dir.STEP]
    done = (
        cells[0].spec.flops + step * cells[1].spec.flops / cells[1].spec.steps + cells[3].spec.flops
    )
    total = sum(cell.spec.flops for cell in cells)
    assert state["summary"]["flops_share"] == pytest.approx(done / total, abs=1e-4)
    assert state["summary"]["remaining"] is not None
    layout = snapshot.layout()
    assert [row["family"] for row in layout["rows"]] == ["deep_thin", "wide_shallow"]
    assert layout["columns"] == ["80k", "128k"] and layout["budgets"] == ["0.1", "0.2"]
    assert [run["id"] for run in layout["runs"]] == [cell.spec.run_id for cell in cells]


def test_pairs_have_equal_size_budget_and_seed(cells: list[Cell]) -> None:
    for family, budget, size in (
        ("deep_thin", 0.1, 80_000), ("wide_shallow", 0.1, 80_000), ("deep_thin", 0.2, 80_000),
        ("wide_shallow", 0.1, 128_000),
    ):  # fmt: skip
        write_run(find(cells, family, budget, size), "finished")
    snapshot = Snapshot(cells)
    state_of(snapshot)
    found = json.loads(snapshot.analysis.body)
    losses = [
        result_of(find(cells, family, 0.1, 80_000)).val_loss_nats_per_token
        for family in ("deep_thin", "wide_shallow")
    ]
    difference = losses[0] - losses[1]  # type: ignore[operator]
    (row,) = found["pairs"]["rows"]
    shown = f"{difference:+.4f}".replace("-", "\N{MINUS SIGN}")
    assert row == ["80k", "0.1", "0", f"{losses[0]:.4f}", f"{losses[1]:.4f}", shown]
    assert found["summary"] == [f"tokens_per_param 0.1: mean {shown} nats/token (1 pair)"]


def test_diverged_run_has_its_loss_as_a_note(cells: list[Cell]) -> None:
    write_run(cells[0], "diverged")
    run = state_of(Snapshot(cells))["runs"][0]
    assert run["note"] == "step 120: loss 8.25, gradient norm nan"


def test_result_of_another_run_does_not_count(cells: list[Cell]) -> None:
    write_run(cells[0], "finished")
    write_run(cells[1], "finished")
    shutil.copy(cells[0].run.path / "result.json", cells[1].run.path / "result.json")
    assert cells[0].result is not None and cells[1].result is None
    assert state_of(Snapshot(cells))["summary"]["counts"]["unreadable"] == 1


def test_damaged_and_deleted_files(cells: list[Cell]) -> None:
    for cell in cells[:4]:
        write_run(cell, "finished")
    snapshot = Snapshot(cells)
    assert state_of(snapshot)["summary"]["counts"] == {"finished": 4, "planned": 4}
    (cells[0].run.path / "status.json").write_text('{"state": "fin')
    (cells[1].run.path / "result.json").write_text("{}")
    (cells[2].run.path / "status.json").write_text('{"state": []}')
    shutil.rmtree(cells[3].run.path)
    state = state_of(snapshot)
    assert [run["state"] for run in state["runs"][:4]] == [
        "planned",
        "unreadable",
        "unreadable",
        "planned",
    ]
    assert snapshot.details(cells[3].spec.run_id)["log"] == ""
    write_run(cells[0], "failed")
    assert state_of(snapshot)["runs"][0]["state"] == "failed"


def test_recorded_cells_need_no_directory(cells: list[Cell]) -> None:
    snapshot = Snapshot([replace(cell, recorded=result_of(cell)) for cell in cells])
    state = state_of(snapshot)
    assert state["summary"]["counts"] == {"finished": 8} and state["summary"]["flops_share"] == 1
    assert len(json.loads(snapshot.analysis.body)["pairs"]["rows"]) == 4
    assert snapshot.details(cells[0].spec.run_id)["facts"]["folder"] == "only in study.results"


def test_details_have_the_last_lines_of_a_long_log(cells: list[Cell]) -> None:
    write_run(cells[0], "failed", share=0.5)
    (cells[0].run.path / "log.txt").write_text("".join(f"line {i}\n" for i in range(10_000)))
    snapshot = Snapshot(cells)
    state_of(snapshot)
    found = snapshot.details(cells[0].spec.run_id)
    assert found["log"].endswith("line 9999\n") and found["log"].startswith("line ")
    assert len(found["log"]) < 20_000 and found["curve"]["spec"]
    rows = (cells[0].run.path / "metrics.jsonl").read_text().splitlines()
    assert float(found["latest"]["step"]) == json.loads(rows[-1])[run_dir.STEP]


@pytest.mark.slow
def test_comparison_of_finished_cells_and_audit(cells: list[Cell], tmp_path: Path) -> None:
    audit = tmp_path / "lr_audit.json"
    families = {
        name: {"interior": True, "penalty": 0.001} for name in ("deep_thin", "wide_shallow")
    }
    recipe = cells[0].spec.recipe_id
    audit.write_text(json.dumps({"recipe_id": recipe, "families": families}))
    results = tuple(result_of(cell) for cell in cells)
    found = analyze(Request(results, ("deep_thin", "wide_shallow"), str(audit), recipe, ""))
    assert found["audit"]["title"] == "learning-rate audit of 2 families: passed"
    assert found["comparison"]["word"] == "refused" and found["comparison"]["cells"] == 8
    assert found["comparison"]["headline"] and found["comparison"]["figures"]
    assert found["comparison"]["conditions"] == []  # a refused comparison has reasons instead
    json.dumps(found, allow_nan=False)
