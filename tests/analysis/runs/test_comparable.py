"""Rows of a user's table that are other learning rates, copies, unfinished runs, or have no partner."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.runs.load import Runs, load_runs
from analysis.runs.study import Columns, prepare
from slm.errors import DataError
from tests.analysis.block.studies import study

LOSS = "loss_nats_per_token"
OTHER_RATE = "other learning rate of its shape"


@pytest.fixture
def table() -> pd.DataFrame:
    known = study(4, budgets=(5.0, 20.0), tau=0.005)
    named = known[["family", "shape", "n_flop", "tokens", LOSS]].reset_index(drop=True)
    return named.assign(**{LOSS: named[LOSS] + 1e-7})  # more decimals than a rounded copy


def loaded(table: pd.DataFrame, folder: Path) -> Runs:
    table.to_csv(folder / "runs.csv", index=False)
    return load_runs(folder / "runs.csv")


def swept(table: pd.DataFrame) -> pd.DataFrame:
    """Return runs at three learning rates around a rule, of which the middle one is best."""
    rate = 1e-3 * (table["n_flop"] / 1e6) ** -0.3 * (table["tokens"] / 1e7) ** 0.1
    rows = [
        table.assign(peak_lr=factor * rate, **{LOSS: table[LOSS] + extra}, factor=factor)
        for factor, extra in ((1.0, 0.0), (2.0, 0.03), (0.5, 0.02))
    ]
    return pd.concat(rows, ignore_index=True)


class TestLearningRates:
    def test_a_rate_is_chosen_only_where_a_cell_has_several(
        self, table: pd.DataFrame, tmp_path: Path
    ) -> None:
        every = swept(table)
        runs = loaded(every.iloc[: len(table) + 1], tmp_path)  # one cell at a second rate
        assert len(runs.table) == 16 and runs.dropped == {OTHER_RATE: 1}
        runs = loaded(every, tmp_path)
        assert set(runs.table["factor"]) == {1.0} and runs.dropped == {OTHER_RATE: 32}

    def test_rates_of_replicates_may_differ_by_rounding(
        self, table: pd.DataFrame, tmp_path: Path
    ) -> None:
        one = swept(table).iloc[:16]
        again = one.assign(peak_lr=one["peak_lr"] * (1 + 1e-15), **{LOSS: one[LOSS] + 0.003})
        runs = loaded(pd.concat([one, again]), tmp_path)
        assert len(runs.table) == 32 and not runs.dropped

    def test_an_unknown_rate_or_seed_or_rounded_tokens_hide_no_sweep(
        self, table: pd.DataFrame, tmp_path: Path
    ) -> None:
        every = swept(table)
        unknown = every.assign(peak_lr=every["peak_lr"].where(every.index != 5))
        tokens = every["tokens"] * np.repeat([1, 1.0001, 0.9999], 16)
        for case in (unknown, every.assign(tokens=tokens), every.assign(seed="")):
            runs = loaded(case, tmp_path)
            assert set(runs.table["factor"]) == {1.0} and runs.dropped == {OTHER_RATE: 32}


def test_an_architecture_that_is_not_ours_is_set_aside(table: pd.DataFrame, tmp_path: Path) -> None:
    runs = loaded(table.assign(architecture="llama-" + table["shape"]), tmp_path)
    assert len(runs.table) == 16 and not runs.dropped
    assert "column architecture is not used: deep has 4 values" in runs.warnings[0]


class TestCopies:
    def test_two_results_of_one_id_are_refused(self, table: pd.DataFrame, tmp_path: Path) -> None:
        named = table.assign(run_id=[f"r{row}" for row in range(16)], step=300)
        earlier = named.assign(step=200, **{LOSS: named[LOSS] + 0.2})
        with pytest.raises(
            DataError,
            match=r"run_id=r\d+: 2 rows of equal family, shape, tokens with different losses, .*they differ in step",
        ):
            loaded(pd.concat([named, earlier]), tmp_path)
        seeds = pd.concat([named.assign(seed=0), earlier.assign(seed=1)])
        assert len(loaded(seeds, tmp_path).table) == 32

    @pytest.mark.parametrize("has_id", [True, False])
    def test_a_rounded_copy_counts_once(
        self, table: pd.DataFrame, tmp_path: Path, has_id: bool
    ) -> None:
        named = table.assign(run_id=[f"r{row}" for row in range(16)]) if has_id else table
        runs = loaded(pd.concat([named.round({LOSS: 4}), named]), tmp_path)
        assert runs.dropped == {"copy with a rounded loss": 16}
        assert sorted(runs.table[LOSS]) == pytest.approx(sorted(table[LOSS]), abs=1e-9)

    def test_replicates_of_few_decimals_are_no_copies(
        self, table: pd.DataFrame, tmp_path: Path
    ) -> None:
        one, other = (table.assign(**{LOSS: loss}) for loss in (3.12, 3.121))
        assert len(loaded(pd.concat([one, other]), tmp_path).table) == 32


class TestStatus:
    def test_a_run_is_finished_by_all_columns(self, table: pd.DataFrame, tmp_path: Path) -> None:
        words = ["finished"] * 10 + ["running", "crashed"] + [""] * 4
        runs = loaded(table.assign(status="ok", State=words), tmp_path)
        assert len(runs.table) == 10
        assert runs.dropped == {
            "not finished (running)": 1,
            "not finished (crashed)": 1,
            "not finished (no status)": 4,
        }
        assert runs.warnings[0].startswith("columns status, State disagree on 6 runs")

    def test_tables_with_different_columns(self, table: pd.DataFrame, tmp_path: Path) -> None:
        parts = [
            table[:8].assign(status="ok"),
            table[8:].assign(State=["finished"] * 7 + ["failed"]),
        ]
        runs = loaded(pd.concat(parts), tmp_path)
        assert len(runs.table) == 15 and runs.dropped == {"not finished (failed)": 1}

    @pytest.mark.parametrize(
        ("name", "good", "bad"),
        [
            ("finished", "yes", "no"), ("is_finished", 1, 0), ("diverged", False, True), ("diverged", "", "true"),
            ("ExitCode", "0:0", "1:0"), ("exit_code", 0, 137),
        ],
    )  # fmt: skip
    def test_flags_and_exit_codes(
        self, table: pd.DataFrame, tmp_path: Path, name: str, good: Any, bad: Any
    ) -> None:
        runs = loaded(table.assign(**{name: [good] * 12 + [bad] * 4}), tmp_path)
        assert len(runs.table) == 12 and sum(runs.dropped.values()) == 4
        assert f"column {name} is used as the status of the runs" in runs.warnings

    def test_a_flag_of_other_values_is_noted(self, table: pd.DataFrame, tmp_path: Path) -> None:
        runs = loaded(table.assign(Completed="2024-01-31"), tmp_path)
        assert len(runs.table) == 16
        assert runs.warnings == ("column Completed is not used: '2024-01-31' is not yes or no",)


@pytest.mark.parametrize(
    ("name", "factor", "reason"),
    [
        (
            "tokens",
            1.0012,
            "tokens of the nearest run of another family in the rung differ by 0.12%",
        ),
        ("tokens", 1.05, "tokens of the nearest run of another family in the rung differ by 5%"),
        (
            "n_flop",
            1.3,
            "at equal tokens, n_flop of the nearest run of another family differs by 30%",
        ),
    ],
)
def test_the_difference_to_the_nearest_partner_is_named(
    table: pd.DataFrame, name: str, factor: float, reason: str
) -> None:
    is_deep = table["family"] == "deep"
    for family in ("deep", "wide"):
        rows = table["family"] == family
        table.loc[rows, "n_flop"] = np.repeat([1e6, 3e6, 1e7, 3e7], 2)
        table.loc[rows, "tokens"] = table.loc[rows, "n_flop"] * np.tile([5.0, 22.0], 4)
    table.loc[is_deep, name] *= factor
    (warning,) = [
        each
        for each in prepare(table, Columns("n_flop"), "deep", "wide").warnings
        if "share no" in each
    ]
    assert "16 of 16 runs share no token count" in warning and reason in warning
