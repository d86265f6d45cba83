"""Global batches of tokens for training, and batches of the validation set, for one rank of a run."""

from __future__ import annotations

import ctypes
import math
import signal
from collections.abc import Iterable, Iterator
from contextlib import suppress

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from slm.architecture.varlen import DENSE_BATCH_TOKENS
from slm.data.examples import Examples, ValidationSet
from slm.data.khop import IGNORED
from slm.data.shuffle import rows_of_rank
from slm.run.spec import RunSpec
from slm.training.stop_on_signal import SIGNALS

PR_SET_PDEATHSIG = 1  # of prctl(2)
# Batches that wait in shared memory: Docker limits /dev/shm to 64 MB by default.
MAX_WAITING_BYTES = 16_000_000
# Fixed per device, so that the rounding of a validation does not depend on the training batch; see
# `val_batch_sequences` for the exception.
VAL_BATCH_TOKENS = {"cpu": 16_384, "cuda": 65_536}


def val_batch_sequences(spec: RunSpec, device_type: str, micro_sequences: int) -> int:
    """Return the sequences of a validation batch on a device, `cpu` or `cuda`.

    With document_mask the attention kernels of GPUs limit the documents of a batch. A batch of at most
    `DENSE_BATCH_TOKENS` that is not larger than a micro-batch of `micro_sequences` may have at least as many
    documents per token as the micro-batches of the training.
    """
    seq_len, tokens = spec.shape.seq_len, VAL_BATCH_TOKENS[device_type]
    if device_type == "cuda" and spec.config.model.document_mask:
        tokens = min(tokens, DENSE_BATCH_TOKENS, micro_sequences * seq_len)
    return max(1, tokens // seq_len)


class TrainingBatches(Dataset[Tensor]):
    """Item s holds this rank's rows of the global batch of step s; `to_pairs` makes pairs of it.

    Every rank has the same number of rows, so that all ranks run the same collective operations. If the
    batch does not divide, some ranks get a last row that `mask_padding` excludes from the loss.
    """

    def __init__(
        self,
        examples: Examples,
        seed: int,
        batch_sequences: int,
        rank: int = 0,
        world_size: int = 1,
    ):
        self._examples = examples
        self._seed = seed
        self._batch_sequences = batch_sequences
        self._rows = rows_of_rank(batch_sequences, rank, world_size)
        n_rows = math.ceil(batch_sequences / world_size)
        self._is_padded = self._rows.stop - self._rows.start < n_rows

    def __getitem__(self, step: int) -> Tensor:
        batch = self._examples.batch(self._seed, step, self._batch_sequences, self._rows)
        if self._is_padded:
            batch = np.concatenate([batch, np.zeros_like(batch[:1])])
        return torch.from_numpy(batch.view(np.int32) if batch.dtype == np.uint32 else batch)

    def mask_padding(self, pairs: Tensor) -> Tensor:
        """Exclude the padding row of pairs (rows, 2, seq_len) from the loss, in place."""
        if self._is_padded:
            pairs[-1, 1] = IGNORED
        return pairs

    def load(self, steps: range, num_workers: int, *, pin_memory: bool) -> Iterable[Tensor]:
        """Return the batches of `steps`, prepared ahead by `num_workers` processes."""
        if not num_workers or not steps:
            # Without the overhead of a DataLoader, which is a percent of a step of 10 ms.
            return (self[step].pin_memory() if pin_memory else self[step] for step in steps)
        batch = self[steps.start]
        waiting = max(1, MAX_WAITING_BYTES // (batch.numel() * batch.element_size()))
        workers = min(num_workers, waiting)
        return DataLoader(
            self,
            batch_size=None,
            sampler=steps,
            num_workers=workers,
            prefetch_factor=min(2, waiting // workers),
            generator=torch.Generator(),  # else it would draw from torch's random numbers
            pin_memory=pin_memory,
            worker_init_fn=_follow_parent,
        )


def _follow_parent(_: int) -> None:
    """Ignore signals that are sent to the whole process group, and end when the training process ends.

    torchrun sends SIGTERM to the group; without its loader processes the training process could not finish its
    step and save.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    with suppress(AttributeError, OSError):  # only Linux has prctl
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def to_pairs(batch: Tensor) -> Tensor:
    """Convert windows (rows, seq_len + 1) of any integer type to inputs and targets, (rows, 2, seq_len), int64.

    Pairs, such as those of k-hop induction, keep their shape.
    """
    tokens = batch.long()
    if tokens.ndim == 3:
        return tokens
    return torch.stack([tokens[:, :-1], tokens[:, 1:]], dim=1)


class ValidationBatches:
    """Every `world_size`-th batch of the validation set: pairs (rows, 2, seq_len) and groups (rows,).

    A batch has the same rows at any world size. A rank that has no batch in the last round gets one row
    without targets, so that all ranks run the same number of forward passes.
    """

    def __init__(self, val: ValidationSet, batch_size: int, rank: int = 0, world_size: int = 1):
        self.groups = val.groups
        self._val = val
        self._batch_size = batch_size
        self._rank = rank
        self._world_size = world_size

    def __len__(self) -> int:
        return math.ceil(len(self._val.windows) / (self._batch_size * self._world_size))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        windows, group_of = self._val.windows, self._val.group_of
        for turn in range(len(self)):
            start = (turn * self._world_size + self._rank) * self._batch_size
            indices = list(range(start, min(start + self._batch_size, len(windows))))
            pairs = np.stack([windows[index] for index in indices or [0]])
            if not indices:
                pairs[:, 1] = IGNORED
            groups = (
                np.zeros(len(pairs), np.int64) if group_of is None else group_of[indices or [0]]
            )
            yield torch.from_numpy(pairs), torch.from_numpy(groups)


def count_epochs(examples: Examples, spec: RunSpec) -> float:
    """Return the passes over the training sequences of the whole budget; 0 for an endless stream."""
    sequences = examples.train_sequences
    return spec.steps * spec.batch_sequences / sequences if sequences else 0.0
