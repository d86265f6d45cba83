"""From a corpus to shards of tokens: once, exactly, in bounded memory, and going on after a kill.

Work happens in a hidden folder beside the final one. Every second or so the files are put on disk and
`progress.json` says how far they are whole; a later call cuts off what came after and goes on. The
folder is renamed when everything is there. Tokens depend on the corpus and the tokenizer alone: not
on threads, interruptions or the machine.
"""

from __future__ import annotations

import errno
import math
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from slm.config.schema import Config, DataConfig
from slm.data.corpus.identity import (
    MANIFEST,
    asked_for,
    content_of,
    corpus_settings,
    manifest_of,
    tokenizer_identity,
)
from slm.data.corpus.sources import open_parts
from slm.data.corpus.splits import Census, KeptDocuments, Parts, Seen, count, expected_cut
from slm.data.tokenizers.tokenizer import (
    FILE_NAME,
    LibraryTokenizer,
    Tokenizer,
    build_tokenizer,
    load_tokenizer,
)
from slm.data.tokens.contamination import validation_overlap
from slm.data.tokens.encode import SPLITS, Done, Encoder
from slm.data.tokens.shards import (
    Incomplete,
    PreparedData,
    SplitWriter,
    expected_hashes,
    open_prepared,
    token_dtype,
)
from slm.errors import DataError
from slm.files import canonical_hash, file_hash, read_json, waiting_lock, write_json

SCHEMA_VERSION = 2  # 2: an index of documents, what was left out, the overlap of the splits
BYTES_PER_INDEX_ENTRY = 16
CENSUS = "census.json"
NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
Announce = Callable[[str], None]


