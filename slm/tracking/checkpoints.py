"""Paths and checksums of the files in a checkpoint folder. Torch-free."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from slm.errors import RunError
from slm.files import file_hash

log = logging.getLogger(__name__)
WEIGHT_PREFIX = "model."  # of the tensors in state_dict, which is that of a LightningModule


def newest_checkpoint(folder: Path) -> tuple[Path, int] | None:
    """Return the newest checkpoint with a valid checksum and its step; None if the folder has no checkpoint.

    Raises:
        RunError: if all checkpoints are damaged.
    """
    for path in valid_checkpoints(folder):
        return path, step_of(path)
    if saved_checkpoints(folder):
        raise RunError(f"{folder}: every checkpoint is damaged; start over with rerun=true")
    return None


def valid_checkpoints(folder: Path) -> Iterator[Path]:
    """Yield the checkpoints with a valid checksum, newest first; log a warning for each damaged one."""
    for path in saved_checkpoints(folder):
        if is_valid(path):
            yield path
        else:
            log.warning("%s is damaged (wrong checksum); trying the previous checkpoint", path)


def saved_checkpoints(folder: Path) -> list[Path]:
    """List all checkpoints, valid or not, newest first."""
    return sorted(folder.glob("step-*.ckpt"), reverse=True)


def keep_newest(folder: Path, count: int) -> None:
    """Delete all but the `count` newest checkpoints."""
    for old in saved_checkpoints(folder)[count:]:
        old.unlink(missing_ok=True)
        checksum_path(old).unlink(missing_ok=True)


def checkpoint_path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}.ckpt"


def step_of(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))


def checksum_path(path: Path) -> Path:
    return path.with_suffix(".ckpt.sha256")


def is_valid(path: Path) -> bool:
    try:
        return checksum_path(path).read_text(encoding="utf-8") == file_hash(path)
    except FileNotFoundError:  # incomplete save, or deleted concurrently by keep_newest
        return False
