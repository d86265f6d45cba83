"""Scheduling of a study's jobs: those of other processes, and those that end early."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from slm.errors import RunError
from slm.run.spec import RunSpec
from slm.studies import scheduler
from slm.studies.cells import Cell, Job
from slm.studies.scheduler import run_study


def end(cell: Cell, state: str = "finished") -> None:
    cell.run.path.mkdir(parents=True, exist_ok=True)
    cell.run.write_status(state)  # type: ignore[arg-type]


def test_job_of_a_process_that_stopped_early_is_launched_again(
    tiny_spec: Callable[..., RunSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process held the first cell during the batch, and was interrupted before the batch returned."""
    monkeypatch.setattr(scheduler, "POLL_SECONDS", 0.01)
    cells = [Cell(tiny_spec(seed=seed), "tiny", 20_000) for seed in range(2)]
    launched: list[int] = []

    def launch(jobs: Sequence[Job]) -> Sequence[Job]:
        launched.append(len(jobs))
        if len(launched) == 1:
            end(cells[0], "interrupted")
            end(cells[1])
            return [job for job in jobs if job.cells == (cells[0],)]
        end(cells[0])
        return []

    run_study(cells, launch)
    assert launched == [2, 1]


def test_job_that_another_process_has_finished_is_not_launched_again(
    tiny_spec: Callable[..., RunSpec],
) -> None:
    cell = Cell(tiny_spec(), "tiny", 20_000)
    launched: list[int] = []

    def launch(jobs: Sequence[Job]) -> Sequence[Job]:
        launched.append(len(jobs))
        end(cell)
        return jobs

    run_study([cell], launch)
    assert launched == [1]


@pytest.mark.parametrize("retry_failed", [False, True], ids=["skip", "retry"])
def test_only_failures_of_this_call_count_to_the_limit(
    tiny_spec: Callable[..., RunSpec], retry_failed: bool
) -> None:
    """Three cells failed in an earlier call; of those launched, one at a time, the first two fail."""
    cells = [Cell(tiny_spec(seed=seed), "tiny", 20_000) for seed in range(8)]
    for cell in cells[:3]:
        end(cell, "failed")
    launched: list[Cell] = []

    def launch(jobs: Sequence[Job]) -> Sequence[Job]:
        for job in jobs:
            launched.extend(job.cells)
            end(job.cells[0], "failed" if len(launched) <= 2 else "finished")
        return []

    with pytest.raises(RunError, match="did not finish"):
        run_study(cells, launch, batch=1, retry_failed=retry_failed, max_failures=2)
    assert len(launched) == 2


@pytest.mark.parametrize("state", ["finished", "diverged"])
def test_cell_of_a_rerun_that_did_not_start_is_an_error(
    tiny_spec: Callable[..., RunSpec], state: str
) -> None:
    cells = [Cell(tiny_spec(seed=seed, rerun=True), "tiny", 20_000) for seed in range(2)]
    for cell in cells:
        end(cell, state)

    def launch(jobs: Sequence[Job]) -> Sequence[Job]:
        end(cells[0])
        return []

    with pytest.raises(RunError) as caught:
        run_study(cells, launch, rerun=True)
    lines = str(caught.value).splitlines()
    assert lines[0] == "1 of 2 cells did not start again:"
    assert f"{state} earlier: " in lines[1] and str(cells[1].run.path) in lines[1]
    run_study(cells, lambda jobs: [end(cell) for cell in cells] and [], rerun=True)
