"""Every source in the format that it has on the hub or on disk, and everything that may be wrong with one."""

from __future__ import annotations

import gzip
import json
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
from slm.data.corpus.documents import Document
from slm.data.corpus.sources import open_parts
from slm.data.corpus.splits import KeptDocuments, Seen, count, expected_cut, rank_of
from slm.data.tokens.prepare import prepare
from slm.data.tokens.shards import PreparedData
from slm.errors import DataError

TEXTS = [f"Text number {number}, with é and “quotes”." for number in range(40)]
COMMIT = "0" * 40


@pytest.fixture
def config(tiny_config: Callable[..., Config], tmp_path: Path) -> Callable[..., Config]:
    return lambda **data: tiny_config(cache_dir=str(tmp_path / "cache"), data=data)


def as_jsonl(path: Path, rows: list[Any]) -> Path:
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
def test_json_lines(config: Callable[..., Config], tmp_path: Path, suffix: str) -> None:
    rows = [{"body": text, "n": n} for n, text in enumerate(TEXTS)]
    as_jsonl(tmp_path / f"a{suffix}", rows[:25])
    as_jsonl(tmp_path / f"b{suffix}", rows[25:])
    data = prepare(config(source="jsonl", files=[f"{tmp_path}/*{suffix}"], column="body"))
    assert all_texts(data) == sorted(TEXTS)
    assert len(texts_of(data, "val")) == 2  # 5% of 40


def test_parquet(config: Callable[..., Config], tmp_path: Path) -> None:
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
def test_what_a_document_of_a_text_file_is(
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


def test_validation_files_come_first_and_take_their_duplicates(
    config: Callable[..., Config], tmp_path: Path
) -> None:
    train = as_jsonl(tmp_path / "train.jsonl", [{"text": text} for text in TEXTS])
    val = as_jsonl(tmp_path / "val.jsonl", [{"text": text} for text in ["New.", TEXTS[3]]])
    data = prepare(config(source="jsonl", files=[str(train)], val_files=[str(val)]))
    assert sorted(texts_of(data, "val")) == ["New.", TEXTS[3]]
    assert texts_of(data, "train") == [text for text in TEXTS if text != TEXTS[3]]
    assert data.manifest["left_out"] == {"duplicates": 1}


def test_duplicates_stay_if_they_are_wanted(config: Callable[..., Config], tmp_path: Path) -> None:
    path = as_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in [*TEXTS, *TEXTS]])
    data = prepare(config(source="jsonl", files=[str(path)], deduplicate=False))
    assert all_texts(data) == sorted([*TEXTS, *TEXTS])


def hub_folder(folder: Path) -> Path:
    """A dataset as it lies on the hub: Parquet by split, and a card that lists them."""
    (folder / "data").mkdir(parents=True)
    lines = [" = First = \n", "", " One . \n", " = = Part = = \n", " = Second = \n", " Two . \n"]
    for split, rows in {"train": lines, "validation": [" = Third = \n", " Three . \n"]}.items():
        pd.DataFrame({"text": rows}).to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: small\n  data_files:\n"
        "  - split: train\n    path: data/train-*\n  - split: validation\n    path: data/validation-*\n---\n"
    )
    return folder


def test_a_hub_dataset_with_rows_joined_into_articles(
    config: Callable[..., Config], tmp_path: Path
) -> None:
    data = prepare(
        config(
            source="hub", repo=str(hub_folder(tmp_path / "wiki")), subset="small",
            val_split="validation", new_document="^ = [^=\n]+ = \n?$",
        )
    )  # fmt: skip
    assert texts_of(data, "val") == [" = Third = \n Three . \n"]
    assert texts_of(data, "train") == [
        " = First = \n One . \n = = Part = = \n", " = Second = \n Two . \n",
    ]  # fmt: skip


def test_a_hub_split_that_is_not_there_is_named(
    config: Callable[..., Config], tmp_path: Path
) -> None:
    repo = str(hub_folder(tmp_path / "wiki"))
    with pytest.raises(DataError, match=r"split=test.*Bad split: test"):
        prepare(config(source="hub", repo=repo, subset="small", val_split="test"))


def stream_of(config: DataConfig, state: Any = None) -> Any:
    (part,) = open_parts(config).values()
    stream = part()
    if state is not None:
        stream.restore(state)
    return stream


@pytest.mark.parametrize("joined", [False, True])
def test_a_stream_goes_on_where_it_was(tmp_path: Path, joined: bool) -> None:
    for name in "abc":
        as_jsonl(tmp_path / f"{name}.jsonl", [{"text": f"{name} {n}\n"} for n in range(30)])
    config = DataConfig(
        source="jsonl", files=(f"{tmp_path}/*.jsonl",), new_document="[05]\n$" if joined else None
    )
    whole = list(stream_of(config))
    assert "".join(document.text or "" for document in whole) == "".join(
        f"{name} {n}\n" for name in "abc" for n in range(30)
    )
    for stop in range(1, len(whole), 7):
        stream = stream_of(config)
        before = list(islice(stream, stop))
        state = json.loads(json.dumps(stream.state()))
        assert before + list(stream_of(config, state)) == whole


