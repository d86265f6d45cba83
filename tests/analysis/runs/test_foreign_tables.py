"""Tables as clusters, spreadsheets and W&B write them: words, encodings, nested values, rows that are no runs."""

from __future__ import annotations

import json
import math
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.runs.load import Runs, load_runs
from analysis.runs.study import Columns, prepare
from slm.errors import DataError
from tests.analysis.block.studies import study

RENAMED = {"mix": "family", "N": "n_flop", "D": "tokens", "loss": "loss_nats_per_token"}
NAMES = {known: name for name, known in RENAMED.items()}


@pytest.fixture
def table() -> pd.DataFrame:
    known = study(4, budgets=(5.0, 20.0), tau=0.005).rename(
        columns={k: n for n, k in RENAMED.items()}
    )
    return known[[*RENAMED, "shape"]]


def loaded(table: pd.DataFrame, folder: Path, **columns: str) -> Runs:
    table.to_csv(folder / "runs.csv", index=False)
    return load_runs(folder / "runs.csv", columns={**NAMES, **columns})


@pytest.mark.parametrize("words", [("Y", "N"), ("on", "off"), ("T", "F"), (1, 0)])
def test_words_for_decayed(table: pd.DataFrame, tmp_path: Path, words: tuple[Any, Any]) -> None:
    runs = loaded(table.assign(decayed=[words[row % 4 == 3] for row in range(16)]), tmp_path)
    assert len(runs.table) == 12 and runs.dropped == {"undecayed": 4}


@pytest.mark.parametrize("name", ["JobState", "job_state", "Run Status", "meta.state"])
def test_the_status_may_have_another_name(table: pd.DataFrame, tmp_path: Path, name: str) -> None:
    words = ["NODE_FAIL" if row % 8 == 0 else "COMPLETED" for row in range(16)]
    runs = loaded(table.assign(**{"home_state": "Utah", name: words}), tmp_path)
    assert len(runs.table) == 14 and runs.dropped == {"not finished (node_fail)": 2}
    assert runs.warnings == (f"column {name} is used as the status of the runs",)
    home = ["OK" if row % 4 == 0 else "UT" for row in range(16)]
    other = loaded(table.assign(home_state=home), tmp_path)
    assert len(other.table) == 16 and not other.warnings


def test_invisible_characters_and_forms_of_letters(table: pd.DataFrame, tmp_path: Path) -> None:
    table.loc[::5, "mix"] = "\u200b" + table["mix"] + "\ufeff"
    assert loaded(table, tmp_path).families == ["deep", "wide"]
    table.loc[0, "mix"] = "\uff44\uff45\uff45\uff50"  # full-width letters
    assert "count as different" in loaded(table, tmp_path).warnings[0]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-16"])
