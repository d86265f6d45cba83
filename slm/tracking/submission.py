"""Id of a job that a launcher submits: a requeue by Slurm or a retry by Ray starts the same command with the same id."""

from __future__ import annotations

import os

VARIABLE = "SLM_SUBMISSION_ID"


def submission_id() -> str | None:
    """Return the id of the job that this process belongs to; None if no launcher of slm started it."""
    return os.environ.get(VARIABLE) or None
