"""Checkpoints that survive a kill at any moment: atomic, checksummed, the previous one kept.

Lightning saves the model, the optimizer and its loop counters; this adds the random states, which
it does not. The order of data needs no state: it is a function of the step.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from slm.files import file_hash, replacing, write_text
from slm.tracking.checkpoints import checksum_path, is_valid, saved_checkpoints

KEPT = 2
RANDOM_STATES = "random_states"


class Checkpoints(Callback):
    """Saves every `every_steps` steps, and whenever `save` is called."""

    def __init__(self, folder: Path, every_steps: int):
        self._folder = folder
        self._every_steps = every_steps
        self._restored: dict[str, Any] | None = None

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, step: int
    ) -> None:
        if trainer.global_step % self._every_steps == 0 or trainer.global_step == trainer.max_steps:
            self.save(trainer)

    def save(self, trainer: Trainer) -> Path:
        """Write `step-N.ckpt` and its checksum, then drop all but the newest two."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"step-{trainer.global_step:08d}.ckpt"
        if path.exists() and is_valid(path):
            return path
        for torn in self._folder.glob(".*.tmp"):  # of a save that was killed
            torn.unlink()
        with replacing(path) as temporary:
            trainer.save_checkpoint(temporary)
            write_text(checksum_path(path), file_hash(temporary))
        for old in saved_checkpoints(self._folder)[KEPT:]:
            old.unlink()
            checksum_path(old).unlink(missing_ok=True)
        return path

    def on_save_checkpoint(
        self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint[RANDOM_STATES] = random_states(cuda=module.device.type == "cuda")

    def on_load_checkpoint(
        self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._restored = checkpoint[RANDOM_STATES]

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        if self._restored is not None:
            restore_random_states(self._restored)


def random_states(*, cuda: bool) -> dict[str, Any]:
    """States of the python, numpy, torch and CUDA generators, as types `weights_only` can load."""
    version, internal, gauss = random.getstate()
    numpy_state = np.random.get_state(legacy=False)
    assert isinstance(numpy_state, dict)
    return {
        "python": [version, list(internal), gauss],
        "numpy": {**numpy_state, "state": _plain(numpy_state["state"])},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if cuda else [],
    }


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    return {"key": state["key"].tolist(), "pos": int(state["pos"])}


def restore_random_states(states: dict[str, Any]) -> None:
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    key = np.array(states["numpy"]["state"]["key"], dtype=np.uint32)
    np.random.set_state({**states["numpy"], "state": {**states["numpy"]["state"], "key": key}})
    torch.set_rng_state(states["torch"].cpu())
    if states["cuda"] and torch.cuda.device_count() == len(states["cuda"]):
        torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"]])
