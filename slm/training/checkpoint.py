"""Checkpoints that survive a kill at any moment: atomic, checksummed, with the previous one kept.

A checkpoint file holds the whole model and optimizer, whatever the strategy, so that a run can continue with
another world size:

    state_dict      logical tensors by name, with the prefix "model." of the LightningModule
    optimizer       state by name of the logical tensor, and parameter groups
    random_states   of python, numpy, torch and CUDA
    progress        metrics and the last validation
    global_step     steps taken

The order of data needs no state: it is a function of the step.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

from slm.errors import RunError
from slm.files import atomic_write, file_hash, write_text
from slm.model.logical_names import (
    optimizer_to_logical,
    optimizer_to_physical,
    to_logical,
    to_physical,
)
from slm.model.out_of_memory import is_out_of_memory
from slm.model.transformer import Transformer
from slm.run.spec import RunSpec
from slm.tracking.checkpoints import (
    WEIGHT_PREFIX,
    checkpoint_path,
    checksum_path,
    keep_newest,
    saved_checkpoints,
)
from slm.training.device.rng import random_states
from slm.training.distributed.workers import SINGLE_PROCESS, Workers
from slm.training.version_1 import convert_checkpoint

KEPT = 2


def training_state(model: Transformer, optimizer: Optimizer) -> dict[str, Any]:
    """Return the whole model and optimizer on the CPU of rank 0, empty on other ranks; all ranks call this.

    On a CPU the tensors are views of the parameters, not copies.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights: Any = get_model_state_dict(model, options=options)
    moments = get_optimizer_state_dict(model, optimizer, options=options)
    if not moments:
        return {}
    weights = to_logical(weights, model.shape)
    return {
        "state_dict": {WEIGHT_PREFIX + name: tensor for name, tensor in weights.items()},
        "optimizer": optimizer_to_logical(moments, model.shape),
    }


def restore_training_state(
    model: Transformer, optimizer: Optimizer, saved: Mapping[str, Any]
) -> None:
    """Load what `training_state` returned; each rank takes its shards.

    Settings of the parameter groups stay those of the config.
    """
    options = StateDictOptions(full_state_dict=True)
    logical = {
        name.removeprefix(WEIGHT_PREFIX): tensor for name, tensor in saved["state_dict"].items()
    }
    weights = to_physical(logical, model.shape, model.padded_vocab_size)
    if missing := sorted(model.state_dict().keys() - weights.keys()):
        # With full_state_dict torch would keep the initial weights, without an error.
        raise ValueError(f"{', '.join(missing[:3])} missing")
    moments = optimizer_to_physical(saved["optimizer"], model.shape, model.padded_vocab_size)
    settings = [{**group} for group in optimizer.param_groups]
    pairs = zip(settings, moments["param_groups"], strict=True)
    moments["param_groups"] = [{**own, "params": group["params"]} for own, group in pairs]
    set_model_state_dict(model, dict(weights), options=options)
    set_optimizer_state_dict(model, optimizer, moments, options=options)
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        group.update({**own, "params": group["params"]})  # loading turns tuples into lists


@contextmanager
def unusable_reported(path: Path) -> Iterator[None]:
    """Raise a RunError if the content of a checkpoint does not fit the run."""
    try:
        yield
    except (LookupError, ValueError, RuntimeError, EOFError, OSError, UnpicklingError) as error:
        if is_out_of_memory(error):
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        rule = f"{path}: not a checkpoint of this run ({reason}); start over with rerun=true"
        raise RunError(rule) from error


def load_checkpoint(path: Path, spec: RunSpec, *, is_shared: bool) -> dict[str, Any]:
    """Read a checkpoint to the CPU; with `is_shared`, several processes of a node share its memory."""
    saved: dict[str, Any] = torch.load(path, map_location="cpu", mmap=is_shared, weights_only=True)
    return saved if "progress" in saved else convert_checkpoint(saved, spec)


@dataclass
class CheckpointWriter:
    """Writes `step-N.ckpt` and its checksum, and deletes all but the newest two.

    All ranks call `save` and `wait`, and rank 0 writes. With a `thread` (on a GPU, where the state is copied to
    the host anyway) the file is written in the background, and the next call raises its error.
    """

    folder: Path
    workers: Workers = SINGLE_PROCESS
    thread: ThreadPoolExecutor | None = None
    saved_step: int | None = None
    is_enabled: bool = True
    """False: `save` writes nothing."""
    pending: Future[None] | None = None

    def save(
        self, step: int, model: Transformer, optimizer: Optimizer, progress: Mapping[str, Any]
    ) -> Path:
        """Save the state after `step` steps; do nothing if that is already saved.

        Raises:
            RunError: if it cannot be written; earlier checkpoints are intact.
        """
        path = checkpoint_path(self.folder, step)
        if step == self.saved_step or not self.is_enabled:
            return path
        self.saved_step = step
        self.wait()
        content = {**training_state(model, optimizer), "progress": progress, "global_step": step}
        content["random_states"] = random_states(cuda=next(model.parameters()).is_cuda)
        with self.workers.sync_errors():
            if self.thread is not None and self.workers.is_rank_zero:
                self.pending = self.thread.submit(_write, path, content)
            elif self.workers.is_rank_zero:
                _write(path, content)
        return path

    def wait(self) -> None:
        """Wait until the last checkpoint is on disk; raise its error on all ranks."""
        if self.thread is not None:
            with self.workers.sync_errors():
                pending, self.pending = self.pending, None
                if pending is not None:
                    pending.result()


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    for partial_file in path.parent.glob(".*.tmp"):  # of a save that was killed
        partial_file.unlink()
    try:
        with atomic_write(path) as temporary:
            with temporary.open("wb") as stream:  # given a path, torch would hide the OSError
                torch.save(dict(content), stream)
            write_text(checksum_path(path), file_hash(temporary))
    except (OSError, RuntimeError) as error:
        raise _save_error(path, error) from error
    keep_newest(path.parent, KEPT)


def _save_error(path: Path, error: OSError | RuntimeError) -> RunError:
    """The RuntimeError that torch.save raises for a full disk has the OSError as its context."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__context__
    reason = getattr(cause, "strerror", None) or str(error).splitlines()[0]
    kept = saved_checkpoints(path.parent)
    instead = f"{kept[0].name} is intact" if kept else "there is no earlier one"
    free_bytes = shutil.disk_usage(path.parent).free
    return RunError(
        f"{path}: could not be saved ({reason}; {free_bytes / 1e6:,.0f} MB free); {instead}. "
        "Free some space; the same command then continues from there"
    )
