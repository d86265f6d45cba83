"""The data order is a permutation in each epoch and depends only on (seed, step)."""

from __future__ import annotations

import numpy as np
import pytest

from slm.data.shuffle import permute, sequences_of_step


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 17, 256, 257, 10_007])
def test_epoch_order_is_a_permutation(size: int) -> None:
    index = np.arange(size)
    for epoch in (0, 1):
        assert sorted(permute(index, size, seed=0, epoch=epoch)) == list(range(size))


def test_order_depends_on_seed_and_epoch() -> None:
    index = np.arange(1000)
    first = permute(index, 1000, seed=0, epoch=0)
    assert np.array_equal(first, permute(index, 1000, seed=0, epoch=0))
    for other in (permute(index, 1000, seed=1, epoch=0), permute(index, 1000, seed=0, epoch=1)):
        assert np.mean(first == other) < 0.02  # expected for random orders: 1 in 1000


def test_first_sequence_is_uniform_over_seeds() -> None:
    """Chi-squared test over 16 bins, 15 degrees of freedom."""
    starts = np.array([permute(np.array([0]), 4096, seed, 0)[0] for seed in range(1600)])
    counts = np.bincount(starts // 256, minlength=16)
    assert ((counts - 100) ** 2 / 100).sum() < 37.7  # p = .001


def test_consecutive_steps_cover_each_epoch_once() -> None:
    order = np.concatenate([sequences_of_step(5, step, 7, 20) for step in range(20)])
    for epoch in range(7):
        assert sorted(order[20 * epoch : 20 * (epoch + 1)]) == list(range(20))


def test_late_step_is_computed_without_earlier_steps() -> None:
    later = sequences_of_step(seed=3, step=10_000_000, batch_sequences=4, n_sequences=999)
    assert later.shape == (4,)
    assert np.array_equal(later, sequences_of_step(3, 10_000_000, 4, 999))
