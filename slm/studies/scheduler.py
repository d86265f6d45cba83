"""Runs what a study lacks, together with anybody else who runs the same study, through any launcher."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from slm.errors import RunError
from slm.studies.cells import Cell, Job, jobs_of
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
    """Launch what is not done, `batch` jobs at a time, and wait for what others are at.

    A job is launched once; one that turns out to be in other hands is waited for, and launched if they
    drop it. Cells that failed in an earlier call stay failed unless `retry_failed`.

    Raises:
        RunError: naming every cell that did not finish and why, once nothing is left to try.
    """
    todo = [job for job in jobs_of(cells) if _is_to_do(job, rerun, retry_failed)]
    earlier = 0 if rerun or retry_failed else _failures(cells)
    waiting = False
    while todo:
        free = [job for job in todo if owner_of(job) is None]
        if not free:
            if not waiting:
                _say_who(todo)
            waiting = True
            time.sleep(POLL_SECONDS)
        else:
            waiting = False
            now = free[: batch or len(free)]
            launch(now)
            elsewhere = [job for job in now if owner_of(job) is not None]
            todo = [job for job in todo if job not in now or job in elsewhere]
        todo = [job for job in todo if rerun or not _is_done(job)]
        if max_failures is not None and _failures(cells) - earlier >= max_failures:
            break
    _tell(cells)


def _is_to_do(job: Job, rerun: bool, retry_failed: bool) -> bool:
    # A trunk with a branch to do is handed over whole: its finished ones are passed over there.
    return rerun or any(
        not cell.is_done and (retry_failed or cell.state != "failed") for cell in job.cells
    )


def _is_done(job: Job) -> bool:
    return all(cell.is_done for cell in job.cells)


def owner_of(job: Job) -> Owner | None:
    """Who works on the job now."""
    for cell in job.cells:
        owner = cell.run.lease.owner()
        if owner is not None:
            return owner
    trunk = job.trunk
    return None if trunk is None else trunk.lease.owner()


def _say_who(jobs: Sequence[Job]) -> None:
    owners = {str(owner).partition(" (")[0] for job in jobs if (owner := owner_of(job)) is not None}
    log.info(
        "%d jobs are left, all run elsewhere: %s; waiting", len(jobs), ", ".join(sorted(owners))
    )


def _failures(cells: Sequence[Cell]) -> int:
    return sum(cell.state == "failed" for cell in cells)


def _tell(cells: Sequence[Cell]) -> None:
    for cell in cells:
        if cell.state == "diverged":
            log.warning("diverged: %s", cell.run.path)
    left = [cell for cell in cells if not cell.is_done]
    if not left:
        return
    lines = [f"{len(left)} of {len(cells)} cells did not finish:"]
    for cell in left:
        lines.append(f"  {cell.state}: {cell.run.path}")
        reason = cell.run.failure()
        if cell.state == "failed" and reason:
            lines.append(f"      {reason}")
    fixes = ["the same command goes on with them"]
    if _failures(cells):
        fixes.append("study.retry_failed=true runs failed ones again")
    raise RunError("\n".join([*lines, "; ".join(fixes)]))
