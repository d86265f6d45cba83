"""Execution of a study's unfinished cells through a launcher; several processes can share one study."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from slm.errors import RunError
from slm.formatting import count
from slm.run.display_name import display_name
from slm.studies.cells import Cell, Job, jobs_of
from slm.studies.progress_lines import progress_lines
from slm.tracking.lease import Owner

log = logging.getLogger("slm")
POLL_SECONDS = 2.0
Launch = Callable[[Sequence[Job]], None]


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
        RunError: if cells are unfinished when no job remains, or after `max_failures` failures; it lists
            them with their errors.
    """
    remaining = [job for job in jobs_of(cells) if _needs_launch(job, rerun, retry_failed)]
    if remaining:
        earlier_failures = 0 if rerun or retry_failed else _count_failed(cells)
        limit = None if max_failures is None else earlier_failures + max_failures
        with progress_lines(cells):
            _run_jobs(cells, remaining, launch, batch=batch, rerun=rerun, limit=limit)
    _check_finished(cells)


def _run_jobs(
    cells: Sequence[Cell],
    remaining: list[Job],
    launch: Launch,
    *,
    batch: int | None,
    rerun: bool,
    limit: int | None,
) -> None:
    """Launch the jobs, and wait for those of other processes; stop at `limit` failed cells."""
    waiting = False
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
            launch(launched)
            elsewhere = [job for job in launched if find_owner(job) is not None]
            remaining = [job for job in remaining if job not in launched or job in elsewhere]
        remaining = [job for job in remaining if rerun or not _is_done(job)]
        if limit is not None and _count_failed(cells) >= limit:
            break


def _needs_launch(job: Job, rerun: bool, retry_failed: bool) -> bool:
    # A trunk with one unfinished branch is launched with all branches; the finished ones are skipped there.
    return rerun or any(
        not cell.is_done and (retry_failed or cell.state != "failed") for cell in job.cells
    )


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


def _count_failed(cells: Sequence[Cell]) -> int:
    return sum(cell.state == "failed" for cell in cells)


def _check_finished(cells: Sequence[Cell]) -> None:
    """Log diverged cells; raise a RunError that lists the unfinished ones."""
    for cell in cells:
        if cell.state == "diverged":
            log.warning("diverged: %s -> %s", display_name(cell.spec), cell.run.path)
    unfinished = [cell for cell in cells if not cell.is_done]
    if not unfinished:
        return
    lines = [f"{len(unfinished)} of {len(cells)} cells did not finish:"]
    for cell in unfinished:
        lines.append(f"  {cell.state}: {display_name(cell.spec)} -> {cell.run.path}")
        reason = cell.run.failure()
        if cell.state == "failed" and reason:
            lines.append(f"      {reason}")
    fixes = ["run the same command again to continue"]
    if any(cell.state == "planned" for cell in unfinished):
        fixes.insert(0, "planned cells did not start: see the errors above")
    if _count_failed(cells):
        fixes.append("add study.retry_failed=true to retry the failed cells")
    raise RunError("\n".join([*lines, "; ".join(fixes)]))
