"""k-hop induction: a synthetic task whose targets are found by following k links, which needs depth.

A sequence is a token that gives k, followed by symbols of a small alphabet, no two neighbours equal:

    k3  c a b a d c b ...

One hop from a position finds the latest earlier occurrence of the same symbol and moves to the position
after it. The target of a position is the symbol reached after k hops; positions from which k hops are
not possible are not scored. Transformers with about log2 k layers solve the task, and shallower ones
of any practical width do not (Sanford, Hsu and Telgarsky 2024, arXiv 2402.09268, sections 1 and 4).

The streams are endless and not stored: each symbol is computed from (stream, sequence, position).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slm.config.schema import DataConfig
from slm.config.schema.types import IGNORED
from slm.data.shuffle import mix

NOWHERE = -1
GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, the increment of SplitMix64
Ids = NDArray[np.int64]


@dataclass(frozen=True)
class KHop:
    """The k-hop task. Token ids: symbols 0 to alphabet - 1; the token for k is alphabet + k - 1."""

    alphabet: int
    max_hops: int
    seq_len: int

    @classmethod
    def from_config(cls, data: DataConfig, seq_len: int) -> KHop:
        return cls(data.khop_alphabet, data.khop_max_hops, seq_len)

    @property
    def vocab_size(self) -> int:
        return self.alphabet + self.max_hops

    def sequences(self, key: int, first: int, count: int) -> tuple[Ids, Ids, Ids]:
        """Compute `count` sequences of the stream `key`, from number `first` on.

        Returns:
            Inputs (count, seq_len), targets of the same shape, and k of each sequence (count,).
        """
        index = np.arange(first, first + count, dtype=np.uint64)
        position = np.arange(self.seq_len, dtype=np.uint64)
        counter = index[:, None] * np.uint64(self.seq_len) + position
        stream = mix(np.array([key], dtype=np.uint64) * GOLDEN + GOLDEN)
        drawn = mix(stream + counter * GOLDEN)
        hops = (drawn[:, 0] % np.uint64(self.max_hops)).astype(np.int64) + 1
        # Adding 1 to alphabet - 1 (modulo alphabet) to the previous symbol makes neighbours differ.
        steps = drawn[:, 1:] % np.uint64(self.alphabet - 1) + np.uint64(1)
        steps[:, 0] = drawn[:, 1] % np.uint64(self.alphabet)
        symbols = (np.cumsum(steps, axis=1) % np.uint64(self.alphabet)).astype(np.int64)
        inputs = np.concatenate([(self.alphabet + hops - 1)[:, None], symbols], axis=1)
        targets = np.full_like(inputs, IGNORED)
        targets[:, 1:] = follow_hops(symbols, hops, self.alphabet)
        return inputs, targets, hops


def follow_hops(symbols: Ids, hops: Ids, alphabet: int) -> Ids:
    """Return the symbol reached after hops[i] hops from each position of row i, or `IGNORED`.

    Shapes: symbols (n, length), hops (n,), result (n, length).
    """
    rows = np.arange(len(symbols))
    latest = np.full(
        (len(symbols), alphabet), NOWHERE
    )  # position of each symbol's latest occurrence
    next_of = np.empty_like(symbols)
    for position in range(symbols.shape[1]):
        symbol = symbols[:, position]
        before = latest[rows, symbol]
        next_of[:, position] = np.where(before == NOWHERE, NOWHERE, before + 1)
        latest[rows, symbol] = position
    current = np.tile(np.arange(symbols.shape[1]), (len(symbols), 1))
    for hop in range(int(hops.max(initial=0))):
        continues = (hops[:, None] > hop) & (current != NOWHERE)
        current = np.where(continues, np.take_along_axis(next_of, current, axis=1), current)
    reached = np.take_along_axis(symbols, current, axis=1)
    return np.where(current == NOWHERE, IGNORED, reached)
