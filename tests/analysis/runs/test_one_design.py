"""Runs of more than one design of a study in one folder: one is used, and the others are counted."""

from __future__ import annotations

from collections import Counter
from itertools import product
from typing import Any

import pandas as pd

from analysis.runs.one_design import with_one_design


def run(family: str, rung: str | None, shape: str, tokens: int, **other: Any) -> dict[str, Any]:
    return {
        "run_id": f"{family} {rung} {shape} {tokens} {other}",
        "recipe_id": "r",
        "family": family,
        "rung": rung,
        "model_shape": shape,
        "shape": shape,
        "tokens": tokens,
        "seed": 0,
        "peak_lr": 0.004,
        "n_flop": 100_000.0,
        "reference_flops_per_token": 600_000,
        "warmup_tokens": 100,
        "batch_tokens": 1024,
        **other,
    }


def kept(rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Return the kept runs and the counts of the dropped ones, which do not depend on the order of the runs."""
    found = []
    for order in (rows, rows[::-1]):
        dropped: Counter[str] = Counter()
        table, notes = with_one_design(pd.DataFrame(order), dropped)
        assert len(notes) == bool(dropped) and len(table) + dropped.total() == len(rows)
        table = table.sort_values("run_id")
        found.append((table["run_id"].tolist(), dict(dropped)))
    assert found[0] == found[1]
    return table.to_dict("records"), found[0][1]


def test_one_shape_per_family_and_size() -> None:
    old = [run(f, "80000", f"L{f}", t) for f, t in product(("deep", "wide"), (1000, 3000))]
    new = [run("wide", "80000", "L3", 1000)]
    rows, dropped = kept([*old, *new])
    assert dropped == {"other shape of wide at size 80k (L3)": 1}
    assert {row["model_shape"] for row in rows} == {"Ldeep", "Lwide"}


def test_one_target_per_size_also_where_a_family_keeps_its_shape() -> None:
    old = [run(f, "80000", f"L{f}", t) for f, t in product(("deep", "wide"), (1000, 3000))]
    moved = {"reference_flops_per_token": 620_000}
    new = [run("deep", "80000", "Ldeep", 1050, **moved), run("wide", "80000", "L3", 1050, **moved)]
    rows, dropped = kept([*old, *new])
    assert dropped == {"other shapes at size 80k": 2}
    assert {row["tokens"] for row in rows} == {1000, 3000}


def test_one_warmup_per_shape_whose_budgets_share_a_trunk() -> None:
    old = [run("deep", "80000", "L", t, warmup_tokens=100) for t in (1000, 3000, 9000)]
    new = [run("deep", "80000", "L", t, warmup_tokens=50) for t in (500, 1000)]
    rows, dropped = kept([*old, *new])
    assert dropped == {"other warmup of its shape": 2}
    assert [row["warmup_tokens"] for row in rows] == [100] * 3


def test_runs_that_belong_to_one_design_are_kept() -> None:
    separate = [run("deep", "80000", "L", t, warmup_tokens=t // 10) for t in (1000, 3000)]
    limited = [run("wide", "80000", "W", t, warmup_tokens=100_000) for t in (2_000_000, 4_000_000)]
    limited += [run("wide", "80000", "W", 500_000, warmup_tokens=50_000)]
    replicates = [run("mid", "80000", "M", 1000, seed=seed) for seed in range(3)]
    rates = [run("tuned", "80000", "T", 1000, peak_lr=lr) for lr in (1e-3, 2e-3)]
    explicit = [run("custom", None, shape, 1000) for shape in ("A", "B")]
    unknown = [run("old", "80000", "O", t, warmup_tokens=None) for t in (1000, 3000)]
    rows, dropped = kept([*separate, *limited, *replicates, *rates, *explicit, *unknown])
    assert not dropped and len(rows) == 14


def test_one_batch_size_per_cell() -> None:
    rows, dropped = kept(
        [run("deep", "80000", "L", 4096), run("deep", "80000", "L", 4096, batch_tokens=2048)]
    )
    assert dropped == {"other batch size of its cell": 1} and len(rows) == 1