def test_utf_16_with_and_without_a_mark(table: pd.DataFrame, tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.csv").write_bytes(table.to_csv(index=False).encode(encoding))
    assert len(load_runs(tmp_path / "a.csv", columns=NAMES).table) == 16


def test_values_of_a_wandb_config(table: pd.DataFrame, tmp_path: Path) -> None:
    """W&B wraps the values of a config, and its export example writes config and summary as text."""
    rows = table.to_dict("records")
    wrapped = [
        {"config": {"mix": {"value": row["mix"], "desc": None}, "N": {"value": row["N"]}}, "summary": {"D": row["D"], "loss": row["loss"]}}
        for row in rows
    ]  # fmt: skip
    columns = {"family": "config.mix", "n_flop": "config.N", "tokens": "summary.D", "loss_nats_per_token": "summary.loss"}  # fmt: skip
    (tmp_path / "a.json").write_text(json.dumps(wrapped))
    texts = pd.DataFrame([{key: str(value) for key, value in row.items()} for row in wrapped])
    texts.to_csv(tmp_path / "a.csv", index=False)
    for name in ("a.json", "a.csv"):
        runs = load_runs(tmp_path / name, columns=columns).table
        assert len(runs) == 16 and set(runs["family"]) == {"deep", "wide"}
    with pytest.raises(
        DataError, match=r"it has fields, so give one of them: config\.mix, config\.N"
    ):
        load_runs(tmp_path / "a.json", columns={**columns, "family": "config"})


def test_losses_that_are_not_the_final_ones(table: pd.DataFrame, tmp_path: Path) -> None:
    named = table.rename(columns={"loss": "loss__MIN"})
    (note,) = loaded(named, tmp_path, loss_nats_per_token="loss__MIN").warnings
    assert "a min over steps or over a group of runs is biased" in note
    with pytest.raises(DataError, match=r"runs\.csv: loss: a median loss of .* not nats per token"):
        loaded(table.assign(loss=table["loss"].map(math.exp)), tmp_path)


def test_fractions_of_millions_are_no_counts(table: pd.DataFrame, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"N is .*: too small for a count; multiply millions by 1e6"
    ):
        loaded(table.assign(N=table["N"] / 1e5, D=table["D"] / 1e3), tmp_path)
    sixths = np.round(6 * table["N"] / 1e5) / 6  # FLOPs per token / 6
    (note,) = loaded(table.assign(N=sixths, D=table["D"] / 1e3), tmp_path).warnings
    assert "small for a count; check its unit" in note


def test_a_chart_of_wandb_is_named(tmp_path: Path) -> None:
    names = [f"{run} - eval/loss{end}" for run in ("a", "b") for end in ("", "__MIN", "__MAX")]
    pd.DataFrame({"Step": [1, 2], **dict.fromkeys(names, 3.0)}).to_csv(tmp_path / "a.csv")
    with pytest.raises(DataError, match="export of a W&B chart, with one column per run"):
        load_runs(tmp_path / "a.csv")


def test_rows_that_are_no_runs_of_their_own(table: pd.DataFrame, tmp_path: Path) -> None:
    swept = pd.concat([table.assign(lr=1e-3), table.assign(lr=3e-3, loss=table["loss"] + 0.02)])
    (note,) = loaded(swept, tmp_path).warnings
    assert note.startswith("32 runs of equal family, shape, n_flop, tokens count as replicates")
    assert note.endswith("they differ in lr; map the learning rate with peak_lr=lr")
    assert len(loaded(swept, tmp_path, peak_lr="lr").table) == 16
    seeds = swept.rename(columns={"lr": "random_seed"})
    assert not loaded(seeds, tmp_path).warnings and not loaded(table, tmp_path).warnings
    (note,) = loaded(table.assign(name=table["shape"]), tmp_path, run_id="name").warnings
    assert note.startswith("8 values of name stand at several token counts, such as deep-0")


@pytest.mark.parametrize("orient", ["records", "columns", "index", "split", "table", "list"])
def test_json_as_pandas_writes_it(table: pd.DataFrame, tmp_path: Path, orient: Any) -> None:
    content = (
        json.dumps(table.to_dict("list")) if orient == "list" else table.to_json(orient=orient)
    )
    (tmp_path / "a.json").write_text(content)
    assert len(load_runs(tmp_path / "a.json", columns=NAMES).table) == 16


def test_json_with_one_object_per_run(table: pd.DataFrame, tmp_path: Path) -> None:
    runs = {f"run {row}": values for row, values in enumerate(table.to_dict("records"))}
    (tmp_path / "a.json").write_text(json.dumps(runs))
    assert len(load_runs(tmp_path / "a.json", columns=NAMES).table) == 16


@pytest.mark.parametrize("head", ["sep=;\n", "Table 1: all runs\n\n", "# made by hand\nSheet1\n"])
def test_lines_before_the_header(table: pd.DataFrame, tmp_path: Path, head: str) -> None:
    (tmp_path / "a.csv").write_text(head + table.to_csv(index=False, sep=";"))
    assert len(load_runs(tmp_path / "a.csv", columns=NAMES).table) == 16


def test_one_family_or_run_in_another_unit(table: pd.DataFrame, tmp_path: Path) -> None:
    deep = table["mix"] == "deep"
    bits = loaded(
        table.assign(loss=table["loss"].where(deep, table["loss"] / math.log(2))), tmp_path
    )
    (warning,) = prepare(bits.table, Columns(), "deep", "wide").warnings
    assert (
        warning.startswith("losses of wide are 1.4") and "1.443 times as large in bits" in warning
    )
    billions = table.assign(D=table["D"].where(deep, table["D"] / 1e9))
    with pytest.raises(DataError, match=r"D=.* and N=.* of a run: one of them has another unit"):
        loaded(billions, tmp_path)
    millions = table.assign(N=table["N"].where(table.index != 3, table["N"] / 1e6))
    (note,) = loaded(millions, tmp_path).warnings
    assert note.startswith("D=") and note.endswith("check their units")


def test_a_loss_with_a_decimal_comma_has_no_thousands(table: pd.DataFrame, tmp_path: Path) -> None:
    losses = [f"{loss:.3f}".replace(".", ",") for loss in table["loss"]]
    path = tmp_path / "a.csv"
    table.assign(loss=losses).to_csv(path, index=False, sep=";")
    runs = load_runs(path, columns=NAMES)
    read = sorted(runs.table["loss_nats_per_token"])
    assert read == pytest.approx(sorted(table["loss"]), abs=0.001)
    assert not runs.warnings
    table.assign(loss=losses).to_csv(path, index=False, sep=",")
    with pytest.raises(DataError, match=r"not a number, .*; write a decimal point"):
        load_runs(path, columns=NAMES)

    whole = table.assign(loss=losses, D=table["D"].round().astype(int))
    points = [f"{tokens:,}".replace(",", ".") for tokens in whole["D"]]
    whole.assign(D=points).to_csv(path, index=False, sep=";")
    runs = load_runs(path, columns=NAMES)
    assert sorted(runs.table["tokens"]) == sorted(whole["D"])
    assert runs.warnings == (
        f"column D: points are read as thousands separators, as in {points[0]}",
    )
    whole.assign(D=["1.5e9", *points[1:]]).to_csv(path, index=False, sep=";")
    with pytest.raises(DataError, match=r"D='[\d.]+' in line 3: .*, without thousands separators"):
        load_runs(path, columns=NAMES)


def test_words_for_nothing_may_be_labels(table: pd.DataFrame, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    for deep, wide in (("NA", "None"), ("null", "nan"), ("N/A", "wide")):
        changed = table.assign(mix=table["mix"].map({"deep": deep, "wide": wide}), seed="None")
        changed.assign(aspect_ratio="NA").to_csv(path, index=False)
        runs = load_runs(path, columns=NAMES)
        assert runs.families == sorted([deep, wide]) and not runs.warnings
        assert "aspect_ratio" not in runs.table or runs.table["aspect_ratio"].isna().all()
    table.assign(mix=["", *table["mix"][1:]]).to_csv(path, index=False)
    with pytest.raises(DataError, match="mix=empty in line 2"):
        load_runs(path, columns=NAMES)


def test_letters_with_accents_may_be_composed_or_not(table: pd.DataFrame, tmp_path: Path) -> None:
    one, two = (unicodedata.normalize(form, "tief-\u00f6") for form in ("NFC", "NFD"))
    kinds = [{"deep": (one, two)[row % 2]}.get(kind, kind) for row, kind in enumerate(table["mix"])]
    table.assign(mix=kinds).rename(columns={"mix": one}).to_csv(tmp_path / "a.csv", index=False)
    runs = load_runs(tmp_path / "a.csv", columns={**NAMES, "family": two})
    assert runs.families == [one, "wide"] and not runs.warnings
    assert prepare(runs.table, Columns(), two, "wide").deep == one


def test_names_of_own_columns_in_other_tables(table: pd.DataFrame, tmp_path: Path) -> None:
    rows = range(len(table))
    own = {"epochs": "two", "unusual_spikes": True, "recipe_id": [f"r{row % 3}" for row in rows]}
    table.assign(**own).to_csv(tmp_path / "a.csv", index=False)
    runs = load_runs(tmp_path / "a.csv", columns=NAMES)
    assert len(runs.table) == len(table) and not set(own) & set(runs.table)
    assert runs.warnings[0].startswith("columns recipe_id, unusual_spikes, epochs are not used")
    table.assign(**own, D=table["D"] / 1e9).to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(DataError, match=r"another unit|too small for a count"):
        load_runs(tmp_path / "a.csv", columns=NAMES)


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the folder is empty"):
        load_runs(tmp_path, columns=NAMES)
    (tmp_path / "note.txt").touch()
    with pytest.raises(DataError, match="has no run directories, tables or W&B runs"):
        load_runs(tmp_path, columns=NAMES)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("TERMINATED ERROR", {"not finished (error)": 1}),
        ("passed failed", {"not finished (failed)": 1}),
        ("CD OOM", {"not finished (out_of_memory)": 1}),
        ("finished terminated", {"not finished (terminated)": 1}),
        (
            "ended killed",
            r"ended\); 1 not finished \(killed\); column State: ended is no known status",
        ),
        (
            "killed killed",
            r"killed\); column State: only finished, completed, .* count as finished",
        ),
    ],
)
def test_words_of_a_status(
    table: pd.DataFrame, tmp_path: Path, words: str, expected: dict[str, int] | str
) -> None:
    most, last = words.split()
    table.assign(State=[most] * (len(table) - 1) + [last]).to_csv(tmp_path / "a.csv", index=False)
    if isinstance(expected, str):
        with pytest.raises(DataError, match=f"no finished run; .*{expected}"):
            load_runs(tmp_path / "a.csv", columns=NAMES)
    else:
        assert load_runs(tmp_path / "a.csv", columns=NAMES).dropped == expected
