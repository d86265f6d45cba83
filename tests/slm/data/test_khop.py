"""k-hop induction follows its definition, and each sequence is reproducible."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from slm.config.schema import Config
from slm.data.examples import KHopExamples
from slm.data.khop import IGNORED, KHop, follow_hops
from slm.errors import ConfigError
from slm.run.spec import RunSpec
from slm.tracking.run_dir import RunDirectory
from slm.training.runner import train


def by_definition(symbols: list[int], position: int, hops: int) -> int:
    """arXiv 2402.09268, definition 4.1: find^1(i) is the largest j <= i with x[j-1] = x[i]."""
    for _ in range(hops):
        after = [j for j in range(1, position + 1) if symbols[j - 1] == symbols[position]]
        if not after:
            return IGNORED
        position = max(after)
    return symbols[position]


@pytest.mark.parametrize(("alphabet", "max_hops"), [(3, 1), (4, 4), (4, 16), (9, 16)])
def test_targets_equal_brute_force(alphabet: int, max_hops: int) -> None:
    inputs, targets, hops = KHop(alphabet, max_hops, 48).sequences(key=3, first=10, count=64)
    assert set(hops) <= set(range(1, max_hops + 1)) and (max_hops == 1 or len(set(hops)) > 1)
    for row, k, row_targets in zip(inputs, hops, targets, strict=True):
        assert row[0] == alphabet + k - 1 and row_targets[0] == IGNORED
        symbols = row[1:].tolist()
        expected = [by_definition(symbols, i, int(k)) for i in range(len(symbols))]
        assert row_targets[1:].tolist() == expected


def test_every_k_up_to_16_on_one_sequence() -> None:
    inputs, _, _ = KHop(4, 1, 257).sequences(key=1, first=0, count=1)
    symbols = inputs[:, 1:]
    for k in range(1, 17):
        expected = [by_definition(symbols[0].tolist(), i, k) for i in range(symbols.shape[1])]
        assert follow_hops(symbols, np.array([k]), 4)[0].tolist() == expected


def test_neighbours_differ_and_symbols_and_hops_are_uniform() -> None:
    inputs, _, hops = KHop(4, 4, 101).sequences(key=0, first=0, count=2000)
    symbols = inputs[:, 1:]
    assert (symbols[:, 1:] != symbols[:, :-1]).all()
    for values, kinds in ((symbols[:, ::3].ravel(), 4), (hops - 1, 4)):
        counts = np.bincount(values, minlength=kinds)
        expected = len(values) / kinds
        assert (
            (counts - expected) ** 2 / expected
        ).sum() < 16.3  # p = .001 at 3 degrees of freedom


def test_sequence_depends_only_on_its_stream_and_number() -> None:
    task = KHop(4, 4, 32)
    whole, _, _ = task.sequences(key=7, first=0, count=20)
    for first in (0, 3, 19):
        assert np.array_equal(task.sequences(key=7, first=first, count=1)[0][0], whole[first])
    other, _, _ = task.sequences(key=8, first=0, count=20)
    assert np.mean(whole[:, 1:] == other[:, 1:]) < 0.35  # expected by chance: 0.25
    assert len({row.tobytes() for row in whole}) == 20


def test_validation_and_training_sequences_are_disjoint() -> None:
    examples = KHopExamples(KHop(4, 4, 32), val_tokens=32 * 200)
    val = {pair[0].tobytes() for pair in examples.val.windows}
    trained = examples.batch(seed=0, step=0, batch_sequences=200, rows=slice(0, 200))
    assert len(val) == 200 and val.isdisjoint(pair[0].tobytes() for pair in trained)


def test_run_reports_errors_by_k(tiny_spec: Callable[..., RunSpec]) -> None:
    spec = tiny_spec(
        data={"source": "khop", "val_tokens": 3200},
        tokenizer={"kind": "symbols"},
        optimizer={"z_loss": 1e-4},
    )
    run = RunDirectory.of(spec)
    with run.claim(spec):
        result = train(spec, run)
    assert result.val_errors is not None and set(result.val_errors) == {"k=1", "k=2", "k=3", "k=4"}
    assert all(0 < share < 1 for share in result.val_errors.values())
    assert (result.val_bits_per_byte, result.val_bytes, result.epochs) == (None, None, 0)
    assert "val/error/k=3" in run.read_metrics()[-1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"source": "khop"}}, r"tokenizer\.kind=ascii: data\.source=khop needs"),
        ({"tokenizer": {"kind": "symbols"}}, r"tokenizer\.kind=symbols: .*data\.source=khop only"),
        (
            {"data": {"source": "khop", "khop_alphabet": 2}, "tokenizer": {"kind": "symbols"}},
            r"data\.khop_alphabet=2: .*nearest: 3",
        ),
        (
            {"data": {"source": "khop", "val_tokens": None}, "tokenizer": {"kind": "symbols"}},
            r"data\.val_tokens=null: is needed",
        ),
        (
            {"data": {"source": "khop", "khop_max_hops": 9}, "tokenizer": {"kind": "symbols"}},
            r"model\.seq_len=32: must be at least .*=36",
        ),
    ],
)
def test_incompatible_settings_raise(
    tiny_config: Callable[..., Config], changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny_config(**changes)
