"""What a model is trained and measured on, as pairs of inputs and targets. Torch-free.

Text and tasks look alike from here on: the global batch of a step, and a fixed validation set.
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
STEPS_AT_ONCE = 32
KHOP_VALIDATION = 0  # the stream that no seed trains on


class Examples(Protocol):
    """Inputs and targets; a target of `IGNORED` is not scored."""

    fingerprint: str
    tokenizer_fingerprint: str
    val: ValidationSet

    @property
    def folder(self) -> Path | None:
        """Where prepared tokens lie; None for what is computed."""

    @property
    def train_sequences(self) -> int | None:
        """Sequences of an epoch; None for a stream that never ends."""

    def batch(self, seed: int, step: int, batch_sequences: int, rows: slice) -> Pairs:
        """Rows of the global batch of a step: (rows, 2, seq_len)."""


@dataclass(frozen=True)
class ValidationSet:
    """The same for every run of a study. `groups` names parts whose errors are told apart."""

    windows: ValidationWindows | Pairs
    tokens: int
    """Targets that are scored."""
    text_bytes: int | None
    """UTF-8 bytes that they stand for; None where there is no text."""
    fingerprint: str
    groups: tuple[str, ...] = ()
    group_of: NDArray[np.int64] | None = None
    """Index into `groups` for each window."""


def open_examples(
    config: Config, seq_len: int, announce: Callable[[str], None] = lambda _: None
) -> Examples:
    """What a run is trained and measured on; a corpus is prepared first if need be.

    Raises:
        DataError: if it cannot be read, or is not what it was.
    """
    data = config.data
    if data.source == "khop":
        assert data.val_tokens is not None, "load_config sees to it"
        return KHopExamples(KHop.of(data, seq_len), data.val_tokens)
    return TextExamples(prepare(config, announce), seq_len, data.val_tokens)


class TrainingWindows:
    """Windows of seq_len + 1 tokens, each beginning where the one before it ended.

    A window never crosses a shard; the remainder at a shard's end is left out.
    """

    def __init__(self, shards: Sequence[NDArray[Any]], seq_len: int):
        self._shards = shards
        self._arrays = [np.asarray(shard) for shard in shards]  # a memmap costs more to slice
        self._seq_len = seq_len
        self._ends = np.cumsum([max(0, (len(shard) - 1) // seq_len) for shard in shards])
        self._before = np.concatenate([[0], self._ends[:-1]])

    def __reduce__(self) -> tuple[Any, ...]:
        """A loader's process that is spawned opens memory maps anew instead of copying the corpus."""
        places = [
            (shard.filename, shard.dtype) if isinstance(shard, np.memmap) else shard
            for shard in self._shards
        ]
        return _reopened, (places, self._seq_len)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def pairs(self, indices: NDArray[np.int64]) -> Pairs:
        """Inputs and targets (len(indices), 2, seq_len) of these windows."""
        shard_of = np.searchsorted(self._ends, indices, side="right")
        starts = (indices - self._before[shard_of]) * self._seq_len
        pairs = np.empty((len(indices), 2, self._seq_len), dtype=np.int64)
        for row, (shard, start) in enumerate(zip(shard_of.tolist(), starts.tolist(), strict=True)):
            window = self._arrays[shard][start : start + self._seq_len + 1]
            pairs[row, 0], pairs[row, 1] = window[:-1], window[1:]
        return pairs


def _reopened(places: list[Any], seq_len: int) -> TrainingWindows:
    shards = [
        np.memmap(place[0], dtype=place[1], mode="r") if isinstance(place, tuple) else place
        for place in places
    ]
    return TrainingWindows(shards, seq_len)


class ValidationWindows:
    """Item i is a pair (2, seq_len); together they score every token of a stream but the first once.

    The stream begins with end-of-text, so each byte of text is predicted exactly once. Targets past
    its end are `IGNORED`.
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
    """Packed documents of a prepared corpus."""

    def __init__(self, data: PreparedData, seq_len: int, val_tokens: int | None):
        """Raises DataError if a split holds less than one sequence."""
        self.fingerprint = data.fingerprint
        self.tokenizer_fingerprint = data.manifest["tokenizer_sha256"][:FINGERPRINT_DIGITS]
        self.folder = data.folder
        self._windows = TrainingWindows(data.split("train"), seq_len)
        if not len(self._windows):
            tokens = data.manifest["splits"]["train"]["tokens"]
            raise DataError(
                f"{data.folder}: {tokens:,} training tokens hold no sequence of model.seq_len={seq_len}; "
                "use a shorter one or more text"
            )
        self._order_of: tuple[int, int, int] | None = None
        stream = _beginning(data.split("val"), None if val_tokens is None else val_tokens + 1)
        self.val = ValidationSet(
            windows=ValidationWindows(stream, seq_len),
            tokens=len(stream) - 1,
            text_bytes=data.tokenizer.count_bytes(stream),
            fingerprint=hashlib.sha256(stream.tobytes()).hexdigest()[:FINGERPRINT_DIGITS],
        )

    @property
    def train_sequences(self) -> int:
        return len(self._windows)

    def batch(self, seed: int, step: int, batch_sequences: int, rows: slice) -> Pairs:
        # The order of many steps costs numpy hardly more than that of one.
        block, within = divmod(step, STEPS_AT_ONCE)
        if self._order_of != (seed, block, batch_sequences):
            sequences = batch_sequences * STEPS_AT_ONCE
            self._order = sequences_of_step(seed, block, sequences, len(self._windows))
            self._order_of = (seed, block, batch_sequences)
        first = within * batch_sequences
        return self._windows.pairs(self._order[first + rows.start : first + rows.stop])


def _beginning(shards: Sequence[NDArray[Any]], tokens: int | None) -> NDArray[Any]:
    """The first tokens of a split, or all, in memory."""
    parts, left = [], tokens
    for shard in shards:
        part = np.array(shard[:left])
        parts.append(part)
        left = None if left is None else left - len(part)
        if left == 0:
            break
    return np.concatenate(parts)


class KHopExamples:
    """k-hop induction: a fresh sequence each time, and errors told apart by k."""

    folder = None
    train_sequences = None

    def __init__(self, task: KHop, val_tokens: int):
        self._task = task
        count = max(1, val_tokens // task.seq_len)
        inputs, targets, hops = task.sequences(KHOP_VALIDATION, 0, count)
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
        stream = KHOP_VALIDATION + 1 + seed
        inputs, targets, _ = self._task.sequences(stream, first, rows.stop - rows.start)
        return np.stack([inputs, targets], axis=1)
