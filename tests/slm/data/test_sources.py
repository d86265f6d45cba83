"""Every source of text in its format on disk or on the hub, and the errors of damaged or missing data."""

from __future__ import annotations

import gzip
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from slm.config.hydra import compose_config
from slm.config.schema import Config, DataConfig
from slm.data.corpus.documents import MISSING, Document, find_column
from slm.data.corpus.sources import open_parts
from slm.data.corpus.splits import CorpusReader, SeenTexts, count_documents, expected_cut, rank_of
from slm.data.tokens.prepare import prepare
from slm.data.tokens.shards import PreparedData
from slm.errors import DataError

TEXTS = [f"Text number {number}, with é and “quotes”." for number in range(40)]
COMMIT = "0" * 40


@pytest.fixture
def config(tiny_config: Callable[..., Config], tmp_path: Path) -> Callable[..., Config]:
    return lambda **data: tiny_config(cache_dir=str(tmp_path / "cache"), data=data)


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(lines.encode()))
    else:
        path.write_text(lines, encoding="utf-8")
    return path


def texts_of(data: PreparedData, split: str) -> list[str]:
    stream = np.concatenate(data.split(split))
    return [text.decode() for text in data.tokenizer.decode_documents(stream)]


def all_texts(data: PreparedData) -> list[str]:
    return sorted(texts_of(data, "train") + texts_of(data, "val"))


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_jsonl_files_are_read(config: Callable[..., Config], tmp_path: Path, suffix: str) -> None:
    rows = [{"body": text, "n": n} for n, text in enumerate(TEXTS)]
    write_jsonl(tmp_path / f"a{suffix}", rows[:25])
    write_jsonl(tmp_path / f"b{suffix}", rows[25:])
    data = prepare(config(source="jsonl", files=[f"{tmp_path}/*{suffix}"], column="body"))
    assert all_texts(data) == sorted(TEXTS)
    assert len(texts_of(data, "val")) == 2  # 5% of 40


def test_parquet_files_are_read(config: Callable[..., Config], tmp_path: Path) -> None:
    pd.DataFrame({"text": TEXTS}).to_parquet(tmp_path / "a.parquet")
    data = prepare(config(source="parquet", files=[f"{tmp_path}/a.parquet"]))
    assert all_texts(data) == sorted(TEXTS)


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ("file", ["One.\nTwo.\n\nThree.\n", "Four."]),
        ("paragraph", ["One.\nTwo.", "Three.\n", "Four."]),
        ("line", ["One.\n", "Two.\n", "Three.\n", "Four."]),
    ],
)
def test_documents_of_text_files(
    config: Callable[..., Config], tmp_path: Path, document: str, expected: list[str]
) -> None:
    (tmp_path / "a.txt").write_text("One.\nTwo.\n\nThree.\n")
    (tmp_path / "b.md").write_text("Four.")
    data = prepare(
        config(
            source="text_files", files=[f"{tmp_path}/*.txt", f"{tmp_path}/*.md"], document=document
        )
    )
    assert all_texts(data) == sorted(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A\n \nB\n", ["A", "B\n"]),
        ("A\na\n\n \n\t\nB\n \n", ["A\na", "B"]),  # blank lines of both kinds in a row
        (" \n A\n\n\nB b \n", [" A", "\nB b \n"]),
    ],
)
def test_blank_lines_of_spaces_separate_paragraphs(
    config: Callable[..., Config], tmp_path: Path, text: str, expected: list[str]
) -> None:
    (tmp_path / "a.txt").write_text(text)
    data = prepare(config(source="text_files", files=[f"{tmp_path}/a.txt"], document="paragraph"))
    assert all_texts(data) == sorted(expected)


