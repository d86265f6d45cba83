"""Which files of a run's checkpoints folder may be trusted. Torch-free."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from slm.errors import RunError
from slm.files import file_hash

log = logging.getLogger(__name__)


def newest_checkpoint(folder: Path) -> tuple[Path, int] | None:
    """The newest checkpoint whose checksum holds, and its step; None if there is none at all.

    Raises:
        RunError: if there are checkpoints and every one of them is damaged.
    """
    for path in valid_checkpoints(folder):
        return path, step_of(path)
    if saved_checkpoints(folder):
        raise RunError(f"{folder}: every checkpoint is damaged; start over with rerun=true")
    return None


def valid_checkpoints(folder: Path) -> Iterator[Path]:
    """Newest first; a damaged one is told of and passed over."""
    for path in saved_checkpoints(folder):
        if is_valid(path):
            yield path
        else:
            log.warning("%s is damaged (its checksum differs); trying the one before it", path)


def saved_checkpoints(folder: Path) -> list[Path]:
    """Whatever is there, newest first."""
    return sorted(folder.glob("step-*.ckpt"), reverse=True)


def keep_newest(folder: Path, count: int) -> None:
    """Delete all but the newest checkpoints."""
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
    except FileNotFoundError:  # not saved whole, or dropped for newer ones just now
        return False
