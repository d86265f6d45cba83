"""Loading runs from tables: columns, dropped runs, error messages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.compare.families import compare_families
from analysis.runs.load import load_runs
from analysis.runs.study import Columns, prepare
from analysis.runs.tables import run_row
from slm.errors import DataError
from slm.run.lr_schedule import is_decayed
from tests.analysis.block.studies import study
from tests.conftest import ROOT
from tests.full_study import full_study

COLUMNS_IN_FILE = {
    "n_flop": "N",
    "tokens": "D",
    "loss_nats_per_token": "L",
    "family": "kind",
    "shape": "model",
}
MICRO_RESULTS = ROOT / "analysis" / "examples" / "micro_first" / "results.jsonl"


@pytest.fixture
def table() -> pd.DataFrame:
    return study(8, d_alpha=0.05, tau=0.005, sigma=0.005, seed=1).drop(columns=["flops"])


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_columns_of_a_table_are_renamed(table: pd.DataFrame, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"runs{suffix}"
    renamed_table = table.rename(columns=COLUMNS_IN_FILE)
    if suffix == ".csv":
        renamed_table.to_csv(path, index=False)
    else:
        renamed_table.to_json(path, orient="records", lines=True)
    runs = load_runs(path, columns=COLUMNS_IN_FILE)
    assert len(runs.table) == 48 and not runs.dropped and runs.families == ["deep", "wide"]
    found = compare_families(runs.table, bootstrap=0)
    assert found.difference == pytest.approx(compare_families(table, bootstrap=0).difference)


def test_results_file_takes_no_column_names() -> None:
    with pytest.raises(DataError, match="has its own columns; remove columns and"):
        load_runs(MICRO_RESULTS, columns={"shape": "shape", "loss_nats_per_token": "loss"})
    assert len(load_runs(MICRO_RESULTS).families) == 3


def test_dropped_rows_are_counted_by_reason(table: pd.DataFrame, tmp_path: Path) -> None:
    table = table.assign(status="finished", decayed=True, val_fingerprint="v", seed=0)
    table.loc[0, "status"] = "crashed"
    table.loc[1, "loss_nats_per_token"] = float("nan")
    table.loc[2, "decayed"] = False
    table.loc[3, "val_fingerprint"] = "other"
    pd.concat([table, table.iloc[[10]]]).to_csv(tmp_path / "runs.csv", index=False)
    runs = load_runs(tmp_path / "runs.csv")
    assert len(runs.table) == 44
    assert runs.dropped == {
        "not finished (crashed)": 1,
        "no final loss, or diverged": 1,
        "undecayed": 1,
        "other validation set": 1,
        "duplicate": 1,
    }


def test_unusable_tables_are_rejected_with_the_missing_column(
    table: pd.DataFrame, tmp_path: Path
) -> None:
    table.drop(columns=["n_flop"]).to_csv(tmp_path / "runs.csv", index=False)
    with pytest.raises(DataError, match=r"lacks n_flop .*--columns 'n_flop=NAME' or columns="):
        load_runs(tmp_path / "runs.csv")
    with pytest.raises(DataError, match="did you mean tokens"):
        load_runs(tmp_path / "runs.csv", columns={"tokens": "tokns"})
    with pytest.raises(DataError, match=r"no such file or folder; did you mean .*/runs\.csv\?"):
        load_runs(tmp_path / "run.csv")
    with pytest.raises(DataError, match=r"no such file or folder; did you mean .*/runs\.csv\?"):
        load_runs(tmp_path / "run.cvs" / "inner")
    nested = table.assign(shape=[{"n_layers": 2}] * len(table))
    nested.to_json(tmp_path / "nested.jsonl", orient="records", lines=True)
    with pytest.raises(
        DataError, match=r"shape=\{'n_layers': 2\} in line 1: must be a word or number"
    ):
        load_runs(tmp_path / "nested.jsonl")
    table.iloc[:0].to_csv(tmp_path / "empty.csv", index=False)
    with pytest.raises(DataError, match="no finished run"):
        load_runs(tmp_path / "empty.csv")


def test_schedules_without_decay_are_undecayed() -> None:
    assert is_decayed({"kind": "wsd", "decay_fraction": 0.2}) and is_decayed({"kind": "cosine"})
    assert not is_decayed({"kind": "wsd", "decay_fraction": 0.0})
    assert not is_decayed({"kind": "cosine", "final_lr_fraction": 1.0})


def test_one_learning_rate_is_kept_per_shape(table: pd.DataFrame, tmp_path: Path) -> None:
    """Tuning runs at the smallest token budget are not replicates of the runs at the tuned learning rate."""
    shortest = table[table["tokens"] == table.groupby("shape")["tokens"].transform("min")]
    tried = shortest.assign(peak_lr=8e-3, loss_nats_per_token=shortest["loss_nats_per_token"] - 0.3)
    pd.concat([tried, table.assign(peak_lr=4e-3)]).to_csv(tmp_path / "runs.csv", index=False)
    runs = load_runs(tmp_path / "runs.csv")
    assert runs.dropped["other learning rate of its shape"] == len(tried)
    assert set(runs.table["peak_lr"]) == {4e-3} and len(runs.table) == len(table)
    only = pd.concat([tried, shortest.assign(peak_lr=4e-3)])  # equally many budgets: the lower loss
    only.to_csv(tmp_path / "tried.csv", index=False)
    assert set(load_runs(tmp_path / "tried.csv").table["peak_lr"]) == {8e-3}


def test_rows_without_seeds_are_replicates_unless_their_losses_are_equal(
    table: pd.DataFrame, tmp_path: Path
) -> None:
    bare = table.drop(columns=["seed"], errors="ignore")
    again = bare.assign(loss_nats_per_token=bare["loss_nats_per_token"] + 0.01)
    pd.concat([bare, again, bare.iloc[:3]]).to_csv(tmp_path / "runs.csv", index=False)
    runs = load_runs(tmp_path / "runs.csv")
    assert len(runs.table) == 2 * len(bare) and runs.dropped == {"duplicate": 3}


def test_invalid_losses_and_unsupported_file_types_are_errors(
    table: pd.DataFrame, tmp_path: Path
) -> None:
    invalid = table.astype({"loss_nats_per_token": object})
    invalid.loc[3, "loss_nats_per_token"] = "2,51"
    invalid.to_csv(tmp_path / "runs.csv", index=False)
    with pytest.raises(
        DataError, match="loss_nats_per_token='2,51' in line 5: not a number, as in 1 row"
    ):
        load_runs(tmp_path / "runs.csv")
    (tmp_path / "runs.xlsx").write_text("")
    with pytest.raises(DataError, match=r"use \.csv, \.tsv, \.parquet, \.jsonl"):
        load_runs(tmp_path / "runs.xlsx")
    with pytest.raises(DataError, match=r"load_runs\(\.\.\.\)\.table"):
        compare_families({"family": []})  # type: ignore[arg-type]


def test_layer_sharing_counts_in_the_shape_and_its_aspect_ratio() -> None:
    counts = {
        "params_total": 3,
        "params_non_embedding": 2,
        "flops_per_token": 12.0,
        "tokens": 100,
        "tokens_per_param": 50.04,
        "flops": 1200.0,
    }
    schedule = {"kind": "wsd", "decay_fraction": 0.2}
    row = run_row({"n_layers": 3, "d_model": 24, "layer_sharing": 2}, counts, schedule)
    assert row["shape"] == "L3x2-d24" and row["aspect_ratio"] == 4
    assert row["n_flop"] == 2 and row["tokens_per_param"] == 50 and row["decayed"]
    unshared = run_row({"n_layers": 3, "d_model": 24}, counts, schedule)
    assert unshared["shape"] == "L3-d24" and unshared["aspect_ratio"] == 8


def test_the_old_column_name_budget_is_read_as_tokens_per_param() -> None:
    table = full_study(families=("deep_thin", "wide_shallow"), anchor_seeds=0)
    table["tokens_per_param"] += 0.5  # differs from tokens / N
    columns = Columns(flops="flops", rung="rung")
    new = prepare(table, columns, None, None).table["tokens_per_param"]
    assert new.sort_index().tolist() == table["tokens_per_param"].tolist()
    renamed = table.rename(columns={"tokens_per_param": "budget"})
    assert prepare(renamed, columns, None, None).table["tokens_per_param"].equals(new)
    both = table.assign(budget=table["tokens_per_param"], tokens_per_param=1.0)
    assert prepare(both, columns, None, None).table["tokens_per_param"].equals(new)
    neither = table.drop(columns="tokens_per_param")
    assert set(prepare(neither, columns, None, None).table["tokens_per_param"]) == {
        7.99,
        24.0,
        71.9,
    }


@pytest.mark.parametrize("values", ["own ratio", "missing", "words"])
def test_a_column_tokens_per_param_without_budget_labels_is_not_used(values: str) -> None:
    """Exact tokens / N of every run would make each run a budget of its own."""
    table = full_study(families=("deep_thin", "wide_shallow"), anchor_seeds=0)
    table = table.drop(columns=["tokens_per_param", "recipe_id"], errors="ignore")
    columns = Columns(flops="flops", rung="rung")
    expected = prepare(table, columns, None, None).table["tokens_per_param"]
    ratio = table["tokens"] / table["n_flop"] * (1 + 1e-3 * np.arange(len(table)))
    filled = {"own ratio": ratio, "missing": np.nan, "words": "20x"}[values]
    with_column = table.assign(tokens_per_param=filled)
    found = prepare(with_column, columns, None, None).table["tokens_per_param"]
    assert found.equals(expected)