def test_duplicates_of_validation_documents_are_left_out_of_training(
    config: Callable[..., Config], tmp_path: Path
) -> None:
    train = write_jsonl(tmp_path / "train.jsonl", [{"text": text} for text in TEXTS])
    val = write_jsonl(tmp_path / "val.jsonl", [{"text": text} for text in ["New.", TEXTS[3]]])
    data = prepare(config(source="jsonl", files=[str(train)], val_files=[str(val)]))
    assert sorted(texts_of(data, "val")) == ["New.", TEXTS[3]]
    assert texts_of(data, "train") == [text for text in TEXTS if text != TEXTS[3]]
    assert data.manifest["left_out"] == {"duplicates": 1}


def test_deduplicate_false_keeps_duplicates(config: Callable[..., Config], tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in [*TEXTS, *TEXTS]])
    data = prepare(config(source="jsonl", files=[str(path)], deduplicate=False))
    assert all_texts(data) == sorted([*TEXTS, *TEXTS])


def write_hub_folder(folder: Path) -> Path:
    """Write a dataset in the format of the hub: Parquet files by split, listed in README.md."""
    (folder / "data").mkdir(parents=True)
    lines = [" = First = \n", "", " One . \n", " = = Part = = \n", " = Second = \n", " Two . \n"]
    for split, rows in {"train": lines, "validation": [" = Third = \n", " Three . \n"]}.items():
        pd.DataFrame({"text": rows}).to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: small\n  data_files:\n"
        "  - split: train\n    path: data/train-*\n  - split: validation\n    path: data/validation-*\n---\n"
    )
    return folder


def test_hub_rows_are_joined_to_documents(config: Callable[..., Config], tmp_path: Path) -> None:
    data = prepare(
        config(
            source="hub",
            repo=str(write_hub_folder(tmp_path / "wiki")),
            subset="small",
            val_split="validation",
            new_document="^ = [^=\n]+ = \n?$",
        )
    )
    assert texts_of(data, "val") == [" = Third = \n Three . \n"]
    first, second = " = First = \n One . \n = = Part = = \n", " = Second = \n Two . \n"
    assert texts_of(data, "train") == [first, second]


def test_missing_hub_split_is_named(config: Callable[..., Config], tmp_path: Path) -> None:
    repo = str(write_hub_folder(tmp_path / "wiki"))
    with pytest.raises(DataError, match=r"split=test.*Bad split: test"):
        prepare(config(source="hub", repo=repo, subset="small", val_split="test"))


def open_stream(config: DataConfig, state: Any = None) -> Any:
    (part,) = open_parts(config).values()
    stream = part()
    if state is not None:
        stream.restore(state)
    return stream


@pytest.mark.parametrize("joined", [False, True])
def test_restored_stream_continues_after_the_last_document(tmp_path: Path, joined: bool) -> None:
    for name in "abc":
        write_jsonl(tmp_path / f"{name}.jsonl", [{"text": f"{name} {n}\n"} for n in range(30)])
    config = DataConfig(
        source="jsonl", files=(f"{tmp_path}/*.jsonl",), new_document="[05]\n$" if joined else None
    )
    whole = list(open_stream(config))
    assert "".join(document.text or "" for document in whole) == "".join(
        f"{name} {n}\n" for name in "abc" for n in range(30)
    )
    for stop in range(1, len(whole), 7):
        stream = open_stream(config)
        before = list(islice(stream, stop))
        state = json.loads(json.dumps(stream.state()))
        assert before + list(open_stream(config, state)) == whole


def test_documents_with_the_lowest_ranks_of_each_source_are_held_out() -> None:
    documents = [
        Document(s, str(i), f"{s}{i}") for s, n in (("a", 100), ("b", 20)) for i in range(n)
    ]

    class ListStream(list[Document]):
        def state(self) -> None: ...

    census = count_documents({"all": lambda: ListStream(documents)}, 0.1)  # type: ignore[dict-item, return-value]
    kept = list(CorpusReader({"all": lambda: ListStream(documents)}, census.cuts, None))  # type: ignore[dict-item, return-value]
    for source, held_out in (("a", 10), ("b", 2)):
        ranks = {k.rank: k.split for k in kept if k.text.startswith(source)}
        lowest = sorted(ranks)[:held_out]
        assert [ranks[rank] for rank in lowest] == ["val"] * held_out
        assert sum(split == "val" for split in ranks.values()) == held_out
    assert census.documents == 120


