"""Global batches for training and a fixed validation set, as a LightningDataModule."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from slm.data.blocks import blocks
from slm.data.examples import Examples, Pairs, ValidationSet
from slm.data.khop import IGNORED
from slm.data.shuffle import rows_of_rank
from slm.run.spec import RunSpec

NOTHING = -1
VAL_BATCH_TOKENS = 16_384  # fixed, so that validation rounds alike whatever the training batch


class GlobalBatches(Dataset[Tensor]):
    """Item s is what one of `world_size` processes trains on in step s: pairs (rows, 2, seq_len).

    All have as many rows: where a batch does not divide, some get one without targets, which changes
    no sum, so that they go through the same passes and wait for each other at the same places.
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
        most_rows = math.ceil(batch_sequences / world_size)
        self._lacks_row = self._rows.stop - self._rows.start < most_rows

    def __getitem__(self, step: int) -> Tensor:
        pairs = self._examples.batch(self._seed, step, self._batch_sequences, self._rows)
        if self._lacks_row:
            pairs = np.concatenate([pairs, empty_pair(pairs.shape[-1])[None]])
        return torch.from_numpy(pairs)


def empty_pair(seq_len: int) -> Pairs:
    """(2, seq_len) of which no target is scored."""
    return np.stack([np.zeros(seq_len, np.int64), np.full(seq_len, IGNORED)])


class Blocks(Dataset[Tensor]):
    """Item r, a range of steps, holds their batches: (steps, rows, 2, seq_len)."""

    def __init__(self, batches: GlobalBatches):
        self._batches = batches

    def __getitem__(self, steps: range) -> Tensor:
        return torch.stack([self._batches[step] for step in steps])


class BlocksFrom(Sampler[range]):
    """The blocks still to do. The length is that of all steps, more than there are blocks.

    So Lightning never takes the last block for the end of an epoch: a run ends by its steps.
    """

    def __init__(self, first_step: int, steps: int, every: Collection[int], at: Collection[int]):
        self._arguments = (first_step, steps, every, at)

    def __iter__(self) -> Iterator[range]:
        return blocks(*self._arguments)

    def __len__(self) -> int:
        return self._arguments[1] + 1


class Windows(Dataset[tuple[Tensor, int]]):
    """A validation set as (pair (2, seq_len), group). Item `NOTHING` has no scored target."""

    def __init__(self, val: ValidationSet):
        self._val = val

    def __len__(self) -> int:
        return len(self._val.windows)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index == NOTHING:
            return torch.from_numpy(empty_pair(self._val.windows[0].shape[-1])), 0
        group = 0 if self._val.group_of is None else int(self._val.group_of[index])
        return torch.from_numpy(self._val.windows[index]), group


class BatchesOfRank(Sampler[list[int]]):
    """Every `world_size`-th batch of neighbours; in the last round those that are left out get `NOTHING`.

    A batch is the same whoever measures it, and all processes go through as many.
    """

    def __init__(self, n_windows: int, batch_size: int, rank: int, world_size: int):
        self._n_windows = n_windows
        self._batch_size = batch_size
        self._rank = rank
        self._world_size = world_size

    def __iter__(self) -> Iterator[list[int]]:
        for turn in range(len(self)):
            start = (turn * self._world_size + self._rank) * self._batch_size
            yield list(range(start, min(start + self._batch_size, self._n_windows))) or [NOTHING]

    def __len__(self) -> int:
        return math.ceil(self._n_windows / (self._batch_size * self._world_size))


class TokenData(LightningDataModule):
    """Training batches from `first_step` on, and validation on the same tokens for every run.

    Both are the share of one of `world_size` processes.
    """

    def __init__(
        self,
        examples: Examples,
        spec: RunSpec,
        first_step: int = 0,
        *,
        rank: int = 0,
        world_size: int = 1,
    ):
        super().__init__()
        self.first_step = first_step
        self.val = examples.val
        self._examples = examples
        self._spec = spec
        self._rank = rank
        self._world_size = world_size

    @property
    def epochs(self) -> float:
        """Passes over the training sequences that the budget means; 0 of an endless stream."""
        sequences = self._examples.train_sequences
        return self._spec.steps * self._spec.batch_sequences / sequences if sequences else 0.0

    def train_dataloader(self) -> DataLoader[Tensor]:
        spec, config = self._spec, self._spec.config
        trainer = config.trainer
        batches = GlobalBatches(
            self._examples, config.seed, spec.batch_sequences, self._rank, self._world_size
        )
        every = (
            trainer.log_every_steps,
            trainer.checkpoint_every_steps,
            trainer.validate_every_steps,
        )
        at = (1, spec.trunk_steps)  # the first row, and what branches share
        return DataLoader(
            Blocks(batches),
            batch_size=None,
            sampler=BlocksFrom(self.first_step, spec.steps, [n for n in every if n], at),
            num_workers=config.trainer.num_workers,
            generator=torch.Generator(),  # or each start would draw from the run's random numbers
            pin_memory=torch.cuda.is_available() and config.trainer.accelerator != "cpu",
        )

    def val_batches(self) -> DataLoader[tuple[Tensor, int]]:
        """The validation set; its loader draws nothing from torch's random numbers."""
        batch = max(1, VAL_BATCH_TOKENS // self._spec.shape.seq_len)
        batches = BatchesOfRank(len(self.val.windows), batch, self._rank, self._world_size)
        return DataLoader(Windows(self.val), batch_sampler=batches, generator=torch.Generator())
