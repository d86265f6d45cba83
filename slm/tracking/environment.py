"""Content of env.json: versions, commit and machine. Torch-free."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Mapping
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


CPUINFO = Path("/proc/cpuinfo")
DRIVER_VERSION = Path("/sys/module/nvidia/version")
# Instruction sets in ascending order, by a flag of /proc/cpuinfo on x86-64 or a feature on ARM.
INSTRUCTION_SETS = {
    "avx2": "AVX2",
    "avx512f": "AVX512",
    "avx512_bf16": "AVX512-BF16",
    "amx_bf16": "AMX-BF16",
    "asimd": "NEON",
    "sve": "SVE",
    "bf16": "ARM-BF16",
}
WITH_BF16 = {"AVX512-BF16", "AMX-BF16", "ARM-BF16"}


def describe_environment(
    *,
    device: str,
    threads: int,
    processes: int = 1,
    gpu: Mapping[str, str | None] | None = None,
    attention: str | None = None,
    compilation: Mapping[str, bool | str] | None = None,
) -> dict[str, Any]:
    """Return the content of env.json.

    `gpu` has the versions of the GPU's libraries and driver, `attention` is the attention backend, and
    `compilation` says whether the blocks are compiled, and why.
    """
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
        "cpu_instruction_set": cpu_instruction_set(),
        "gpu": None if gpu is None else dict(gpu),
        "attention": attention,
        "compilation": None if compilation is None else dict(compilation),
        "versions": {package: _version(package) for package in PACKAGES},
        "commit": commit,
        "dirty": dirty,
        "command": sys.argv,
    }


def cpu_instruction_set() -> str:
    """Return the most capable vector instruction set of this CPU, such as AVX2 or AVX512-BF16."""
    flags = _cpu_flags()
    return next((INSTRUCTION_SETS[f] for f in reversed(INSTRUCTION_SETS) if f in flags), "unknown")


def cpu_multiplies_bf16() -> bool | None:
    """Return whether this CPU has instructions for bf16 matrix products; None if the system does not say."""
    return cpu_instruction_set() in WITH_BF16 if _cpu_flags() else None


def cpu_name() -> str:
    """Return the model name of this CPU, such as AMD EPYC 9R14; its architecture if the system has no name."""
    return _cpu_field("model name") or platform.machine()


def _cpu_flags() -> set[str]:
    return set(_cpu_field("flags", "Features").split())  # x86-64, ARM


def _cpu_field(*names: str) -> str:
    """Return a field of the first processor in /proc/cpuinfo; empty on systems other than Linux."""
    try:
        lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in names:
            return value.strip()
    return ""


def gpu_driver_version() -> str | None:
    """Return the version of the NVIDIA driver; None if it is not loaded or the system does not say."""
    try:
        return DRIVER_VERSION.read_text(encoding="utf-8").strip()
    except OSError:
        return None


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
