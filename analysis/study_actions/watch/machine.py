"""Load of the machine that serves the page."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

from slm.cores import available_cores

NVIDIA_SMI = (
    "nvidia-smi",
    "--query-gpu=index,utilization.gpu,memory.used,memory.total",
    "--format=csv,noheader,nounits",
)
TIMEOUT_SECONDS = 5.0


def machine_load() -> list[tuple[str, str]]:
    """Return name and value of load, memory and GPUs; without what this machine does not report."""
    load = ", ".join(f"{value:.2f}" for value in os.getloadavg())
    rows = [("load (1, 5, 15 min)", f"{load}; {available_cores()} cores")]
    with suppress(OSError, KeyError, ValueError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
        total, free = kilobytes["MemTotal"] / 1e6, kilobytes["MemAvailable"] / 1e6
        rows.append(("memory in use", f"{total - free:.1f} of {total:.1f} GB"))
    return [*rows, *_gpus()]


def _gpus() -> list[tuple[str, str]]:
    if shutil.which(NVIDIA_SMI[0]) is None:
        return []
    try:
        text = subprocess.run(
            NVIDIA_SMI, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=True
        ).stdout
        fields = [line.split(", ") for line in text.splitlines()]
        return [
            (f"GPU {index}", f"{use}% busy, {int(used) / 1e3:.1f} of {int(total) / 1e3:.1f} GB")
            for index, use, used, total in fields
        ]
    except (OSError, ValueError, subprocess.SubprocessError):
        return []
