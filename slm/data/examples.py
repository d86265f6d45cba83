"""Training batches and the validation set as pairs of inputs and targets, without importing torch.

Text and synthetic tasks share one interface: the global batch of a step and a fixed validation set.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from slm.config.schema import Config
from slm.data.khop import IGNORED, KHop
from slm.data.shuffle import sequences_of_step
from slm.data.tokens.prepare import prepare
from slm.data.tokens.shards import PreparedData
from slm.errors import DataError
from slm.files import canonical_hash

Pairs = NDArray[np.int64]
FINGERPRINT_DIGITS = 16
ORDER_BLOCK_STEPS = 32
KHOP_VALIDATION_STREAM = 0  # seed s trains on stream s + 1


class Examples(Protocol):
    """Source of inputs and targets; targets equal to `IGNORED` do not enter the loss."""

    fingerprint: str
    tokenizer_fingerprint: str
    val: ValidationSet

    @property
    def folder(self) -> Path | None:
        """Folder of the prepared tokens; None for synthetic tasks."""

    @property
    def train_sequences(self) -> int | None:
        """Sequences per epoch; None for an endless stream."""

    def batch(self, seed: int, step: int, batch_sequences: int, rows: slice) -> NDArray[Any]:
        """Return `rows` of the global batch of a step.

        Windows of tokens (rows, seq_len + 1) in the integer type of the shards, or pairs (rows, 2, seq_len).
        """


@dataclass(frozen=True)
class ValidationSet:
    """Validation data, the same for every run of a study.

    Error rates are also reported for each of the named `groups`, if there are any.
    """

    windows: ValidationWindows | Pairs
    tokens: int
    """Number of targets that enter the loss."""
    text_bytes: int | None
    """UTF-8 bytes of text of these targets; None if the data are not text."""
    fingerprint: str
    groups: tuple[str, ...] = ()
    group_of: NDArray[np.int64] | None = None
    """Index into `groups`, shape (windows,)."""


def open_examples(
    config: Config, seq_len: int, log: Callable[[str], None] = lambda _: None
) -> Examples:
    """Open the training and validation data of a run; prepare the corpus first if necessary.

    Raises:
        DataError: if the corpus cannot be read, or its prepared tokens are damaged or too few.
    """
    data = config.data
    if data.source == "khop":
        assert data.val_tokens is not None, "checked by load_config"
        return KHopExamples(KHop.from_config(data, seq_len), data.val_tokens)
    return TextExamples(prepare(config, log), seq_len, data.val_tokens)


class TrainingWindows:
    """Consecutive windows of seq_len + 1 tokens; neighbouring windows share one token.

    A window lies within one shard; the remaining tokens at the end of each shard are not used.
    """

    def __init__(self, shards: Sequence[NDArray[Any]], seq_len: int):
        self._shards = shards
        # View s holds the windows that start at each token of shard s; an array is faster to index than a memmap.
        self._views = [_all_windows(np.asarray(shard), seq_len + 1) for shard in shards]
        self._seq_len = seq_len
        self._ends = np.cumsum([max(0, (len(shard) - 1) // seq_len) for shard in shards])
        self._before = np.concatenate([[0], self._ends[:-1]])

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the paths of memory maps, so that spawned DataLoader workers do not copy the corpus."""
        sources = [
            (shard.filename, shard.dtype) if isinstance(shard, np.memmap) else shard
            for shard in self._shards
        ]
        return _reopen, (sources, self._seq_len)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def windows(self, indices: NDArray[np.int64]) -> NDArray[Any]:
        """Return the windows `indices` in the type of the shards, shape (len(indices), seq_len + 1)."""
        shard_of = np.searchsorted(self._ends, indices, side="right")
        starts = (indices - self._before[shard_of]) * self._seq_len
        if len(self._views) == 1:
            return self._views[0][starts]
        windows = np.empty((len(indices), self._seq_len + 1), dtype=self._views[0].dtype)
        for shard in np.unique(shard_of):
            rows = shard_of == shard
            windows[rows] = self._views[shard][starts[rows]]
        return windows


def _all_windows(tokens: NDArray[Any], size: int) -> NDArray[Any]:
    padded = tokens if len(tokens) >= size else np.zeros(size, tokens.dtype)  # holds no window
    return np.lib.stride_tricks.sliding_window_view(padded, size)


def _reopen(sources: list[Any], seq_len: int) -> TrainingWindows:
    shards = [
        np.memmap(source[0], dtype=source[1], mode="r") if isinstance(source, tuple) else source
        for source in sources
    ]
    return TrainingWindows(shards, seq_len)


