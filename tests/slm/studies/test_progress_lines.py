"""Progress lines of a sweep: read from run directories while other processes write them."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from slm.run.spec import RunSpec
from slm.studies.cells import Cell
from slm.studies.progress_lines import ProgressLines, progress_lines
from slm.studies.scheduler import run_study
from slm.tracking import run_dir


def write(cell: Cell, **row: float) -> None:
    with cell.run.open_metrics() as stream:
        keys = {"step": run_dir.STEP, "loss": run_dir.TRAIN_LOSS, "rate": run_dir.TOKENS_PER_SECOND}
        fields = ", ".join(f'"{keys[name]}": {value}' for name, value in row.items())
        stream.write(f"{{{fields}}}\n")


def test_line_counts_cells_and_names_newest_losses(tiny_spec: Callable[..., RunSpec]) -> None:
    cells = [
        Cell(tiny_spec(seed=seed, study={"name": "mine"}), "tiny", 20_000) for seed in range(3)
    ]
    lines = ProgressLines(cells)
    assert lines.next_line() == "mine: 0 of 3 cells done"
    first, second, _ = cells
    with first.run.claim(first.spec):
        write(first, step=5, loss=4.5, rate=256.0)
        # 20 steps of 256 tokens per cell: 15 + 20 + 20 steps remain, one per second.
        assert lines.next_line() == (
            "mine: 0 of 3 cells done, 1 running; 256 tokens/s; 55 s remaining; "
            "tiny L2-d32, 5.12k tokens, s0: 4.500 nats/token (25%)"
        )
    second.run.path.mkdir(parents=True)
    first.run.write_status("diverged")
    second.run.write_status("failed")
    assert lines.next_line() == (
        "mine: 1 of 3 cells done, 1 failed, 1 diverged; "
        "tiny L2-d32, 5.12k tokens, s0: 4.500 nats/token (diverged)"
    )


def test_earlier_results_do_not_count_in_a_rerun(tiny_spec: Callable[..., RunSpec]) -> None:
    cell = Cell(tiny_spec(rerun=True), "tiny", 20_000)
    cell.run.path.mkdir(parents=True)
    cell.run.write_status("diverged")
    assert "0 of 1 cells done" in ProgressLines([cell]).next_line()


def test_lines_are_printed_while_cells_run_and_not_afterwards(
    tiny_spec: Callable[..., RunSpec], capsys: pytest.CaptureFixture[str]
) -> None:
    cell = Cell(tiny_spec(), "tiny", 20_000)
    shown = ""
    with progress_lines([cell], every_seconds=0.01):
        while "0 of 1 cells done" not in shown:
            shown += capsys.readouterr().err
    assert not [each for each in threading.enumerate() if each.name == "progress of the study"]
    assert shown.count("\n") == 1  # an unchanged line is printed once


def test_nothing_is_read_if_all_cells_are_done(tiny_spec: Callable[..., RunSpec]) -> None:
    cell = Cell(tiny_spec(), "tiny", 20_000)
    cell.run.path.mkdir(parents=True)
    cell.run.write_status("diverged")
    run_study([cell], lambda jobs: pytest.fail("launched"))
