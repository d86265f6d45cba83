"""Tables of every format give the same runs; damaged ones give one message; names of columns are guessed."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.__main__ import main
from analysis.runs.columns import guess_columns, parse_pairs
from analysis.runs.load import load_runs
from slm.errors import DataError
from tests.analysis.block.studies import study

COLUMNS = {
    "family": "kind",
    "shape": "model",
    "n_flop": "N",
    "tokens": "D",
    "loss_nats_per_token": "eval/loss",
}


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    made = study(4, d_alpha=0.05, tau=0.005, sigma=0.005, seed=1).rename(columns=COLUMNS)
    return made[[*COLUMNS.values(), "seed"]]


def _text(
    separator: str = ",", decimal: str = ".", **options: str
) -> Callable[[pd.DataFrame, Path], None]:
    return lambda t, path: t.to_csv(path, sep=separator, decimal=decimal, index=False, **options)


def _lines(table: pd.DataFrame) -> str:
    return table.to_json(orient="records", lines=True, double_precision=15)


def _nested(table: pd.DataFrame, path: Path) -> None:
    rows = [
        {"config": {"kind": row.pop("kind"), "size": {"N": row.pop("N")}}, **row}
        for row in json.loads(table.to_json(orient="records", double_precision=15))
    ]
    rows[1]["note"], rows[2]["note"] = 1, {"text": "fields that change type or appear later"}
    path.write_text(json.dumps(rows))


def _zipped(*names: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in names:
            archive.writestr(name, "a,b\n1,2\n")
    return stream.getvalue()


WRITERS: dict[str, Callable[[pd.DataFrame, Path], None]] = {
    "runs.csv": _text(),
    "runs.CSV": _text(),
    "runs.tsv": _text("\t"),
    "semicolon.csv": _text(";"),
    "decimal_comma.csv": _text(";", ","),
    "bom.csv": _text(encoding="utf-8-sig"),
    "excel.csv": _text("\t", encoding="utf-16"),
    "runs.csv.gz": _text(),
    "runs.csv.xz": _text(),
    "renamed.csv": lambda t, path: path.write_bytes(gzip.compress(t.to_csv(index=False).encode())) and None,
    "runs.csv.zip": _text(),
    "runs.zip": lambda t, path: t.to_csv(path, index=False, compression={"method": "zip", "archive_name": "a.csv"}),
    "runs.parquet": lambda t, path: t.to_parquet(path),
    "lines.jsonl": lambda t, path: path.write_text(_lines(t)) and None,
    "bom.jsonl": lambda t, path: path.write_bytes(b"\xef\xbb\xbf" + _lines(t).encode()) and None,
    "lines.jsonl.gz": lambda t, path: path.write_bytes(gzip.compress(_lines(t).encode())) and None,
    "array.json": lambda t, path: t.to_json(path, orient="records", double_precision=15),
    "array.jsonl": lambda t, path: t.to_json(path, orient="records", double_precision=15),
    "columns.json": lambda t, path: path.write_text(json.dumps(t.to_dict("list"))) and None,
    "rows.json": lambda t, path: path.write_text(json.dumps({"runs": t.to_dict("records")})) and None,
    "nested.json": _nested,
}  # fmt: skip


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_runs(table: pd.DataFrame, tmp_path: Path, name: str) -> None:
    WRITERS["runs.csv"](table, tmp_path / "expected.csv")
    expected = load_runs(tmp_path / "expected.csv", columns=COLUMNS)
    WRITERS[name](table, tmp_path / name)
    columns = COLUMNS | (
        {"family": "config.kind", "n_flop": "config.size.N"} if "nested" in name else {}
    )
    found = load_runs(tmp_path / name, columns=columns)
    names = [*COLUMNS, "seed"]
    pd.testing.assert_frame_equal(
        found.table[names],
        expected.table[names],
        check_dtype=False,
        check_column_type=False,
        rtol=1e-12,
    )
    assert found.dropped == expected.dropped == {} and found.warnings == expected.warnings == ()


def test_several_files_and_a_folder_are_one_table(table: pd.DataFrame, tmp_path: Path) -> None:
    parts = [tmp_path / "deep.csv", tmp_path / "wide.jsonl"]
    _text()(table[table["kind"] == "deep"], parts[0])
    parts[1].write_text(_lines(table[table["kind"] == "wide"]))
    for source in (parts, tmp_path):
        assert len(load_runs(source, columns=COLUMNS).table) == len(table)
    (tmp_path / "wide.jsonl").write_text(_lines(table.rename(columns={"N": "n"})))
    with pytest.raises(
        DataError, match=r"N=empty in wide\.jsonl, line 1: must be a number above 0"
    ):
        load_runs(parts, columns=COLUMNS)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "the file is empty"),
        ("a.csv", b"  \n", "the file is empty"),
        ("a.csv", b"\xef\xbb\xbf", "the file is empty"),
        ("a.csv.gz", gzip.compress(b"", mtime=0), "the file is empty"),
        ("a.zip", _zipped("a.csv", "b.csv", "note.txt"), r"holds 2 tables \(a\.csv, b\.csv\)"),
        ("a.csv.zip", _zipped("note.txt"), "holds 0 tables; extract them"),
        ("a.csv", _zipped("xl/workbook.xml"), "an Excel workbook; save the sheet as"),
        ("a.zip", b"PK\x03\x04", "not a readable table"),
        ("a.json", b"[" * 99_999, "objects are nested too deeply"),
        ("a.jsonl", b'{"a":' * 99_999, "objects are nested too deeply"),
        ("a.csv.gz", b"kind,N\n", "not a readable table"),
        ("a.csv.gz", gzip.compress(b"a,b\n1,2\n" * 99, mtime=0)[:-20], "not a readable table"),
        ("a.csv", b"a,b\n1,2,3\n", "not a readable table"),
        ("a.parquet", b"PAR1", "not a readable table"),
        ("a.csv", b"a,b\n1,2,3\n", "line 2: 3 values, but the header has 2 names"),
        ("a.csv", b'a,b\n1,"2\n3,4\n', "line 3: unexpected end of data"),
        ("a.csv", b"family,tokens,State\n", "no finished run; the table has only a header"),
        ("a.json", b"[]", "there are no runs in it"),
        ("a.json", b"3", "'3' is not a table"),
        ("a.jsonl", b'{"a": 1}\n{"a": \n', r"line 2: invalid JSON"),
        ("a.jsonl", b"[1, 2]", "entry 1: '1' is not an object"),
        ("a.jsonl", b'[{"a": 1}, ', "invalid JSON"),
        ("a.xlsx", b"PK", r"unsupported file type; use \.csv"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_unreadable_files_are_one_message(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_runs(tmp_path / name)


def test_messages_name_the_users_column_and_line(table: pd.DataFrame, tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    wrong = table.astype({"D": object})
    wrong.loc[5, "D"] = "12 B"
    _text()(wrong, path)
    text = path.read_text()
    with pytest.raises(DataError, match=r"D='12 B' in line 7: must be a number above 0 for tokens"):
        load_runs(path, columns=COLUMNS)
    path.write_text(text.replace("\n", "\n\n", 1))  # an empty line below the header
    with pytest.raises(DataError, match=r"D='12 B' in line 8"):
        load_runs(path, columns=COLUMNS)
    _text()(table.assign(N2=table["N"]).rename(columns={"N2": "N"}), path)
    with pytest.raises(DataError, match=r"has no column 'N' .* occurs 2 times; .*N \(column 3\)"):
        load_runs(path, columns=COLUMNS)
    again = {**COLUMNS, "n_flop": "N (column 3)"}
    assert len(load_runs(path, columns=again).table) == len(table)


def test_comments_and_line_breaks_before_the_first_run(table: pd.DataFrame, tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    _text()(table.rename(columns={"D": "training\ntokens"}), path)
    text = path.read_text()
    path.write_text(f"# made by us, on Monday\n\n#\n{text}")
    columns = {**COLUMNS, "tokens": "training tokens"}
    runs = load_runs(path, columns=columns)
    assert len(runs.table) == len(table) and set(runs.table["tokens"]) == set(table["D"])
    _text()(table.rename(columns={"kind": "#kind"}), path)
    assert len(load_runs(path, columns={**COLUMNS, "family": "#kind"}).table) == len(table)
    _text()(table.assign(seed=0).set_index("seed").reset_index(names=" "), path)
    assert len(load_runs(path, columns=COLUMNS).table) == len(table)


def test_lines_of_json_end_at_line_feeds_only(table: pd.DataFrame, tmp_path: Path) -> None:
    rows = [
        json.dumps(row | {"note": "a\u2028b\x85c"}, ensure_ascii=False)
        for row in table.to_dict("records")
    ]
    for end in ("\n", "\r\n"):
        (tmp_path / "a.jsonl").write_bytes(end.join(rows).encode())
        assert len(load_runs(tmp_path / "a.jsonl", columns=COLUMNS).table) == len(table)


def test_nested_parquet_names_that_occur_twice_are_numbered(
    table: pd.DataFrame, tmp_path: Path
) -> None:
    nested = table.assign(a=[{"N": n} for n in table["N"]], **{"a.N": 1.0})
    nested.drop(columns="N").to_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"since it occurs 2 times; choose one of: a\.N \(column 6"):
        load_runs(tmp_path / "a.parquet", columns={**COLUMNS, "n_flop": "a.N"})


def test_commas_of_thousands_are_no_decimal_commas(table: pd.DataFrame, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    thousands = table.assign(D=[f"{tokens:,.0f}"[-7:] for tokens in 1e5 + table["D"] % 1e5])
    _text(";")(thousands, path)
    with pytest.raises(
        DataError, match=r"D='\d+,\d{3}' in line 2: .*; write 125M as 1\.25e8, without"
    ):
        load_runs(path, columns=COLUMNS)
    text = table.astype(object)
    text.loc[3, "eval/loss"] = "diverged"
    _text(";")(text.map(lambda cell: str(cell).replace(".", ",")), path)
    runs = load_runs(path, columns=COLUMNS)
    assert len(runs.table) == len(table) - 1
    assert runs.dropped == {"no final loss, or diverged": 1}


def test_constants_and_a_missing_shape(table: pd.DataFrame, tmp_path: Path) -> None:
    _text()(table[table["kind"] == "deep"].drop(columns=["kind", "model"]), tmp_path / "a.csv")
    columns = {name: COLUMNS[name] for name in ("n_flop", "tokens", "loss_nats_per_token")}
    runs = load_runs(tmp_path / "a.csv", columns=columns, constants={"family": "mine"})
    assert runs.families == ["mine"] and runs.table["shape"].nunique() == 4
    with pytest.raises(DataError, match=r"no column 'mine' .*give --constant family=mine"):
        load_runs(tmp_path / "a.csv", columns={**columns, "family": "mine"})


def test_unused_columns_of_a_known_name_are_noted(table: pd.DataFrame, tmp_path: Path) -> None:
    words = table.assign(aspect_ratio="wide", state="Texas", flops=np.nan)
    _text()(words, tmp_path / "a.csv")
    runs = load_runs(tmp_path / "a.csv", columns=COLUMNS)
    assert len(runs.table) == len(table)
    assert [note.partition(":")[0] for note in runs.warnings] == [
        "column state is not used",
        "column aspect_ratio is not used",
    ]


def test_runs_of_an_unknown_status_are_not_finished(table: pd.DataFrame, tmp_path: Path) -> None:
    words = ["Finished"] * (len(table) - 1) + ["ended"]
    _text()(table.assign(status=words), tmp_path / "a.csv")
    runs = load_runs(tmp_path / "a.csv", columns=COLUMNS)
    assert len(runs.table) == len(table) - 1 and runs.dropped == {"not finished (ended)": 1}
    assert "ended is no known status; only finished, completed, " in runs.warnings[0]


def test_columns_are_guessed_and_printed(
    table: pd.DataFrame,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert guess_columns(["run.arch.name", "run.arch"]) == {"family": "run.arch.name"}
    assert guess_columns(["mix", "Params (M)", "D", "eval/loss", "config.lr", "x"]) == {
        "family": "mix", "tokens": "D", "loss_nats_per_token": "eval/loss", "peak_lr": "config.lr",
        "n_flop": "Params (M)",
    }  # fmt: skip
    _text()(table.rename(columns={"kind": "mix"}), tmp_path / "a.csv")
    monkeypatch.setattr("sys.argv", ["analysis", str(tmp_path / "a.csv"), "--write-columns"])
    assert main() == 0
    out = capsys.readouterr().out
    guess = "family=mix,shape=model,n_flop=N,tokens=D,loss_nats_per_token=eval/loss"
    assert f"--columns {guess}" in out and "used under their own names: seed" in out
    report = tmp_path / "report"
    monkeypatch.setattr(
        "sys.argv", ["analysis", str(tmp_path / "a.csv"), "--out", str(report), "--columns", guess]
    )
    assert main() == 0 and (report / "report.html").is_file()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tokens", "'tokens': not of the form NAME=VALUE; for example --columns tokens=D"),
        ("tokns=D", "tokns=D: no such column; did you mean tokens?"),
        ("tokens=D,tokens=E", "tokens=E: tokens was given before, as D"),
    ],
)
def test_wrong_pairs_are_one_message(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message.replace("?", r"\?")):
        parse_pairs(text, "--columns tokens=D")
    assert parse_pairs("tokens=D (a, b),n_flop=N", "") == {"tokens": "D (a, b)", "n_flop": "N"}


def test_files_given_twice_or_of_one_name(table: pd.DataFrame, tmp_path: Path) -> None:
    for folder, kind in (("a", "deep"), ("b", "wide")):
        (tmp_path / folder).mkdir()
        _text()(table[table["kind"] == kind], tmp_path / folder / "runs.csv")
    paths = [tmp_path / name / "runs.csv" for name in ("a", "b", "a")]
    runs = load_runs(paths, columns=COLUMNS)
    assert len(runs.table) == len(table) and not runs.dropped
    with pytest.raises(DataError, match="a folder; several inputs must be tables"):
        load_runs([paths[0], tmp_path], columns=COLUMNS)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_labels_may_be_numbers(table: pd.DataFrame, tmp_path: Path, suffix: str) -> None:
    labels = table["kind"].map({"deep": 1, "wide": "2b"})
    for number, kinds in enumerate((labels, [7] * len(table))):
        path = tmp_path / f"{number}{suffix}"
        changed = table.assign(kind=kinds)
        if suffix == ".csv":
            _text()(changed, path)
        else:
            path.write_text(_lines(changed))
        runs = load_runs(path, columns=COLUMNS)
        assert runs.families == (["1", "2b"] if number == 0 else ["7"]) and repr(runs)
