"""Which files of a run's checkpoints folder may be trusted. Torch-free."""

from __future__ import annotations

import logging
from pathlib import Path

from slm.errors import RunError
from slm.files import file_hash

log = logging.getLogger(__name__)


def newest_checkpoint(folder: Path) -> tuple[Path, int] | None:
    """The newest checkpoint whose checksum holds, and its step; None if there is none at all.

    Raises:
        RunError: if there are checkpoints and every one of them is damaged.
    """
    saved = saved_checkpoints(folder)
    for path in saved:
        if is_valid(path):
            return path, int(path.stem.removeprefix("step-"))
        log.warning("%s is damaged (its checksum differs); trying the one before it", path)
    if saved:
        raise RunError(f"{folder}: every checkpoint is damaged; start over with rerun=true")
    return None


def saved_checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.ckpt"), reverse=True)


def checksum_path(path: Path) -> Path:
    return path.with_suffix(".ckpt.sha256")


def is_valid(path: Path) -> bool:
    checksum = checksum_path(path)
    return checksum.exists() and checksum.read_text(encoding="utf-8") == file_hash(path)
