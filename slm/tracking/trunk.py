"""Cache that the branches of a trunk share: checkpoints before the decay, and metrics. Torch-free.

    runs/<study>/.trunks/<trunk_id>/  step-N.ckpt  step-N.ckpt.sha256  step-N.jsonl

A run that starts from a cached checkpoint computes the same bits as a run trained alone (on the same kind
of CPU, number of threads and torch version). So the folder can be
deleted at any time, and two processes may write to it at once.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from slm.files import atomic_write, write_text
from slm.run.spec import RunSpec
from slm.tracking.checkpoints import (
    checkpoint_path,
    checksum_path,
    is_valid,
    keep_newest,
    step_of,
    valid_checkpoints,
)
from slm.tracking.lease import Lease

# The next branch starts from the newest, or from the previous one if that is damaged
KEPT_CHECKPOINTS = 2
FOLDER = ".trunks"


@dataclass(frozen=True)
class Start:
    """Cached checkpoint to start from, its step, and the file with the rows of metrics.jsonl up to it."""

    checkpoint: Path
    step: int
    rows: Path


class Trunk:
    """Folder with the cached checkpoints of one trunk."""

    def __init__(self, folder: Path):
        self.folder = folder

    @classmethod
    def of(cls, spec: RunSpec) -> Trunk | None:
        """Return the trunk of a run, or None if the run does not share one."""
        if not spec.config.trainer.share_trunk or spec.trunk_id is None:
            return None
        study = Path(spec.config.runs_dir) / spec.config.study.name
        return cls(study / FOLDER / spec.trunk_id)

    @property
    def lease(self) -> Lease:
        """Lock held by the process that trains a trunk's branches, so that no other process starts one."""
        # The name of the folder may contain dots, as in aspect_13.5-L4-d32-...
        return Lease(self.folder.with_name(f"{self.folder.name}.lock"))

    def find_start(self, max_step: int) -> Start | None:
        """Return the latest valid checkpoint up to `max_step`, the last step before a branch decays."""
        for path in valid_checkpoints(self.folder):
            rows = path.with_suffix(".jsonl")
            if step_of(path) <= max_step and rows.exists():
                return Start(path, step_of(path), rows)
        return None

    def store(self, checkpoint: Path, rows: Sequence[str]) -> None:
        """Store a run's checkpoint with the lines of metrics.jsonl up to it; delete all but the newest."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = checkpoint_path(self.folder, step_of(checkpoint))
        if path.exists() and is_valid(path):
            return
        write_text(path.with_suffix(".jsonl"), "".join(rows))
        shutil.copyfile(checksum_path(checkpoint), checksum_path(path))
        with atomic_write(path) as temporary:
            try:
                os.link(checkpoint, temporary)  # a copy may take gigabytes
            except OSError:
                shutil.copyfile(checkpoint, temporary)
        keep_newest(self.folder, KEPT_CHECKPOINTS)
        kept = {step_of(path) for path in self.folder.glob("*.ckpt")}
        for old in self.folder.glob("step-*.jsonl"):
            if step_of(old) not in kept:
                old.unlink(missing_ok=True)

    def delete(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
