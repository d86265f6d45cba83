"""Number of jobs that this machine runs at once: the GPUs that it may use, and the jobs that its cores allow."""

from __future__ import annotations

import os
import re
import subprocess
from itertools import takewhile

from slm.cores import available_cores


def jobs_on_cores(threads: int | None, processes: int) -> int:
    """Return how many jobs of `processes` with `threads` each the cores allow; None: a process uses every core."""
    cores = available_cores()
    return max(1, cores // ((threads or cores) * processes))


def visible_gpus() -> list[str]:
    """Return the GPUs of CUDA_VISIBLE_DEVICES up to a negative number, else all that nvidia-smi lists."""
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    if names is not None:
        listed = (name.strip() for name in names.split(",") if name.strip())
        return list(takewhile(lambda name: not name.startswith("-"), listed))  # as CUDA does
    try:
        listing = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, check=True, timeout=60
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return re.findall(r"^GPU (\d+):", listing, flags=re.MULTILINE)
