"""Batches depend only on (seed, step), not on processes or workers; an epoch has every token once."""

from __future__ import annotations

import pickle
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from slm.data.examples import (
    Examples,
    KHopExamples,
    TextExamples,
    TrainingWindows,
    ValidationWindows,
)
from slm.data.khop import IGNORED, KHop
from slm.data.shuffle import rows_of_rank
from slm.data.tokens.shards import PreparedData
from slm.training.batches import TrainingBatches, ValidationBatches, to_pairs

SEQ_LEN, BATCH = 32, 48


@pytest.fixture(params=["text", "khop"])
def examples(request: pytest.FixtureRequest, prose: PreparedData) -> Examples:
    if request.param == "khop":
        return KHopExamples(KHop(4, 4, SEQ_LEN), 320)
    return TextExamples(prose, SEQ_LEN, 1024)


def read_global_batches(
    examples: Examples, world_size: int, micro_batches: int, workers: int, steps: range
) -> list[torch.Tensor]:
    """Read the micro-batches of every rank and concatenate them to global batches."""
    loaders = [
        DataLoader(
            TrainingBatches(examples, 5, BATCH, rank, world_size),
            batch_size=None,
            sampler=steps,
            num_workers=workers,
        )
        for rank in range(world_size)
    ]
    whole = []
    for shares in zip(*loaders, strict=True):
        micro = [m for share in shares for m in share.split(len(share) // micro_batches)]
        whole.append(torch.cat(micro))
    return whole


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_do_not_depend_on_world_size_micro_batches_or_workers(
    examples: Examples, workers: int
) -> None:
    expected = [torch.from_numpy(examples.batch(5, s, BATCH, slice(0, BATCH))) for s in range(4)]
    splits = product((1, 2, 3, 4), (1, 2, 4)) if workers == 0 else [(1, 4), (3, 2)]
    for world_size, micro_batches in splits:
        found = read_global_batches(examples, world_size, micro_batches, workers, range(4))
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    resumed = read_global_batches(examples, 3, 2, workers, range(2, 4))
    assert all(torch.equal(a, b) for a, b in zip(resumed, expected[2:], strict=True))


def test_ranks_with_fewer_rows_get_a_padding_row_without_targets(examples: Examples) -> None:
    expected = to_pairs(torch.from_numpy(examples.batch(5, 3, BATCH, slice(0, BATCH))))
    ranks = [TrainingBatches(examples, 5, BATCH, rank, 5) for rank in range(5)]
    shares = [batches.mask_padding(to_pairs(batches[3])) for batches in ranks]
    assert [len(share) for share in shares] == [10] * 5
    rows = torch.cat(shares)
    is_padding = (rows[:, 1] == IGNORED).all(dim=1)
    assert is_padding.sum() == 2 and torch.equal(rows[~is_padding], expected)


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_every_validation_window_is_evaluated_once(examples: Examples, world_size: int) -> None:
    n, batch = len(examples.val.windows), 3
    shares = [
        list(ValidationBatches(examples.val, batch, rank, world_size)) for rank in range(world_size)
    ]
    assert len({len(share) for share in shares}) == 1, "all ranks have the same number of batches"
    assert len(shares[0]) == len(ValidationBatches(examples.val, batch, 0, world_size))
    batches = [share[index] for index in range(len(shares[0])) for share in shares]
    pairs, groups = (torch.cat([b[i] for b in batches]) for i in (0, 1))
    is_padding = (pairs[:, 1] == IGNORED).all(dim=1)
    expected = np.stack([examples.val.windows[index] for index in range(n)])
    assert torch.equal(pairs[~is_padding], torch.from_numpy(expected))
    if examples.val.group_of is not None:
        assert torch.equal(groups[~is_padding], torch.from_numpy(examples.val.group_of))


def test_pickled_windows_hold_paths_instead_of_tokens(prose: PreparedData) -> None:
    windows = TrainingWindows(prose.split("train"), SEQ_LEN)
    pickled = pickle.dumps(windows)
    assert len(pickled) < 5000
    indices = np.array([0, 5, len(windows) - 1])
    assert np.array_equal(pickle.loads(pickled).windows(indices), windows.windows(indices))


def test_rows_of_ranks_partition_the_batch_evenly() -> None:
    for n_rows, world_size in product((1, 7, 12), (1, 2, 3, 4, 5)):
        shares = [range(n_rows)[rows_of_rank(n_rows, r, world_size)] for r in range(world_size)]
        assert [row for share in shares for row in share] == list(range(n_rows))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_every_epoch_has_each_window_once_in_a_different_order(prose: PreparedData) -> None:
    seq_len, batch = 1024, 16
    examples = TextExamples(prose, seq_len, 1024)
    stream = np.concatenate(prose.split("train"))
    n = examples.train_sequences
    steps = -(-2 * n // batch)
    targets = np.concatenate(
        [examples.batch(1, step, batch, slice(0, batch))[:, 1:] for step in range(steps)]
    )
    orders = []
    index_of = {
        window.tobytes(): index
        for index, window in enumerate(stream[1 : 1 + n * seq_len].reshape(n, -1))
    }
    for epoch in (targets[:n], targets[n : 2 * n]):
        orders.append([index_of[window.tobytes()] for window in epoch])
        assert sorted(orders[-1]) == list(range(n))
    assert np.mean(np.array(orders[0]) == np.array(orders[1])) < 0.02


def test_windows_do_not_cross_shards() -> None:
    shards = [np.arange(11, dtype=np.uint16), np.arange(100, 108, dtype=np.uint16)]
    windows = TrainingWindows(shards, seq_len=3)
    assert len(windows) == 3 + 2
    assert windows.windows(np.array([3, 2])).tolist() == [[100, 101, 102, 103], [6, 7, 8, 9]]


def test_validation_targets_are_every_token_but_the_first_once() -> None:
    stream = np.arange(50, 61, dtype=np.uint16)
    windows = ValidationWindows(stream, seq_len=4)
    pairs = [windows[i] for i in range(len(windows))]
    targets = [t for _, row in pairs for t in row.tolist() if t != IGNORED]
    assert targets == stream[1:].tolist()
    for inputs, window_targets in pairs:
        scored = window_targets != IGNORED
        assert (inputs[scored] + 1 == window_targets[scored]).all()


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.int64])
def test_windows_of_any_integer_type_become_pairs(dtype: type) -> None:
    tokens = np.array([[0, 7, 65_535, 3]], dtype=dtype)
    window = torch.from_numpy(tokens.view(np.int32) if dtype is np.uint32 else tokens)
    assert to_pairs(window).tolist() == [[[0, 7, 65_535], [7, 65_535, 3]]]


@pytest.mark.parametrize(("num_workers", "expected"), [(2, (2, 2)), (5, (5, 1)), (9, (8, 1))])
def test_waiting_batches_fit_into_the_shared_memory_of_a_container(
    prose: PreparedData, monkeypatch: pytest.MonkeyPatch, num_workers: int, expected: Any
) -> None:
    """2 bytes per token, 48 x 33 tokens per batch: at most 8 batches in 26,000 bytes."""
    monkeypatch.setattr("slm.training.batches.MAX_WAITING_BYTES", 26_000)
    batches = TrainingBatches(TextExamples(prose, SEQ_LEN, 1024), 5, BATCH)
    assert batches[0].element_size() == 2
    loader = batches.load(range(10), num_workers, pin_memory=False)
    assert isinstance(loader, DataLoader)
    assert (loader.num_workers, loader.prefetch_factor) == expected
    assert loader.num_workers * (loader.prefetch_factor or 0) * 48 * 33 * 2 <= 26_000
    if num_workers == 2:
        assert all(torch.equal(batch, batches[step]) for step, batch in enumerate(loader))
