"""Checkpoints that survive a kill at any moment: atomic, checksummed, the previous one kept.

Lightning saves the model, the optimizer and its loop counters; this adds the random states, which
it does not. The order of data needs no state: it is a function of the step.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from slm.errors import RunError
from slm.files import atomic_write, file_hash, write_text
from slm.tracking.checkpoints import (
    checkpoint_path,
    checksum_path,
    is_valid,
    keep_newest,
    saved_checkpoints,
)
from slm.training.device.rng import random_states, restore_random_states, seed_random_states
from slm.training.distributed.workers import ALONE, Team
from slm.training.module import LanguageModule

KEPT = 2
RANDOM_STATES = "random_states"


class Checkpoints(Callback):
    """Saves every `every_steps` steps, after the last one, and whenever `save` is called.

    After step `trunk_steps` it also calls `on_trunk` with what it has saved. Of a team all take part
    in a save, and the leader writes.
    """

    def __init__(
        self,
        folder: Path,
        seed: int,
        every_steps: int,
        trunk_steps: int | None = None,
        on_trunk: Callable[[Path], None] = lambda path: None,
        *,
        team: Team = ALONE,
    ):
        self._folder = folder
        self._seed = seed
        self._every_steps = every_steps
        self._trunk_steps = trunk_steps
        self._on_trunk = on_trunk
        self._team = team
        self._restored: dict[str, Any] | None = None

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, step: int
    ) -> None:
        done = trainer.global_step
        if done == self._trunk_steps:
            self._on_trunk(self.save(trainer))
        if done % self._every_steps == 0 or done == trainer.max_steps:
            self.save(trainer)

    def save(self, trainer: Trainer) -> Path:
        """Write `step-N.ckpt` and its checksum, then drop all but the newest two.

        Raises:
            Diverged: if a step was refused; there is nothing to go on from.
            RunError: if it cannot be written; the checkpoints before it are untouched.
        """
        module = trainer.lightning_module
        assert isinstance(module, LanguageModule)
        module.finite_steps.check()
        path = checkpoint_path(self._folder, trainer.global_step)
        if not self._team.decide(lambda: self._is_saved(path)):
            with self._team.together():
                if self._team.leads:
                    self._write(trainer, path)
                else:
                    trainer.save_checkpoint(path)  # of a sharded model; writes nothing here
        return path

    def _is_saved(self, path: Path) -> bool:
        self._folder.mkdir(parents=True, exist_ok=True)
        if path.exists() and is_valid(path):
            return True
        for torn in self._folder.glob(".*.tmp"):  # of a save that was killed
            torn.unlink()
        return False

    def _write(self, trainer: Trainer, path: Path) -> None:
        try:
            with atomic_write(path) as temporary:
                trainer.save_checkpoint(temporary)
                write_text(checksum_path(path), file_hash(temporary))
        except (OSError, RuntimeError) as error:
            raise _not_saved(path, error) from error
        keep_newest(self._folder, KEPT)

    def on_save_checkpoint(
        self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint[RANDOM_STATES] = random_states(cuda=module.device.type == "cuda")

    def on_load_checkpoint(
        self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._restored = checkpoint[RANDOM_STATES]

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        if self._restored is None:
            seed_random_states(self._seed)
        else:
            restore_random_states(self._restored)


def _not_saved(path: Path, error: OSError | RuntimeError) -> RunError:
    """A full disk is an OSError here and a RuntimeError of torch's there."""
    reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
    kept = saved_checkpoints(path.parent)
    instead = f"{kept[0].name} is intact" if kept else "there is none before it"
    free_bytes = shutil.disk_usage(path.parent).free
    return RunError(
        f"{path}: could not be saved ({reason}; {free_bytes / 1e6:,.0f} MB free); {instead}. "
        "Make room and give the same command to go on from there"
    )
