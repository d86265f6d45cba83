"""Scheduling of a study's jobs: those of other processes, and those that end early."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

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
