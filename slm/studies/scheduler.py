"""Execution of a study's unfinished cells through a launcher; several processes can share one study."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

from slm.errors import RunError
from slm.formatting import count
from slm.run.display_name import display_name
from slm.studies.cells import Cell, Job, jobs_of
from slm.studies.progress_lines import progress_lines
from slm.tracking.lease import Owner

log = logging.getLogger("slm")
POLL_SECONDS = 2.0
RETRY = "study.retry_failed=true"
# Executes jobs, and returns those that did not run because another process held one of their runs.
Launch = Callable[[Sequence[Job]], Sequence[Job]]


def run_study(
    cells: Sequence[Cell],
    launch: Launch,
    *,
    batch: int | None = None,
    rerun: bool = False,
    retry_failed: bool = False,
    max_failures: int | None = None,
) -> None:
    """Launch all unfinished jobs, `batch` at a time, and wait for those that other processes run.

    Each job is launched once. If another process takes a job first, this process waits for it, and launches
    the job if the other process stops early. Cells that failed in an earlier call are skipped unless
    `retry_failed`.

    Raises:
        RunError: if cells are unfinished when no job remains, or after `max_failures` failures, or did not start
            again with `rerun`; it lists them with their errors.
    """
    remaining = [job for job in jobs_of(cells) if _needs_launch(job, rerun, retry_failed)]
    earlier = {cell.spec.run_id: cell.run.read_status() for cell in cells} if rerun else {}
    if remaining:
        with progress_lines(cells):
            _run_jobs(remaining, launch, batch=batch, rerun=rerun, max_failures=max_failures)
    kept = [
        cell
        for cell in cells
        if rerun and cell.is_done and cell.run.read_status() == earlier[cell.spec.run_id]
    ]
    _check_finished(cells, kept)


def _run_jobs(
    remaining: list[Job],
    launch: Launch,
    *,
    batch: int | None,
    rerun: bool,
    max_failures: int | None,
) -> None:
    """Launch the jobs, and wait for those of other processes; stop after `max_failures` failed cells."""
    waiting, failures = False, 0
    while remaining:
        free = [job for job in remaining if find_owner(job) is None]
        if not free:
            if not waiting:
                _log_owners(remaining)
            waiting = True
            time.sleep(POLL_SECONDS)
        else:
            waiting = False
            launched = free[: batch or len(free)]
            in_use = launch(launched)
            ended = [j for j in launched if j not in in_use and find_owner(j) is None]
            failures += sum(cell.state == "failed" for job in ended for cell in job.cells)
            remaining = [job for job in remaining if job not in ended]
        remaining = [job for job in remaining if rerun or not _is_done(job)]
        if max_failures is not None and failures >= max_failures:
            break


def _needs_launch(job: Job, rerun: bool, retry_failed: bool) -> bool:
    # A trunk with one unfinished branch is launched with all branches; the finished ones are skipped there.
    return rerun or any(
        not cell.is_done and (retry_failed or cell.state != "failed") for cell in job.cells
    )


def format_remaining(cells: Sequence[Cell], rerun: bool, retry_failed: bool) -> str:
    """Return, for example, `3 to run, 2 failed earlier (study.retry_failed=true retries them)`."""
    launched = [
        cell
        for job in jobs_of(cells)
        if _needs_launch(job, rerun, retry_failed)
        for cell in job.cells
        if rerun or not cell.is_done
    ]
    skipped = 0 if rerun else sum(not cell.is_done for cell in cells) - len(launched)
    text = f"{len(launched)} to run"
    return f"{text}, {skipped} failed earlier ({RETRY} retries them)" if skipped else text


def _is_done(job: Job) -> bool:
    return all(cell.is_done for cell in job.cells)


def find_owner(job: Job) -> Owner | None:
    """Return the live process that works on a cell or on the trunk of the job, if any."""
    for cell in job.cells:
        owner = cell.run.lease.owner()
        if owner is not None:
            return owner
    trunk = job.trunk
    return None if trunk is None else trunk.lease.owner()


def _log_owners(jobs: Sequence[Job]) -> None:
    owners = {
        str(owner).partition(" (")[0] for job in jobs if (owner := find_owner(job)) is not None
    }
    log.info(
        "waiting for %s of other processes: %s", count(len(jobs), "job"), ", ".join(sorted(owners))
    )


def _check_finished(cells: Sequence[Cell], kept: Sequence[Cell]) -> None:
    """Log diverged cells; raise a RunError that lists the unfinished ones, and those of a rerun that did not start.

    `kept` are the cells of a rerun whose run directory still has the earlier run.
    """
    for cell in cells:
        if cell.state == "diverged" and cell not in kept:
            log.warning("diverged: %s -> %s", display_name(cell.spec), cell.run.path)
    unfinished = [cell for cell in cells if not cell.is_done]
    lines = [*_describe_unfinished(unfinished, len(cells))] if unfinished else []
    if kept:
        lines.append(f"{len(kept)} of {count(len(cells), 'cell')} did not start again:")
        lines += [f"  {cell.state} earlier: {_name(cell)}" for cell in kept]
        lines.append("see the errors above; rerun=true starts all cells again")
    if lines:
        raise RunError("\n".join(lines))


def _describe_unfinished(unfinished: Sequence[Cell], total: int) -> Iterator[str]:
    """Yield a line per cell, each distinct error once, and the commands that continue."""
    yield f"{len(unfinished)} of {count(total, 'cell')} did not finish:"
    failed: dict[str, list[Cell]] = defaultdict(list)
    others = []
    for cell in unfinished:
        if cell.state == "failed":
            failed[cell.run.failure()].append(cell)
        else:
            others.append(cell)
            yield _describe(cell)
    for reason, cells in failed.items():
        yield from map(_describe, cells)
        if reason:
            yield f"      {reason}"
    command = "the same command"
    if unfinished[0].spec.config.rerun:
        command += " without rerun=true"
    if any(cell.state == "planned" for cell in others):
        yield f"planned cells did not start: see the errors above; then run {command} again"
    elif others:
        yield f"run {command} again to continue"
    if failed:
        yield f"add {RETRY} to retry the failed cells; without it they are skipped"


def _describe(cell: Cell) -> str:
    return f"  {cell.state}: {_name(cell)}"


def _name(cell: Cell) -> str:
    return f"{display_name(cell.spec)} -> {cell.run.path}"