def test_expected_cut_holds_out_the_requested_share() -> None:
    ranks = [rank_of(Document("hub", f"train/{n}", "")) for n in range(20_000)]
    held_out = sum(rank <= expected_cut(0.1) for rank in ranks)
    assert abs(held_out - 2000) < 4 * (20_000 * 0.1 * 0.9) ** 0.5


def test_reopening_seen_texts_deletes_entries_after_the_saved_document(tmp_path: Path) -> None:
    seen = SeenTexts(tmp_path / "seen")
    assert seen.add(b"one", 1) and seen.add(b"two", 2) and not seen.add(b"one", 3)
    seen.commit()
    seen.close()
    reopened = SeenTexts(tmp_path / "seen", documents=1)
    assert not reopened.add(b"one", 2)
    assert reopened.add(b"two", 3)
    reopened.discard()
    assert not list(tmp_path.iterdir())


BAD_ROWS = {
    "null": ({"text": None}, r"row 3 \(counted over all files; in .*a\.jsonl\) is null, not text"),
    "number": ({"text": "7", "n": 1}, None),
    "empty": ({"text": ""}, None),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_rows_without_text_raise_or_are_skipped(
    config: Callable[..., Config], tmp_path: Path, case: str
) -> None:
    row, message = BAD_ROWS[case]
    path = write_jsonl(
        tmp_path / "a.jsonl", [{"text": "one"}, {"text": "two"}, row, {"text": "three"}]
    )
    settings = {"source": "jsonl", "files": [str(path)]}
    if message is None:
        prepare(config(**settings))
        return
    with pytest.raises(DataError, match=message + ".*data.skip_bad_rows=true"):
        prepare(config(**settings))
    data = prepare(config(**settings, skip_bad_rows=True))
    assert all_texts(data) == ["one", "three", "two"]
    assert data.manifest["left_out"] == {"bad rows": 1}


def test_column_of_numbers_raises(config: Callable[..., Config], tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"n": 1}, {"n": 2}])
    with pytest.raises(DataError, match=r"data\.column=n: row 1 .*a\.jsonl\) is int 1, not text"):
        prepare(config(source="jsonl", files=[str(path)], column="n"))


def test_missing_column_raises_and_lists_the_columns(
    config: Callable[..., Config], tmp_path: Path
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"body": "one", "url": "two"}])
    with pytest.raises(DataError, match=r"data\.column=text: .*set it to one of: body, url"):
        prepare(config(source="jsonl", files=[str(path)]))


def test_nested_fields_are_named_with_dots(config: Callable[..., Config], tmp_path: Path) -> None:
    rows = [{"meta": {"id": n}, "data": {"in": {"text": text}}} for n, text in enumerate(TEXTS)]
    pd.DataFrame(rows).to_parquet(tmp_path / "a.parquet")
    write_jsonl(tmp_path / "a.jsonl", rows)
    names = r"set it to one of: meta\.id, data\.in\.text$"
    for source in ("jsonl", "parquet"):
        files = {"source": source, "files": [f"{tmp_path}/a.{source}"]}
        assert all_texts(prepare(config(**files, column="data.in.text"))) == sorted(TEXTS)
        for column in ("text", "data.in.text.x"):
            with pytest.raises(DataError, match=f"has no such column; {names}"):
                prepare(config(**files, column=column))
        with pytest.raises(DataError, match=f"has fields in this column, not text; {names}"):
            prepare(config(**files, column="data", skip_bad_rows=True))


def test_column_of_a_literal_dotted_name_comes_first() -> None:
    row = {"a": {"b": "nested"}, "a.b": "literal", "null": None}
    assert find_column(row, "a.b") == "literal"
    assert find_column(row, "null.text") is None
    assert find_column(row, "a.b.c") is find_column(row, "a.c") is MISSING


