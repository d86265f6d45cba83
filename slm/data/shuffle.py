"""Order of the training sequences as a pure function of (seed, step).

There is no random state to store or advance, so the order is the same after a restart and for any
micro-batch size, number of workers or world size. Each epoch visits every sequence once, in a
different order.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ROUNDS = 6  # Feistel rounds; 4 suffice for a pseudorandom permutation (Luby and Rackoff 1988)


def sequences_of_step(
    seed: int, step: int, batch_sequences: int, n_sequences: int
) -> NDArray[np.int64]:
    """Return the sequence indices of the global batch of a step, shape (batch_sequences,)."""
    positions = np.arange(step * batch_sequences, (step + 1) * batch_sequences, dtype=np.int64)
    epochs, within = np.divmod(positions, n_sequences)
    sequences = np.empty_like(positions)
    for epoch in np.unique(epochs):
        chosen = epochs == epoch
        sequences[chosen] = permute(within[chosen], n_sequences, seed, int(epoch))
    return sequences


def rows_of_rank(n_rows: int, rank: int, world_size: int) -> slice:
    """Return the contiguous rows of a global batch that are assigned to a rank."""
    return slice(n_rows * rank // world_size, n_rows * (rank + 1) // world_size)


def permute(index: NDArray[np.int64], size: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Apply the permutation of range(size) keyed by (seed, epoch) to `index`, without storing it.

    A balanced Feistel network permutes the range of the next even power of two. Results outside
    range(size) are permuted again until they fall inside ("cycle walking"; Black and Rogaway 2002).
    """
    half_bits = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    words = np.random.SeedSequence([seed, epoch]).generate_state(ROUNDS, dtype=np.uint64)
    keys = words.astype(np.uint64)
    values = _feistel(index.astype(np.uint64), half_bits, keys)
    while (outside := values >= size).any():
        values[outside] = _feistel(values[outside], half_bits, keys)
    return values.astype(np.int64)


def _feistel(
    values: NDArray[np.uint64], half_bits: int, keys: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    mask, shift = np.uint64((1 << half_bits) - 1), np.uint64(half_bits)
    left, right = values >> shift, values & mask
    for key in keys:
        left, right = right, left ^ (mix(right ^ key) & mask)
    return left << shift | right


def mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Apply the finalizer of SplitMix64 (Steele, Lea and Flood 2014), modulo 2^64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
