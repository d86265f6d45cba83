"""Content of env.json: versions, commit and machine. Torch-free."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch",
    "lightning",
    "hydra-core",
    "omegaconf",
    "wandb",
    "datasets",
    "tokenizers",
    "einops",
    "numpy",
    "pydantic",
)


def describe_environment(*, device: str, threads: int, processes: int = 1) -> dict[str, Any]:
    """Return the content of env.json."""
    commit, dirty = source_commit()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "device": device,
        "threads": threads,
        "processes": processes,
        "visible_gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "cores": os.cpu_count(),
        "versions": {package: _version(package) for package in PACKAGES},
        "commit": commit,
        "dirty": dirty,
        "command": sys.argv,
    }


def available_cores() -> int:
    """Count the cores that this process may use; a container or a Slurm job may allow fewer than exist."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def source_commit() -> tuple[str | None, bool | None]:
    """Return the commit of this checkout and whether tracked files differ from it; None outside of git."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None, None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return commit, bool(_git(root, "status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.CalledProcessError):
        return None, None


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
