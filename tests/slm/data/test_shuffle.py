"""The order of data is a permutation per epoch and depends on (seed, step) alone."""

from __future__ import annotations

import numpy as np
import pytest

from slm.data.blocks import blocks
from slm.data.shuffle import permute, sequences_of_step


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 17, 256, 257, 10_007])
def test_every_epoch_is_a_permutation(size: int) -> None:
    index = np.arange(size)
    for epoch in (0, 1):
        assert sorted(permute(index, size, seed=0, epoch=epoch)) == list(range(size))


def test_seed_and_epoch_change_the_order_and_nothing_else_does() -> None:
    index = np.arange(1000)
    first = permute(index, 1000, seed=0, epoch=0)
    assert np.array_equal(first, permute(index, 1000, seed=0, epoch=0))
    for other in (permute(index, 1000, seed=1, epoch=0), permute(index, 1000, seed=0, epoch=1)):
        assert np.mean(first == other) < 0.02  # two random orders agree at 1 in 1000 places


def test_the_order_does_not_lean() -> None:
    """First positions are spread evenly: chi-squared over 16 bins, 15 degrees of freedom."""
    starts = np.array([permute(np.array([0]), 4096, seed, 0)[0] for seed in range(1600)])
    counts = np.bincount(starts // 256, minlength=16)
    assert ((counts - 100) ** 2 / 100).sum() < 37.7  # p = .001


def test_steps_tile_the_epochs() -> None:
    drawn = np.concatenate([sequences_of_step(5, step, 7, 20) for step in range(20)])
    for epoch in range(7):
        assert sorted(drawn[20 * epoch : 20 * (epoch + 1)]) == list(range(20))


def test_a_step_is_read_alone() -> None:
    later = sequences_of_step(seed=3, step=10_000_000, batch_sequences=4, n_sequences=999)
    assert later.shape == (4,)
    assert np.array_equal(later, sequences_of_step(3, 10_000_000, 4, 999))


@pytest.mark.parametrize("first", [0, 1, 7, 10, 33])
def test_blocks_cover_all_steps_and_end_where_something_is_due(first: int) -> None:
    found = list(blocks(first, 45, every=[10, 4], at=[1, 36]))
    assert [step for block in found for step in block] == list(range(first, 45))
    due = {n for n in range(1, 46) if n % 10 == 0 or n % 4 == 0} | {1, 36, 45}
    assert [block.stop for block in found] == sorted(n for n in due if n > first)
    assert list(blocks(45, 45, every=[10], at=[1])) == []
