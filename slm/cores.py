"""The CPU cores that this process may use."""

from __future__ import annotations

import os


def available_cores() -> int:
    """Count the cores that this process may use; a container or a Slurm job may allow fewer than exist."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
