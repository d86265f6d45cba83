"""The store that branches of one trunk share: checkpoints of its constant rate, and its metrics. Torch-free.

    runs/<study>/.trunks/<trunk_id>/  step-N.ckpt  step-N.ckpt.sha256  step-N.jsonl

It is a cache. A run takes from it what it would otherwise compute to the same bits, so nothing is lost
if it is deleted, and two processes may fill it at once.
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

KEPT = 2  # the newest serves the next branch, the one before it stands in if it is damaged
FOLDER = ".trunks"


@dataclass(frozen=True)
class Start:
    """A checkpoint to begin at, the steps it stands for, and the rows of metrics.jsonl up to it."""

    checkpoint: Path
    step: int
    rows: Path


class Trunk:
    def __init__(self, folder: Path):
        self.folder = folder

    @classmethod
    def of(cls, spec: RunSpec) -> Trunk | None:
        """The store of a run that shares its trunk; None for one that does not."""
        if not spec.config.trainer.share_trunk or spec.trunk_id is None:
            return None
        study = Path(spec.config.runs_dir) / spec.config.study.name
        return cls(study / FOLDER / spec.trunk_id)

    @property
    def lease(self) -> Lease:
        """Held by who trains all branches, so that nobody begins the second while he is at the first."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        return Lease(self.folder.with_suffix(".lock"))

    def start(self, at_most: int) -> Start | None:
        """The latest valid checkpoint that a branch decaying after step `at_most` may begin at."""
        for path in valid_checkpoints(self.folder):
            rows = path.with_suffix(".jsonl")
            if step_of(path) <= at_most and rows.exists():
                return Start(path, step_of(path), rows)
        return None

    def keep(self, checkpoint: Path, rows: Sequence[str]) -> None:
        """Store a run's checkpoint with the lines of its metrics.jsonl up to it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = checkpoint_path(self.folder, step_of(checkpoint))
        if path.exists() and is_valid(path):
            return
        write_text(path.with_suffix(".jsonl"), "".join(rows))
        shutil.copyfile(checksum_path(checkpoint), checksum_path(path))
        with atomic_write(path) as temporary:
            try:
                os.link(checkpoint, temporary)  # no second copy of what may be gigabytes
            except OSError:
                shutil.copyfile(checkpoint, temporary)
        keep_newest(self.folder, KEPT)
        kept = {step_of(path) for path in self.folder.glob("*.ckpt")}
        for old in self.folder.glob("step-*.jsonl"):
            if step_of(old) not in kept:
                old.unlink(missing_ok=True)

    def forget(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