def prepare(
    config: Config, announce: Announce = lambda _: None, *, progress: bool = False
) -> PreparedData:
    """Open the prepared data of a config, making them first if need be.

    Two processes that ask at once share one preparation: the second waits for the first.

    Raises:
        DataError: if the corpus cannot be read, the disk is full, or a shard fails its checksum.
    """
    folder = prepared_folder(config)
    if (folder / MANIFEST).exists():
        return open_prepared(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = folder.parent / f".{folder.name}.lock"
    with waiting_lock(lock, lambda: announce(f"waiting for another process to prepare {folder}")):
        if not (folder / MANIFEST).exists():
            kind = config.tokenizer.kind
            announce(f"preparing data={_name(config)} with tokenizer={kind} ...")
            with _full_disk_told(folder):
                _make(config, folder, announce, progress)
    return open_prepared(folder)


def prepared_folder(config: Config) -> Path:
    """Where the tokens of a config are kept; named by what they depend on.

    Raises:
        DataError: if the corpus or the tokenizer's file is not there.
    """
    if config.data.prepared is not None:
        manifest_of(config)
        return Path(config.data.prepared)
    tokenizer = config.tokenizer
    what = [corpus_settings(config.data), content_of(config), tokenizer_identity(config)]
    size = tokenizer.vocab_size if tokenizer.kind == "bpe" else ""
    name = f"{_name(config)}-{tokenizer.kind}{size}"
    return Path(config.cache_dir) / f"{name}-{canonical_hash([SCHEMA_VERSION, what])[:8]}"


def _name(config: Config) -> str:
    """What a person calls the corpus."""
    data = config.data
    return Path(data.repo).name if data.source == "hub" and data.repo else data.source


@contextmanager
def _full_disk_told(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, sqlite3.OperationalError) as error:
        if getattr(error, "errno", None) not in NO_SPACE and "is full" not in str(error):
            raise
        raise DataError(
            f"{folder.parent}: no space left while preparing data ({error}); free some, or set "
            "cache_dir to another disk. What is done is kept: the same command goes on from there"
        ) from None


def _make(config: Config, folder: Path, announce: Announce, progress: bool) -> None:
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        _make_partial(config, partial, announce, progress)
    except Incomplete as error:
        announce(f"starting over: {error}")
        shutil.rmtree(partial)
        _make_partial(config, partial, announce, progress)
    shutil.rmtree(folder, ignore_errors=True)  # a folder without a manifest is not a preparation
    partial.rename(folder)


def _make_partial(config: Config, partial: Path, announce: Announce, progress: bool) -> None:
    """Everything up to the manifest, which comes last; what it does not name is removed then."""
    partial.mkdir(exist_ok=True)
    if not (partial / MANIFEST).exists():
        start_seconds = time.perf_counter()
        content = content_of(config)
        parts = open_parts(config.data)
        census = _census(config, parts, partial)
        _check_space(config, census, partial)
        tokenizer = _tokenizer(config, parts, census, partial, announce)
        with _progress_bar(config, census, progress) as show:
            workers = config.data.workers or os.cpu_count() or 1
            limit = config.data.max_train_tokens
            stops = config.data.source == "hub"  # reading on would cost a download
            encoder = Encoder(
                partial, tokenizer, workers=workers, max_train_tokens=limit, stops=stops, show=show
            )
            seconds_before = encoder.done.seconds
            _encode(config, parts, census, encoder, announce)
        manifest = _manifest(config, content, partial, tokenizer, encoder.done)
        if content_of(config) != content:
            shutil.rmtree(partial)
            raise DataError("the corpus changed while it was read; run again")
        seconds = seconds_before + time.perf_counter() - start_seconds
        write_json(partial / MANIFEST, {**manifest, "wall_seconds": round(seconds, 2)})
    named = {MANIFEST, *dict(expected_hashes(read_json(partial / MANIFEST)))}
    for path in partial.iterdir():
        if path.name not in named:
            path.unlink()


def _census(config: Config, parts: Parts, partial: Path) -> Census:
    """What a first pass finds.

    Raises:
        DataError: if a part holds no text, or one document that would have to be split.
    """
    data, path = config.data, partial / CENSUS
    if path.exists():
        return Census(**read_json(path))
    if data.source == "hub":
        census = Census({"hub": expected_cut(data.val_fraction)})
    else:
        census = count(parts, data.val_fraction, to_the_end=data.max_train_tokens is None)
        _check_documents(data, census)
    write_json(path, asdict(census))
    return census


def _check_documents(data: DataConfig, census: Census) -> None:
    places = {"val": data.val_files, "train": data.files, "all": data.files}
    for part, distinct in census.distinct.items():
        where = ", ".join(places[part]) or f"data.source={data.source}"
        if not distinct:
            other = " that is not in data.val_files" if part == "train" else ""
            raise DataError(f"{where}: no text in there{other}")
        if part == "all" and distinct == 1:
            raise DataError(
                f"{where}: one document, so none can be held out; name others as data.val_files, or "
                "cut it with data.document=paragraph"
            )


def _check_space(config: Config, census: Census, partial: Path) -> None:
    """An estimate before work is done: a token for two bytes of text with a bpe, else for one."""
    text_tokens = math.inf
    if census.text_bytes is not None:
        text_tokens = census.text_bytes / (2 if config.tokenizer.kind in {"bpe", "file"} else 1)
    tokens = min(text_tokens, config.data.max_train_tokens or math.inf)
    if tokens == math.inf:
        return  # of the hub's, nobody knows
    needed = tokens * (4 if config.tokenizer.kind == "file" else 2)
    needed += (census.documents or 0) * BYTES_PER_INDEX_ENTRY
    free = shutil.disk_usage(partial).free + sum(p.stat().st_size for p in partial.iterdir())
    if needed > free:
        raise DataError(
            f"{partial.parent}: about {needed / 1e9:.2g} GB are needed and {free / 1e9:.2g} GB are "
            "free; free some, or set cache_dir to another disk"
        )


def _tokenizer(
    config: Config, parts: Parts, census: Census, partial: Path, announce: Announce
) -> Tokenizer:
    """The tokenizer, trained on the first training documents if it needs to be, and saved."""
    settings = config.tokenizer
    if (partial / FILE_NAME).exists():
        return load_tokenizer(partial, settings.end_of_text)
    if settings.kind != "bpe":
        return build_tokenizer(settings, iter(()), partial)
    announce(f"training a bpe of {settings.vocab_size:,} entries ...")
    seen = Seen(partial / "seen-for-tokenizer.sqlite")
    documents = KeptDocuments(parts, census.cuts, seen if config.data.deduplicate else None)
    with closing(seen):
        texts = _texts(documents, settings.train_text_bytes)
        tokenizer = build_tokenizer(settings, texts, partial)
    seen.discard()
    return tokenizer


def _texts(documents: KeptDocuments, limit_bytes: int) -> Iterator[str]:
    """Texts of training documents, until there are so many bytes."""
    size = 0
    for document in documents:
        if document.split == "train":
            yield document.text
            size += document.text_bytes
            if size >= limit_bytes:
                return


def _encode(
    config: Config, parts: Parts, census: Census, encoder: Encoder, announce: Announce
) -> None:
    with closing(encoder):
        if encoder.done.complete:
            return
        state = encoder.done.state
        if state is not None:
            announce(f"going on after {state['read']:,} documents")
        seen = _seen(encoder.folder / "seen.sqlite", state, config.data.deduplicate)
        with closing(seen):
            repeated = seen if config.data.deduplicate else None
            encoder.run(KeptDocuments(parts, census.cuts, repeated, state), seen)


def _seen(path: Path, state: dict[str, Any] | None, deduplicate: bool) -> Seen:
    """The texts met before; a document that was kept is one of them."""
    read = 0 if state is None else state["read"]
    kept = read - sum(state["left_out"].values()) if state is not None and deduplicate else 0
    try:
        seen = Seen(path, documents=read)
        is_whole = len(seen) == kept
    except sqlite3.DatabaseError as error:
        if "is full" in str(error):
            raise
        is_whole = False
    if not is_whole:
        raise Incomplete(f"{path} is not what it was when it was last saved")
    return seen


@contextmanager
def _progress_bar(config: Config, census: Census, shown: bool) -> Iterator[Callable[[Done], None]]:
    """A bar over bytes of text, or over tokens where they are limited, with the time left."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    limit = config.data.max_train_tokens
    columns = (
        TextColumn("encoding"), BarColumn(), TextColumn("{task.fields[said]}"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, disable=not shown) as progress:
        task = progress.add_task("", total=limit or census.text_bytes, said="")
        start_seconds = time.perf_counter()

        def show(done: Done) -> None:
            counts = done.counts.values()
            size, tokens = (sum(split[key] for split in counts) for key in ("bytes", "tokens"))
            rate = tokens / (time.perf_counter() - start_seconds + done.seconds)
            said = f"{size / 1e6:,.0f} MB, {tokens / 1e6:,.1f}M tokens, {rate / 1e6:.2f}M tokens/s"
            reached = done.counts["train"]["tokens"] if limit else size
            progress.update(task, completed=reached, said=said)

        yield show


def _finished_splits(partial: Path, tokenizer: Tokenizer, done: Done) -> dict[str, Any]:
    """Validation in the order of its ranks, which mixes its sources; then the manifest's entries."""
    dtype = token_dtype(tokenizer.vocab_size)
    train = SplitWriter(partial, "train", dtype, point=done.points["train"])
    unsorted = SplitWriter(partial, "unsorted", dtype, point=done.points["val"])
    val = SplitWriter(partial, "val", dtype)
    with closing(train), closing(unsorted), closing(val):
        unsorted.sort_into(val)
    for split in SPLITS:
        if not done.counts[split]["documents"]:
            raise DataError(
                f"the corpus leaves the {split} split without documents; change data.val_fraction, or "
                "name a validation split (data.val_files, data.val_split)"
            )
    writers = {"train": train, "val": val}
    return {s: {**done.counts[s], "shards": writers[s].shards()} for s in SPLITS}


def _manifest(
    config: Config, content: dict[str, Any], partial: Path, tokenizer: Tokenizer, done: Done
) -> dict[str, Any]:
    splits = _finished_splits(partial, tokenizer, done)
    tokenizer_hash = file_hash(partial / FILE_NAME)
    hashes = [shard["sha256"] for split in splits.values() for shard in split["shards"]]
    assert done.state is not None
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "corpus": corpus_settings(config.data),
        "asked_for": asked_for(config.data),
        "content": content,
        "tokenizer": tokenizer_identity(config),
        "tokenizer_sha256": tokenizer_hash,
        "vocab_size": tokenizer.vocab_size,
        "end_of_text": tokenizer.end_of_text if isinstance(tokenizer, LibraryTokenizer) else None,
        "dtype": token_dtype(tokenizer.vocab_size).str,
        "fingerprint": canonical_hash([tokenizer_hash, *hashes])[:16],
        "splits": splits,
        "left_out": done.state["left_out"],
    }
    return {**manifest, "overlap": validation_overlap(PreparedData(partial, manifest))}
