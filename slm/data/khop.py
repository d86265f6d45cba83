"""k-hop induction: a task whose answer is found by following k links, so that it needs depth.

A sequence is a request for k hops and then symbols of a small alphabet, no two neighbours equal:

    k3  c a b a d c b ...

From a position one hop leads to the symbol that followed the latest earlier occurrence of the symbol
there; k hops repeat that. The target of a position is the symbol that k hops lead to, and positions
from which they lead nowhere are not scored. Transformers of about log2 k layers can do it and those
of fewer, of any practical width, cannot (Sanford, Hsu and Telgarsky 2024, 2402.09268, sections 1, 4).

The stream never ends and nothing is stored: symbols are arithmetic on (seed, sequence, position).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slm.config.schema import DataConfig
from slm.config.schema.types import IGNORED
from slm.data.shuffle import mix

NOWHERE = -1
GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / the golden ratio: SplitMix64 steps by it
Ids = NDArray[np.int64]


@dataclass(frozen=True)
class KHop:
    """Symbols have the ids 0 .. alphabet - 1; the request for k hops has alphabet + k - 1."""

    alphabet: int
    max_hops: int
    seq_len: int

    @classmethod
    def of(cls, data: DataConfig, seq_len: int) -> KHop:
        return cls(data.khop_alphabet, data.khop_max_hops, seq_len)

    @property
    def vocab_size(self) -> int:
        return self.alphabet + self.max_hops

    def sequences(self, key: int, first: int, count: int) -> tuple[Ids, Ids, Ids]:
        """Sequences `first`, `first + 1`, ... of the stream `key`.

        Returns:
            Inputs (count, seq_len), targets of the same shape, and hops asked for (count,).
        """
        index = np.arange(first, first + count, dtype=np.uint64)
        position = np.arange(self.seq_len, dtype=np.uint64)
        counter = index[:, None] * np.uint64(self.seq_len) + position
        stream = mix(np.array([key], dtype=np.uint64) * GOLDEN + GOLDEN)
        drawn = mix(stream + counter * GOLDEN)
        hops = (drawn[:, 0] % np.uint64(self.max_hops)).astype(np.int64) + 1
        # Each symbol is the one before plus 1 .. alphabet - 1, so neighbours differ.
        steps = drawn[:, 1:] % np.uint64(self.alphabet - 1) + np.uint64(1)
        steps[:, 0] = drawn[:, 1] % np.uint64(self.alphabet)
        symbols = (np.cumsum(steps, axis=1) % np.uint64(self.alphabet)).astype(np.int64)
        inputs = np.concatenate([(self.alphabet + hops - 1)[:, None], symbols], axis=1)
        answers = np.full_like(inputs, IGNORED)
        answers[:, 1:] = follow(symbols, hops, self.alphabet)
        return inputs, answers, hops


def follow(symbols: Ids, hops: Ids, alphabet: int) -> Ids:
    """The symbol that hops[i] hops from each position of row i lead to, or `IGNORED`.

    symbols (n, length), hops (n,) -> (n, length).
    """
    rows = np.arange(len(symbols))
    latest = np.full((len(symbols), alphabet), NOWHERE)  # position of each symbol's last occurrence
    next_of = np.empty_like(symbols)
    for position in range(symbols.shape[1]):
        symbol = symbols[:, position]
        before = latest[rows, symbol]
        next_of[:, position] = np.where(before == NOWHERE, NOWHERE, before + 1)
        latest[rows, symbol] = position
    place = np.tile(np.arange(symbols.shape[1]), (len(symbols), 1))
    for hop in range(int(hops.max(initial=0))):
        goes_on = (hops[:, None] > hop) & (place != NOWHERE)
        place = np.where(goes_on, np.take_along_axis(next_of, place, axis=1), place)
    reached = np.take_along_axis(symbols, place, axis=1)
    return np.where(place == NOWHERE, IGNORED, reached)
