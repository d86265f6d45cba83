"""What `action=plan` and `action=status` print: it fits the width, and no number is cut."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from rich.cells import cell_len
from rich.console import Console, RenderableType

from analysis.study_actions.plan import show_plan
from analysis.study_actions.report import write_report
from slm.config.hydra import (
    CONF_DIR,
    Composer,
    convert_overrides,
    load_composed_config,
    register_schema,
)
from slm.errors import DataError, StudyUnfinished
from slm.run.spec import RunSpec
from slm.studies.cells import Cell, check_not_all_diverged
from slm.studies.expand import cells_of
from slm.studies.grid_table import describe_grid, grid_table
from slm.studies.plan_tables import cells_table, format_time_estimate, format_totals, ladder_table
from slm.studies.status import build_status, print_status, progress_of
from slm.studies.throughput import Throughput
from slm.tracking import run_dir
from slm.tracking.checkpoints import checkpoint_path
from slm.tracking.run_dir import RunDirectory
from slm.tracking.trunk import Trunk

WIDTHS = (60, 80, 100, 120, 200)
FAST = Throughput({}, 1e12, 0.4)
STUDIES = {
    "demo": ["study=demo"],
    "micro": ["study=micro"],
    "sub1b": ["study=sub1b", "study.sizes=[26m,46m,1b]"],
    "grid": ["study=demo", "study.sizes=[80k]", "study.grid={optimizer.lr: [1e-3, 2e-3, 4e-3]}"],
}


@pytest.fixture(scope="module")
def studies() -> Iterator[Callable[[str], list[Cell]]]:
    found: dict[str, list[Cell]] = {}

    def cells(name: str) -> list[Cell]:
        if name not in found:
            found[name] = expand(STUDIES[name])
        return found[name]

    register_schema()
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        yield cells


def expand(overrides: list[str]) -> list[Cell]:
    def compose_study(further: list[str]) -> DictConfig:
        return compose("sweep", convert_overrides([*overrides, *further]))

    return cells_of(load_composed_config(compose_study([])), Composer(compose_study))


def printed(content: RenderableType, width: int) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width).print(content)
    lines = [line.rstrip() for line in stream.getvalue().splitlines()]
    assert max(map(cell_len, lines)) <= width and "…" not in stream.getvalue()
    return "\n".join(lines)


@pytest.mark.parametrize("name", STUDIES)
def test_tables_fit_and_keep_whole_numbers(name: str, studies: Callable[[str], list[Cell]]) -> None:
    cells = studies(name)
    grid, status = grid_table(cells, FAST), build_status(cells)
    tables = ladder_table(cells), cells_table(cells, FAST)
    for width in WIDTHS:
        assert re.search(rf"^total.* {len(cells)}\b", printed(grid, width), re.MULTILINE)
        printed(status, width)
        for table in tables:
            lines = [line.split() for line in printed(table, width).splitlines()]
            for column in (column for column in table.columns if column.rank == 0):
                # In the order of the rows, each cell is a word of its line.
                found = iter(lines)
                for cell in map(str, column.cells):
                    assert any(cell in line or not cell for line in found), (column, cell)


def test_plan_begins_with_the_grid_and_lists_cells_on_request(
    studies: Callable[[str], list[Cell]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    show_plan(studies("demo"))
    shown = capsys.readouterr().out
    assert max(map(cell_len, shown.splitlines())) <= 80
    titles = ("study demo: 16 cells in 4 sizes, 2 families, 2 budgets", "Number of cells", "Power:")
    places = [shown.index(title) for title in (*titles, "\nShapes\n", "\nWARN ")]
    assert places == sorted(places)
    assert re.search(r"^80k +2 +2 +151k, 402k +4 +5\.21e11$", shown, re.MULTILINE)
    assert "Cells in execution order" not in shown and "plan.cells=true lists the cells" in shown


def test_grid_counts_cells_of_families_without_a_shape(
    studies: Callable[[str], list[Cell]],
) -> None:
    lines = printed(grid_table(studies("micro"), Throughput({})), 80).splitlines()
    assert lines[1].split() == ["size", "2.7", "4", "11", "32", "48", "tokens", "cells", "FLOPs"]
    assert lines[3].split()[:6] == ["13k", "-", "9", "9", "9", "-"]  # 3 budgets, 3 seeds
    assert len(lines) == 3 + 7 + 1  # 7 sizes and the total


def test_headline_names_what_the_cells_vary(studies: Callable[[str], list[Cell]]) -> None:
    assert describe_grid(studies("grid")) == (
        "study demo: 12 cells in 1 size, 2 families, 2 budgets (tokens_per_param 1.5, 4), "
        "3 values of optimizer.lr, 1 seed"
    )


def test_totals_and_times_have_units(tiny_spec: Callable[..., RunSpec]) -> None:
    cell = Cell(tiny_spec(plan={"devices": 1}), "tiny", "one")
    seconds = 200.0
    throughput = Throughput({}, cell.spec.flops / seconds, 1.0)
    assert format_totals([cell]).startswith("1 cell, 5.12k tokens, ")
    estimate = format_time_estimate([cell], throughput)
    assert estimate.startswith("1 job, 3 min 20 s of device time at the assumed MFU of 100%")
    assert estimate.endswith("wall time 3 min 20 s with 1 job at a time, longest job 3 min 20 s")
    assert "plan=h100" in format_time_estimate([cell], Throughput({}))


def test_status_shows_folder_progress_and_failure(tiny_spec: Callable[..., RunSpec]) -> None:
    cells = [
        Cell(tiny_spec(seed=seed, study={"name": "mine"}), "tiny", 20_000) for seed in range(3)
    ]
    write_row(cells[0], "interrupted", step=8, loss=4.5)
    save_checkpoint(cells[0].run.checkpoints, step=5)
    failed = cells[1].run
    failed.path.mkdir(parents=True)
    failed._failure = "OSError: [Errno 28] No space left on device"
    failed.write_status("failed")
    shown = printed(build_status(cells), 200)
    # A restart continues after step 5 of 20, the last saved one.
    assert "study mine: 1 interrupted, 1 failed, 1 planned; 8% of the FLOPs done" in shown
    assert f"folder: {cells[0].run.path.parent}" in shown
    assert re.search(r"tiny +20k .* 5\.12k +0 +interrupted +25% +4\.500", shown)
    assert re.search(r"failed: tiny .*, s1: OSError: \[Errno 28\] No space left on device", shown)
    assert str(failed.path) in shown


def test_progress_of_a_stopped_cell_is_what_a_restart_starts_from(
    tiny_spec: Callable[..., RunSpec],
) -> None:
    cell = Cell(tiny_spec(trainer={"share_trunk": True}), "tiny", 20_000)
    assert progress_of(cell, FAST).step == 0
    trunk = Trunk.of(cell.spec)
    assert trunk is not None and 3 < cell.spec.trunk_steps < 19
    for step in (3, 19):  # the second one is of a longer branch
        save_checkpoint(trunk.folder, step)
    assert cell.state == "planned" and progress_of(cell, FAST).step == 3
    write_row(cell, "interrupted", step=19, loss=4.5)
    assert progress_of(cell, FAST).step == 3
    save_checkpoint(cell.run.checkpoints, step=7)
    stopped = progress_of(cell, FAST)
    assert stopped.step == 7
    assert stopped.remaining_seconds == pytest.approx(13 / 20 * cell.spec.flops / 0.4e12)


def test_shares_are_rounded_down_and_a_diverged_cell_counts_as_done(
    tiny_spec: Callable[..., RunSpec],
) -> None:
    budget = {"tokens": 256 * 1000}
    cells = [Cell(tiny_spec(seed=seed, budget=budget), "tiny", 20_000) for seed in range(2)]
    write_row(cells[0], "diverged", step=20, loss=4.5)
    write_row(cells[1], "running", step=998, loss=3.5)
    lease = cells[1].run.lease.take()
    shown = printed(build_status(cells), 200)
    lease.release()
    assert "1 diverged, 1 running; 99% of the FLOPs done" in shown
    assert re.search(r"train\n.* loss ", shown) and "val" not in shown
    assert re.search(r"diverged +100% +4\.500", shown) and re.search(r"running +99% +3\.500", shown)
    cells[1].run.write_status("diverged")
    assert "2 diverged; 100% of the FLOPs done" in printed(build_status(cells), 200)


def test_number_of_unfinished_cells(tiny_spec: Callable[..., RunSpec]) -> None:
    cells = [Cell(tiny_spec(seed=seed), "tiny", 20_000) for seed in range(2)]
    with pytest.raises(StudyUnfinished, match=r"^2 of 2 cells are unfinished; continue with"):
        print_status(cells)
    write_row(cells[0], "diverged", step=5, loss=4.5)
    with pytest.raises(StudyUnfinished, match=r"^1 of 2 cells is unfinished; continue with"):
        print_status(cells)


def test_nothing_to_report_if_all_cells_diverged(tiny_spec: Callable[..., RunSpec]) -> None:
    cells = [Cell(tiny_spec(seed=seed), "tiny", 20_000) for seed in range(2)]
    write_row(cells[0], "diverged", step=5, loss=4.5)
    check_not_all_diverged(cells)
    write_row(cells[1], "diverged", step=5, loss=4.5)
    with pytest.raises(
        DataError, match=r"no report: all 2 cells diverged; optimizer\.lr=0\.004 is"
    ):
        write_report(cells)


def test_status_of_a_large_study_counts_cells_by_size_and_family(
    tiny_spec: Callable[..., RunSpec],
) -> None:
    cells = [Cell(tiny_spec(seed=seed), "tiny", 20_000) for seed in range(50)]
    write_row(cells[0], "diverged", step=5, loss=4.5)
    shown = printed(build_status(cells), 80)
    assert re.search(r"^20k +0/50 1d$", shown, re.MULTILINE)
    assert "plan.cells=true lists every cell" in shown and len(shown.splitlines()) < 10
    assert len(printed(build_status(cells, 50), 80).splitlines()) > 50


def save_checkpoint(folder: Path, step: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint_path(folder, step).touch()


def write_row(cell: Cell, state: run_dir.State, step: int, loss: float) -> None:
    run = RunDirectory.of(cell.spec)
    run.path.mkdir(parents=True)
    run.write_status(state)
    with run.open_metrics() as stream:
        stream.write(f'{{"{run_dir.STEP}": {step}, "{run_dir.TRAIN_LOSS}": {loss}}}\n')
