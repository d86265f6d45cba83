"""Random tables and random settings end in a result or in one SlmError, never in another exception."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from analysis.compare.families import compare_families
from analysis.runs.load import load_runs
from analysis.runs.study import Columns, prepare
from slm.errors import SlmError
from tests.analysis.block.studies import study

NAMES = [
    "family", "shape", "n_flop", "tokens", "loss_nats_per_token", "flops", "seed", "rung", "size", "budget",
    "tokens_per_param", "aspect_ratio", "run_id", "status", "State", "decayed", "peak_lr", "params_total", "d_model",
    "n_layers", "val_fingerprint", "unknown", "",
]  # fmt: skip
VALID = study(4, tau=0.01, sigma=0.01, seed=3).assign(seed=0, run_id=None, status="finished")
numbers = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True),
    st.integers(-(10**30), 10**30),
    st.sampled_from([0, -1, 1e-300, 1e300, 125, 1.25e8, 3.1]),
)
words = st.one_of(
    st.text(max_size=8),
    st.sampled_from(["deep", "wide", "Deep ", "a|b", "yes", "no", "finished", "crashed", "1,5", "3e8", "nan", "-", "125M"]),
)  # fmt: skip
values = st.one_of(
    numbers, words, st.none(), st.booleans(), st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)  # fmt: skip
changes = st.lists(
    st.tuples(st.sampled_from(NAMES), st.integers(0, len(VALID) - 1), values), max_size=6
)
whole_columns = st.dictionaries(st.sampled_from(NAMES), values, max_size=3)
removed = st.lists(st.sampled_from(NAMES), max_size=3)
EXAMPLES = pytest.param(60, id="60"), pytest.param(1500, id="1500", marks=pytest.mark.slow)


def changed(
    cells: list[tuple[str, int, Any]], columns: dict[str, Any], lacking: list[str]
) -> pd.DataFrame:
    """Return a valid table with some cells and columns replaced, and some columns removed."""
    table = VALID.astype(object)
    for name, value in columns.items():
        table[name] = pd.Series([value] * len(table), dtype=object, index=table.index)
    for name, row, value in cells:
        if name not in table:
            table[name] = None
        column = table[name].tolist()
        column[row] = value
        table[name] = pd.Series(column, dtype=object, index=table.index)
    return table.drop(columns=lacking, errors="ignore")


def write(table: pd.DataFrame, path: Path) -> None:
    if path.suffix == ".csv":
        table.to_csv(path, index=False)
    else:
        rows = table.to_dict(orient="records")
        path.write_text("".join(json.dumps(row, default=str) + "\n" for row in rows))


@pytest.mark.parametrize("examples", EXAMPLES)
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_tables_load_or_end_in_one_message(tmp_path: Path, suffix: str, examples: int) -> None:
    @settings(
        max_examples=examples, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck), phases=[Phase.generate],
    )  # fmt: skip
    @given(changes, whole_columns, removed)
    def run(cells: list[Any], columns: dict[str, Any], lacking: list[str]) -> None:
        write(changed(cells, columns, lacking), tmp_path / f"a{suffix}")
        try:
            runs = load_runs(tmp_path / f"a{suffix}")
        except SlmError as error:
            assert str(error) and "\n" not in str(error)
            return
        assert len(runs.table) and repr(runs)
        has_rung = "rung" in runs.table
        try:
            prepare(runs.table, Columns(rung="rung" if has_rung else None), None, None)
        except SlmError as error:
            assert str(error)

    run()


@pytest.mark.parametrize(
    "examples", [pytest.param(8, id="8"), pytest.param(150, id="150", marks=pytest.mark.slow)]
)
def test_comparisons_end_in_a_verdict_or_one_message(examples: int) -> None:
    @settings(
        max_examples=examples, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck), phases=[Phase.generate],
    )  # fmt: skip
    @given(changes, whole_columns, removed)
    def run(cells: list[Any], columns: dict[str, Any], lacking: list[str]) -> None:
        try:
            found = compare_families(changed(cells, columns, lacking), bootstrap=0)
        except SlmError as error:
            assert str(error)
            return
        assert found.verdict.word and repr(found)

    run()
