"""Global batches for training and a fixed stream for validation, as a LightningDataModule."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from slm.data.order import sequences_of_step
from slm.data.shards import PreparedData
from slm.model.loss import IGNORED
from slm.run_spec import RunSpec

VAL_BATCH_TOKENS = 16_384  # fixed, so that validation rounds alike whatever the training batch


class TrainingSequences:
    """Windows of seq_len + 1 tokens, each beginning where the one before it ended.

    A window never crosses a shard; the remainder at a shard's end is left out.
    """

    def __init__(self, shards: list[NDArray[np.uint16]], seq_len: int):
        self._shards = shards
        self._seq_len = seq_len
        self._ends = np.cumsum([max(0, (len(shard) - 1) // seq_len) for shard in shards])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def gather(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Sequences (len(indices), seq_len + 1)."""
        shard_of = np.searchsorted(self._ends, indices, side="right")
        before = np.concatenate([[0], self._ends[:-1]])
        starts = (indices - before[shard_of]) * self._seq_len
        rows = [
            self._shards[shard][start : start + self._seq_len + 1]
            for shard, start in zip(shard_of, starts, strict=True)
        ]
        return np.stack(rows).astype(np.int64)


class GlobalBatches(Dataset[Tensor]):
    """Item s is the global batch of step s: tokens (batch_sequences, seq_len + 1)."""

    def __init__(self, sequences: TrainingSequences, seed: int, batch_sequences: int):
        self._sequences = sequences
        self._seed = seed
        self._batch_sequences = batch_sequences

    def __getitem__(self, step: int) -> Tensor:
        chosen = sequences_of_step(self._seed, step, self._batch_sequences, len(self._sequences))
        return torch.from_numpy(self._sequences.gather(chosen))


class StepsFrom(Sampler[int]):
    """The steps still to do. The length counts all steps, as Lightning's progress does."""

    def __init__(self, first_step: int, steps: int):
        self._first_step = first_step
        self._steps = steps

    def __iter__(self) -> Iterator[int]:
        return iter(range(self._first_step, self._steps))

    def __len__(self) -> int:
        return self._steps


class ValidationWindows(Dataset[Tensor]):
    """Windows (2, seq_len) of inputs and targets that score every token once, but the first.

    The stream begins with end-of-text, so each byte of text is predicted exactly once. Targets past
    its end are `IGNORED`.
    """

    def __init__(self, stream: NDArray[np.uint16], seq_len: int):
        n_targets = len(stream) - 1
        self._windows = -(-n_targets // seq_len)
        padding = self._windows * seq_len - n_targets
        tokens = stream.astype(np.int64)
        inputs = np.pad(tokens[:-1], (0, padding))
        targets = np.pad(tokens[1:], (0, padding), constant_values=IGNORED)
        shape = (self._windows, seq_len)
        self._pairs = torch.from_numpy(np.stack([inputs.reshape(shape), targets.reshape(shape)], 1))

    def __len__(self) -> int:
        return self._windows

    def __getitem__(self, index: int) -> Tensor:
        return self._pairs[index]


class TokenData(LightningDataModule):
    """Training batches from `first_step` on, and validation on the same tokens for every run."""

    def __init__(self, data: PreparedData, spec: RunSpec, first_step: int = 0):
        super().__init__()
        self.first_step = first_step
        self._spec = spec
        self._train = TrainingSequences(data.split("train"), spec.shape.seq_len)
        limit = spec.config.data.val_tokens
        stream = np.concatenate(data.split("val"))[: None if limit is None else limit + 1]
        self._val = ValidationWindows(stream, spec.shape.seq_len)
        self.val_tokens = len(stream) - 1
        self.val_bytes = data.tokenizer.count_bytes(stream)
        self.val_fingerprint = hashlib.sha256(stream.tobytes()).hexdigest()[:16]

    @property
    def epochs(self) -> float:
        """Passes over the training sequences that the budget means."""
        return self._spec.steps * self._spec.batch_sequences / max(1, len(self._train))

    def train_dataloader(self) -> DataLoader[Tensor]:
        spec, trainer = self._spec, self._spec.config.trainer
        return DataLoader(
            GlobalBatches(self._train, spec.config.seed, spec.batch_sequences),
            batch_size=None,
            sampler=StepsFrom(self.first_step, spec.steps),
            num_workers=trainer.num_workers,
            pin_memory=torch.cuda.is_available() and trainer.accelerator != "cpu",
        )

    def val_dataloader(self) -> DataLoader[Tensor]:
        return DataLoader(
            self._val, batch_size=max(1, VAL_BATCH_TOKENS // self._spec.shape.seq_len)
        )