class ValidationWindows:
    """Windows of a token stream, each a pair (2, seq_len), in which every token but the first is a target.

    The stream starts with end-of-text, so each byte of text is predicted exactly once. Targets after
    the end of the stream are `IGNORED`.
    """

    def __init__(self, stream: NDArray[Any], seq_len: int):
        self._stream = stream
        self._seq_len = seq_len

    def __len__(self) -> int:
        return math.ceil((len(self._stream) - 1) / self._seq_len)

    def __getitem__(self, index: int) -> Pairs:
        start = index * self._seq_len
        window = self._stream[start : start + self._seq_len + 1].astype(np.int64)
        pair = np.zeros((2, self._seq_len), dtype=np.int64)
        pair[1] = IGNORED
        pair[:, : len(window) - 1] = window[:-1], window[1:]
        return pair


class TextExamples:
    """Windows of a prepared corpus, whose documents are concatenated."""

    def __init__(self, data: PreparedData, seq_len: int, val_tokens: int | None):
        """Open both splits.

        Raises:
            DataError: if the training split is shorter than one sequence.
        """
        self.fingerprint = data.fingerprint
        self.tokenizer_fingerprint = data.manifest["tokenizer_sha256"][:FINGERPRINT_DIGITS]
        self.folder = data.folder
        self._windows = TrainingWindows(data.split("train"), seq_len)
        if not len(self._windows):
            tokens = data.manifest["splits"]["train"]["tokens"]
            raise DataError(
                f"{data.folder}: {tokens:,} training tokens are too few for one sequence of "
                f"model.seq_len={seq_len}; use more text or reduce model.seq_len"
            )
        self._order_of: tuple[int, int, int] | None = None
        stream = _read_first_tokens(
            data.split("val"), None if val_tokens is None else val_tokens + 1
        )
        self.val = ValidationSet(
            windows=ValidationWindows(stream, seq_len),
            tokens=len(stream) - 1,
            text_bytes=data.tokenizer.count_bytes(stream),
            fingerprint=hashlib.sha256(stream.tobytes()).hexdigest()[:FINGERPRINT_DIGITS],
        )

    @property
    def train_sequences(self) -> int:
        return len(self._windows)

    def batch(self, seed: int, step: int, batch_sequences: int, rows: slice) -> NDArray[Any]:
        # Computing the order of many steps at once takes hardly longer than that of one step.
        block, within = divmod(step, ORDER_BLOCK_STEPS)
        if self._order_of != (seed, block, batch_sequences):
            sequences = batch_sequences * ORDER_BLOCK_STEPS
            self._order = sequences_of_step(seed, block, sequences, len(self._windows))
            self._order_of = (seed, block, batch_sequences)
        first = within * batch_sequences
        return self._windows.windows(self._order[first + rows.start : first + rows.stop])


def _read_first_tokens(shards: Sequence[NDArray[Any]], tokens: int | None) -> NDArray[Any]:
    """Read the first tokens of a split into memory; all of them if `tokens` is None."""
    parts, remaining = [], tokens
    for shard in shards:
        part = np.array(shard[:remaining])
        parts.append(part)
        remaining = None if remaining is None else remaining - len(part)
        if remaining == 0:
            break
    return np.concatenate(parts)


class KHopExamples:
    """Sequences of k-hop induction, none repeated in training; validation errors are grouped by k."""

    folder = None
    train_sequences = None

    def __init__(self, task: KHop, val_tokens: int):
        self._task = task
        count = max(1, val_tokens // task.seq_len)
        inputs, targets, hops = task.sequences(KHOP_VALIDATION_STREAM, 0, count)
        pairs = np.stack([inputs, targets], axis=1)
        identity = canonical_hash(["khop", 1, task.alphabet, task.max_hops])
        self.fingerprint = self.tokenizer_fingerprint = identity[:FINGERPRINT_DIGITS]
        self.val = ValidationSet(
            windows=pairs,
            tokens=int((targets != IGNORED).sum()),
            text_bytes=None,
            fingerprint=hashlib.sha256(pairs.tobytes()).hexdigest()[:FINGERPRINT_DIGITS],
            groups=tuple(f"k={k}" for k in range(1, task.max_hops + 1)),
            group_of=hops - 1,
        )

    def batch(self, seed: int, step: int, batch_sequences: int, rows: slice) -> Pairs:
        first = step * batch_sequences + rows.start
        stream = KHOP_VALIDATION_STREAM + 1 + seed
        inputs, targets, _ = self._task.sequences(stream, first, rows.stop - rows.start)
        return np.stack([inputs, targets], axis=1)
