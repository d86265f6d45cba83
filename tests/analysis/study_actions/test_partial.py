"""Report of a study whose cells are not all finished: compared pairs, missing cells, and what an estimate needs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace

import pytest

from analysis.compare.block_result import BlockResult
from analysis.report.study_report import analyze_study
from analysis.runs.load import runs_from_results
from analysis.study_actions.partial import partial_of
from analysis.study_actions.report import write_report
from slm.errors import DataError
from slm.formatting import short_count
from slm.studies.cells import Cell
from tests.benchmarks.watch import result_of, study_cells, write_run

DEEP, WIDE = "deep_thin", "wide_shallow"


@pytest.fixture(scope="module")
def composed(tmp_path_factory: pytest.TempPathFactory) -> list[Cell]:
    """Four sizes, three families and two budgets."""
    return study_cells(
        "study=demo",
        "study.families=[deep_thin,balanced,wide_shallow]",
        "study.sizes=[50k,80k,115k,165k]",
        "ladder.aspect_ratios.balanced=11",
        f"runs_dir={tmp_path_factory.mktemp('study') / 'runs'}",
    )


@pytest.fixture
def cells(composed: list[Cell]) -> list[Cell]:
    """The cells without any run directory or report."""
    shutil.rmtree(composed[0].run.path.parent, ignore_errors=True)
    return composed


def finish(cells: Sequence[Cell], chosen: Sequence[Cell]) -> list[Cell]:
    """Return the cells, of which the chosen ones are finished."""
    return [replace(c, recorded=result_of(c) if c in chosen else None) for c in cells]


def select(cells: Sequence[Cell], **sizes: Sequence[int]) -> list[Cell]:
    """Return the cells of each family at the sizes in thousands."""
    return [
        c for c in cells if isinstance(c.rung, int) and c.rung // 1000 in sizes.get(c.family, ())
    ]


def split(cells: Sequence[Cell], **sizes: Sequence[int]) -> tuple[list[Cell], list[Cell]]:
    """Return the cells that are finished, and the others, if the families have finished these sizes."""
    finished = select(cells, **sizes)
    return finish(finished, finished), [cell for cell in cells if cell not in finished]


def block_of(reported: Sequence[Cell]) -> BlockResult:
    results = [result for cell in reported if (result := cell.result) is not None]
    study = analyze_study(runs_from_results(results), deep=DEEP, wide=WIDE, bootstrap=0)
    return study.comparison.block


def lines_of(reported: Sequence[Cell], missing: Sequence[Cell]) -> str:
    found = partial_of(reported, missing)
    assert found is not None
    return "\n".join(found.lines)


def test_report_of_a_study_with_a_family_ahead(cells: list[Cell]) -> None:
    reported, missing = split(cells, deep_thin=[50, 80], balanced=[50], wide_shallow=[50])
    write_report([*reported, *missing])
    folder = cells[0].run.path.parent / "report"
    saved = json.loads((folder / "results.json").read_text())
    assert saved["comparison"]["verdict"]["word"] == "refused"
    assert saved["headline"].startswith("Interim result, 8 of 24 cells: No verdict: 2 pairs of ")
    assert "in 2 pairs at 1 size" in " ".join(saved["findings"])
    (reason,) = [r for r in saved["comparison"]["exponents"]["reasons"] if "match" in r]
    assert "deep_thin has 2 sizes, wide_shallow has 1, and 1 of them match" in reason
    lines = saved["partial"]["lines"]
    assert "8 of 24 cells are finished (16 planned)" in lines[0]
    assert "both finished at 2 of 8 combinations of size and tokens: 50k." in lines[1]
    wanted = "deep_thin at 115k, 165k; wide_shallow at 80k, 115k, 165k; balanced at 80k, 115k, 165k"
    assert lines[2] == f"Missing: {wanted}."
    assert "\n\n".join(lines) in (folder / "report.md").read_text()
    assert wanted in (folder / "report.html").read_text()


@pytest.mark.parametrize(
    "ahead",
    [
        {DEEP: [50, 80], "balanced": [50], WIDE: [50]},
        {DEEP: [50], "balanced": [80], WIDE: [115]},
    ],
)
def test_the_needed_cells_give_a_level_and_none_is_superfluous(
    cells: list[Cell], ahead: dict[str, list[int]]
) -> None:
    reported, missing = split(cells, **ahead)
    assert block_of(reported).refused
    (line,) = [
        line
        for line in lines_of(reported, missing).splitlines()
        if line.startswith("Needed for a loss difference with its interval, beside")
    ]
    further = [cell for cell in missing if f"{cell.family} {label(cell)}" in line]
    assert len(further) == line.count(" tokens)") > 2
    further = finish(further, further)
    block = block_of([*reported, *further])
    assert not block.refused and block.is_matched
    for cell in further:
        rest = [other for other in further if other is not cell]
        block = block_of([*reported, *rest])
        assert block.refused or not block.is_matched


def label(cell: Cell) -> str:
    return f"{short_count(int(cell.rung))} ({short_count(cell.spec.tokens)} tokens)"


def test_cells_for_exponents(cells: list[Cell]) -> None:
    three = {family: [50, 80, 115] for family in (DEEP, "balanced", WIDE)}
    reported, missing = split(cells, **{**three, DEEP: [50, 80, 115, 165]})
    assert "difference of exponents, beside the finished cells: wide_shallow 165k" in (
        lines_of(reported, missing)
    )
    few = [cell for cell in cells if cell.rung != 165_000]
    assert "All cells of the study do not suffice for a difference of exponents: 3 sizes" in (
        lines_of(*split(few, **three | {WIDE: [50, 80]}))
    )


def test_complete_blocks_give_an_estimate_beside_incomplete_ones(cells: list[Cell]) -> None:
    three = {family: [50, 80, 115] for family in (DEEP, "balanced", WIDE)}
    alone = block_of(split(cells, **three)[0])
    reported, missing = split(cells, **{**three, DEEP: [50, 80, 115, 165]})
    block = block_of(reported)
    assert (block.left_out, block.rungs, block.runs) == (2, 3, alone.runs)
    assert block.level == pytest.approx(alone.level, abs=1e-9)
    lines = lines_of(reported, missing)
    assert ": 50k, 80k, 115k." in lines
    assert "Missing: wide_shallow at 165k; balanced at 165k." in lines


def test_a_complete_study_is_not_partial_and_one_with_diverged_cells_is_not_interim(
    cells: list[Cell],
) -> None:
    assert partial_of(finish(cells, cells), []) is None
    every = [50, 80, 115, 165]
    reported, diverged = split(cells, deep_thin=every, balanced=every, wide_shallow=every[:3])
    for cell in diverged:
        write_run(cell, "diverged")
    found = partial_of(reported, diverged)
    assert found is not None and found.prefix == ""
    lines = "\n".join(found.lines)
    assert "22 of 24 cells are finished (2 diverged)." in lines and "Needed" not in lines
    assert "Missing: wide_shallow at 165k." in lines


def test_no_report_without_a_family_of_the_contrast(cells: list[Cell]) -> None:
    with pytest.raises(DataError, match=r"no finished cell \(24 planned\); run the study first"):
        write_report(cells)
    others = select(cells, deep_thin=[50, 80], balanced=[50, 80])
    planned = r"no cell of wide_shallow is finished \(8 planned\), and .* with deep_thin; continue"
    with pytest.raises(DataError, match=planned):
        write_report(finish(cells, others))
    for cell in select(cells, wide_shallow=[50, 80, 115, 165]):
        write_run(cell, "diverged")
    with pytest.raises(DataError, match=r"\(8 diverged\), and .*; lower optimizer\.lr"):
        write_report(finish(cells, others))