def test_binary_column_of_utf8_is_text(config: Callable[..., Config], tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pd.DataFrame({"text": [text.encode() for text in TEXTS]}).to_parquet(path)
    assert all_texts(prepare(config(source="parquet", files=[str(path)]))) == sorted(TEXTS)
    pd.DataFrame({"text": [b"\xff"]}).to_parquet(path)
    with pytest.raises(DataError, match=r"row 1 .* is bytes b'\\xff', not UTF-8; .*data\.column"):
        prepare(config(source="parquet", files=[str(path)]))


@pytest.mark.parametrize("encoding", ["UTF-16", "UTF-32"])
def test_byte_order_mark_names_the_encoding(
    config: Callable[..., Config], tmp_path: Path, encoding: str
) -> None:
    (tmp_path / "a.txt").write_text("Some text.\n", encoding=encoding)
    with pytest.raises(DataError, match=f"is {encoding}, not UTF-8; .*`iconv -f {encoding} "):
        prepare(config(source="text_files", files=[f"{tmp_path}/a.txt"]))


@pytest.mark.parametrize("source", ["text_files", "jsonl"])
def test_invalid_utf8_raises_with_its_offset(
    config: Callable[..., Config], tmp_path: Path, source: str
) -> None:
    (tmp_path / "good.txt").write_text('{"text": "fine"}\n', encoding="utf-8")
    (tmp_path / "latin.txt").write_bytes('{"text": "caf\xe9"}\n'.encode("latin1"))
    with pytest.raises(DataError, match=r"latin\.txt: byte 13 is not UTF-8.*iconv"):
        prepare(config(source=source, files=[f"{tmp_path}/*.txt"]))


def test_invalid_json_raises(config: Callable[..., Config], tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": \n')
    with pytest.raises(DataError, match=r"a\.jsonl: cannot be read after row"):
        prepare(config(source="jsonl", files=[f"{tmp_path}/a.jsonl"]))


def test_invalid_parquet_raises(config: Callable[..., Config], tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_text("text")
    with pytest.raises(DataError, match=r"a\.parquet: not readable as parquet"):
        prepare(config(source="parquet", files=[f"{tmp_path}/a.parquet"]))


def test_unmatched_pattern_raises_and_lists_the_folder(
    config: Callable[..., Config], tmp_path: Path
) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.text").write_text("one")
    with pytest.raises(
        DataError, match=r"corpus/\*\.txt: matches no file; .*corpus contains a\.text"
    ):
        prepare(config(source="text_files", files=[f"{tmp_path}/corpus/*.txt"]))


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["", " \n"], r"\*\.txt: no text found; name other files"),
        (["one"], r"\*\.txt: only one distinct document.*data\.val_files"),
        (["same", "same"], "only one distinct document"),
    ],
)
def test_fewer_than_two_documents_raise(
    config: Callable[..., Config], tmp_path: Path, texts: list[str], message: str
) -> None:
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        prepare(config(source="text_files", files=[f"{tmp_path}/*.txt"]))


def test_training_text_shorter_than_one_sequence_raises(
    tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    from slm.data.examples import open_examples

    for number in range(3):
        (tmp_path / f"{number}.txt").write_text(f"short {number}")
    data = {"source": "text_files", "files": [f"{tmp_path}/*.txt"]}
    config = tiny_config(cache_dir=str(tmp_path / "cache"), data=data)
    with pytest.raises(
        DataError, match=r"16 training tokens are too few for one sequence of model\.seq_len=32"
    ):
        open_examples(config, 32)


@pytest.fixture
def silent_server() -> Iterator[str]:
    """URL of a server that accepts connections and never responds."""
    server = socket.create_server(("127.0.0.1", 0))
    connections: list[socket.socket] = []

    def accept() -> None:
        try:
            while True:
                connections.append(server.accept()[0])
        except OSError:
            return

    threading.Thread(target=accept, daemon=True).start()
    yield f"http://127.0.0.1:{server.getsockname()[1]}"
    server.close()
    for connection in connections:
        connection.close()


@pytest.mark.parametrize("hub", ["offline", "refuses", "silent"])
def test_unreachable_hub_raises_within_seconds(
    config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, silent_server: str, hub: str
) -> None:
    endpoints = {"refuses": "http://127.0.0.1:9", "silent": silent_server}
    if hub != "offline":  # huggingface_hub has already read the environment variables
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoints[hub])
    started = time.monotonic()
    with pytest.raises(
        DataError, match=r"data\.repo=owner/name: the hub cannot be reached"
    ) as error:
        prepare(config(source="hub", repo="owner/name", revision=COMMIT))
    assert "python -m slm prepare" in str(error.value) and "cache_dir" in str(error.value)
    assert time.monotonic() - started < 15