def test_the_split_is_by_hash_of_the_id_within_each_source() -> None:
    documents = [
        Document(s, str(i), f"{s}{i}") for s, n in (("a", 100), ("b", 20)) for i in range(n)
    ]

    class Listed(list[Document]):
        def state(self) -> None: ...

    census = count({"all": lambda: Listed(documents)}, 0.1)  # type: ignore[dict-item, return-value]
    kept = list(KeptDocuments({"all": lambda: Listed(documents)}, census.cuts, None))  # type: ignore[dict-item, return-value]
    for source, held_out in (("a", 10), ("b", 2)):
        ranks = {k.rank: k.split for k in kept if k.text.startswith(source)}
        lowest = sorted(ranks)[:held_out]
        assert [ranks[rank] for rank in lowest] == ["val"] * held_out
        assert sum(split == "val" for split in ranks.values()) == held_out
    assert census.documents == 120


def test_a_share_of_the_ranks_is_a_share_of_the_documents() -> None:
    ranks = [rank_of(Document("hub", f"train/{n}", "")) for n in range(20_000)]
    held_out = sum(rank <= expected_cut(0.1) for rank in ranks)
    assert abs(held_out - 2000) < 4 * (20_000 * 0.1 * 0.9) ** 0.5


def test_what_was_seen_after_the_last_save_is_forgotten(tmp_path: Path) -> None:
    seen = Seen(tmp_path / "seen")
    assert seen.add(b"one", 1) and seen.add(b"two", 2) and not seen.add(b"one", 3)
    seen.commit()
    seen.close()
    again = Seen(tmp_path / "seen", documents=1)
    assert not again.add(b"one", 2)
    assert again.add(b"two", 3)
    again.discard()
    assert not list(tmp_path.iterdir())