def test_unreachable_dataset_of_a_preset_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="HuggingFaceFW/fineweb-edu: the hub cannot be reached"):
        prepare(compose_config(["data=fineweb_edu", f"cache_dir={tmp_path}"]))


def test_file_names_with_glob_characters_are_read(
    config: Callable[..., Config], tmp_path: Path
) -> None:
    for name in ("a1.txt", "a[1].txt", "b*.txt", "c?.txt", "d e.txt"):
        (tmp_path / name).write_text(f"This is {name}.")
    data = prepare(config(source="text_files", files=[f"{tmp_path}/*.txt"]))
    assert all_texts(data) == sorted(f"This is {path.name}." for path in tmp_path.glob("*.txt"))


def test_file_names_that_are_not_utf8_are_read(
    config: Callable[..., Config], tmp_path: Path
) -> None:
    for name in (b"a.txt", b"caf\xe9.txt"):  # Latin-1
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_text(f"In {name!r}.")
    data = prepare(config(source="text_files", files=[f"{tmp_path}/*.txt"]))
    assert all_texts(data) == ["In b'a.txt'.", "In b'caf\\xe9.txt'."]


def test_validation_files_equal_to_training_files_raise(
    config: Callable[..., Config], tmp_path: Path
) -> None:
    files = [str(write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in TEXTS]))]
    with pytest.raises(DataError, match=r"no text found that is not also in data\.val_files"):
        prepare(config(source="jsonl", files=files, val_files=files))


def test_bad_row_is_reported_with_its_file(config: Callable[..., Config], tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in TEXTS])
    write_jsonl(tmp_path / "b.jsonl", [{"text": "fine"}, {"text": None}])
    with pytest.raises(
        DataError, match=r"row 42 \(counted over all files; in .*b\.jsonl\) is null"
    ):
        prepare(config(source="jsonl", files=[f"{tmp_path}/*.jsonl"]))


def test_missing_parquet_column_raises(config: Callable[..., Config], tmp_path: Path) -> None:
    pd.DataFrame({"body": TEXTS, "n": 1}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(
        DataError, match=r"a\.parquet has no such column; set it to one of: body, n"
    ):
        prepare(config(source="parquet", files=[f"{tmp_path}/a.parquet"]))


def test_byte_order_mark_is_removed(config: Callable[..., Config], tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfOne.\r\nTwo.")
    (tmp_path / "b.txt").write_text("Three.")
    data = prepare(config(source="text_files", files=f"{tmp_path}/*.txt"))
    assert all_texts(data) == ["One.\nTwo.", "Three."]


def test_empty_files_are_skipped_unless_all_are_empty(
    config: Callable[..., Config], tmp_path: Path
) -> None:
    write_jsonl(tmp_path / "a.jsonl", [])
    with pytest.raises(DataError, match=r"\*\.jsonl: all files are empty"):
        prepare(config(source="jsonl", files=f"{tmp_path}/*.jsonl"))
    write_jsonl(tmp_path / "b.jsonl", [{"text": text} for text in TEXTS])
    assert all_texts(prepare(config(source="jsonl", files=f"{tmp_path}/*.jsonl"))) == sorted(TEXTS)