BAD_ROWS = {
    "null": ({"text": None}, "row 3 of .* is null, not text"),
    "number": ({"text": "7", "n": 1}, None),
    "empty": ({"text": ""}, None),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_rows_without_text(config: Callable[..., Config], tmp_path: Path, case: str) -> None:
    row, complaint = BAD_ROWS[case]
    path = as_jsonl(
        tmp_path / "a.jsonl", [{"text": "one"}, {"text": "two"}, row, {"text": "three"}]
    )
    asked = {"source": "jsonl", "files": [str(path)]}
    if complaint is None:
        prepare(config(**asked))
        return
    with pytest.raises(DataError, match=complaint + ".*data.skip_bad_rows=true"):
        prepare(config(**asked))
    data = prepare(config(**asked, skip_bad_rows=True))
    assert all_texts(data) == ["one", "three", "two"]
    assert data.manifest["left_out"] == {"bad rows": 1}


def test_a_column_of_numbers(config: Callable[..., Config], tmp_path: Path) -> None:
    path = as_jsonl(tmp_path / "a.jsonl", [{"n": 1}, {"n": 2}])
    with pytest.raises(DataError, match=r"data\.column=n: row 1 of .*a\.jsonl is int 1, not text"):
        prepare(config(source="jsonl", files=[str(path)], column="n"))


def test_a_missing_column_lists_the_others(config: Callable[..., Config], tmp_path: Path) -> None:
    path = as_jsonl(tmp_path / "a.jsonl", [{"body": "one", "url": "two"}])
    with pytest.raises(DataError, match=r"data\.column=text: .*there are: body, url"):
        prepare(config(source="jsonl", files=[str(path)]))


@pytest.mark.parametrize("source", ["text_files", "jsonl"])
def test_bytes_that_are_not_utf8(
    config: Callable[..., Config], tmp_path: Path, source: str
) -> None:
    (tmp_path / "good.txt").write_text('{"text": "fine"}\n', encoding="utf-8")
    (tmp_path / "latin.txt").write_bytes('{"text": "caf\xe9"}\n'.encode("latin1"))
    with pytest.raises(DataError, match=r"latin\.txt: byte 13 is not UTF-8.*iconv"):
        prepare(config(source=source, files=[f"{tmp_path}/*.txt"]))


def test_lines_that_are_not_json(config: Callable[..., Config], tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": \n')
    with pytest.raises(DataError, match=r"a\.jsonl: not readable after row"):
        prepare(config(source="jsonl", files=[f"{tmp_path}/a.jsonl"]))


def test_a_file_that_is_not_parquet(config: Callable[..., Config], tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_text("text")
    with pytest.raises(DataError, match=r"a\.parquet: not readable as parquet"):
        prepare(config(source="parquet", files=[f"{tmp_path}/a.parquet"]))


def test_files_that_are_not_there(config: Callable[..., Config], tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.text").write_text("one")
    with pytest.raises(DataError, match=r"corpus/\*\.txt: matches no file; .*corpus holds a\.text"):
        prepare(config(source="text_files", files=[f"{tmp_path}/corpus/*.txt"]))


@pytest.mark.parametrize(
    ("texts", "complaint"),
    [
        (["", " \n"], r"\*\.txt: no text in there"),
        (["one"], r"\*\.txt: one document, so none can be held out.*data\.val_files"),
        (["same", "same"], "one document"),
    ],
)
def test_too_little_text(
    config: Callable[..., Config], tmp_path: Path, texts: list[str], complaint: str
) -> None:
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.txt").write_text(text)
    with pytest.raises(DataError, match=complaint):
        prepare(config(source="text_files", files=[f"{tmp_path}/*.txt"]))


def test_a_sequence_longer_than_the_text(
    tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    from slm.data.examples import open_examples

    for number in range(3):
        (tmp_path / f"{number}.txt").write_text(f"short {number}")
    data = {"source": "text_files", "files": [f"{tmp_path}/*.txt"]}
    config = tiny_config(cache_dir=str(tmp_path / "cache"), data=data)
    with pytest.raises(
        DataError, match=r"16 training tokens hold no sequence of model\.seq_len=32"
    ):
        open_examples(config, 32)


@pytest.fixture
def silent_server() -> Iterator[str]:
    """A hub that accepts connections and never answers."""
    server = socket.create_server(("127.0.0.1", 0))
    held: list[socket.socket] = []

    def accept() -> None:
        try:
            while True:
                held.append(server.accept()[0])
        except OSError:
            return

    threading.Thread(target=accept, daemon=True).start()
    yield f"http://127.0.0.1:{server.getsockname()[1]}"
    server.close()
    for connection in held:
        connection.close()


@pytest.mark.parametrize("hub", ["offline", "refuses", "silent"])
def test_a_hub_that_cannot_be_reached_is_told_of_in_seconds(
    config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, silent_server: str, hub: str
) -> None:
    endpoints = {"refuses": "http://127.0.0.1:9", "silent": silent_server}
    if hub != "offline":  # the library has read its environment by now
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoints[hub])
    started = time.monotonic()
    with pytest.raises(
        DataError, match=r"data\.repo=owner/name: the hub cannot be reached"
    ) as told:
        prepare(config(source="hub", repo="owner/name", revision=COMMIT))
    assert "python -m slm prepare" in str(told.value) and "cache_dir" in str(told.value)
    assert time.monotonic() - started < 15


def test_a_preset_without_a_network_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="HuggingFaceFW/fineweb-edu: the hub cannot be reached"):
        prepare(compose_config(["data=fineweb_edu", f"cache_dir={tmp_path}"]))


def test_names_that_look_like_patterns_are_names(
    config: Callable[..., Config], tmp_path: Path
) -> None:
    for name in ("a1.txt", "a[1].txt", "b*.txt", "c?.txt", "d e.txt"):
        (tmp_path / name).write_text(f"This is {name}.")
    data = prepare(config(source="text_files", files=[f"{tmp_path}/*.txt"]))
    assert all_texts(data) == sorted(f"This is {path.name}." for path in tmp_path.glob("*.txt"))


def test_validation_files_that_are_the_training_files(
    config: Callable[..., Config], tmp_path: Path
) -> None:
    files = [str(as_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in TEXTS]))]
    with pytest.raises(DataError, match=r"no text in there that is not in data\.val_files"):
        prepare(config(source="jsonl", files=files, val_files=files))


def test_a_row_is_named_with_its_file(config: Callable[..., Config], tmp_path: Path) -> None:
    as_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in TEXTS])
    as_jsonl(tmp_path / "b.jsonl", [{"text": "fine"}, {"text": None}])
    with pytest.raises(DataError, match=r"row 42 of .*b\.jsonl is null"):
        prepare(config(source="jsonl", files=[f"{tmp_path}/*.jsonl"]))


def test_a_column_that_parquet_does_not_have(config: Callable[..., Config], tmp_path: Path) -> None:
    pd.DataFrame({"body": TEXTS, "n": 1}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet has no such column; there are: body, n"):
        prepare(config(source="parquet", files=[f"{tmp_path}/a.parquet"]))


def test_a_mark_of_byte_order_is_not_text(config: Callable[..., Config], tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfOne.\r\nTwo.")
    (tmp_path / "b.txt").write_text("Three.")
    data = prepare(config(source="text_files", files=f"{tmp_path}/*.txt"))
    assert all_texts(data) == ["One.\nTwo.", "Three."]


def test_an_empty_file_among_others_is_passed_over(
    config: Callable[..., Config], tmp_path: Path
) -> None:
    as_jsonl(tmp_path / "a.jsonl", [])
    with pytest.raises(DataError, match=r"\*\.jsonl: no text in there"):
        prepare(config(source="jsonl", files=f"{tmp_path}/*.jsonl"))
    as_jsonl(tmp_path / "b.jsonl", [{"text": text} for text in TEXTS])
    assert all_texts(prepare(config(source="jsonl", files=f"{tmp_path}/*.jsonl"))) == sorted(TEXTS)
