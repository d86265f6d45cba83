"""Preparation of a corpus as shards of tokens: done once, resumable, in bounded memory.

Files are written to a hidden folder `.<name>.partial`, which is renamed when it is complete. About once
a second the files are flushed to disk and their sizes are saved in `progress.json`. After an
interruption, the next call truncates the files to these sizes and continues. The tokens depend only on
the corpus and the tokenizer, not on the number of threads, on interruptions or on the machine.
"""

from __future__ import annotations

import errno
import math
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from slm.config.schema import Config, DataConfig
from slm.cores import available_cores
from slm.data.corpus.identity import (
    MANIFEST,
    corpus_content,
    corpus_settings,
    load_prepared_manifest,
    requested_paths,
    tokenizer_identity,
)
from slm.data.corpus.sources import open_parts
from slm.data.corpus.splits import (
    Census,
    CorpusReader,
    Parts,
    SeenTexts,
    count_documents,
    expected_cut,
)
from slm.data.tokenizers.hf_files import TOKENIZER_FILE
from slm.data.tokenizers.tokenizer import (
    HFTokenizer,
    Tokenizer,
    build_tokenizer,
    load_tokenizer,
)
from slm.data.tokens.contamination import validation_overlap
from slm.data.tokens.encode import SPLITS, Encoder, EncodingProgress
from slm.data.tokens.shards import (
    PreparedData,
    ResumeError,
    SplitWriter,
    expected_hashes,
    open_prepared,
    token_dtype,
)
from slm.errors import DataError
from slm.files import blocking_lock, canonical_hash, file_hash, read_json, read_object, write_json

LOSSY = "not kept by the tokenizer"
SCHEMA_VERSION = 2  # 2 added the document index, `left_out` and `overlap`
BYTES_PER_INDEX_ENTRY = 16
CENSUS = "census.json"
SMALLER_UNIT = {"file": "paragraph", "paragraph": "line"}  # of text files
NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
Log = Callable[[str], None]


def prepare(config: Config, log: Log = lambda _: None, *, progress: bool = False) -> PreparedData:
    """Open the prepared data of a config; prepare them first if they do not exist.

    A lock ensures that only one process prepares the same data; others block until it is done. `log`
    receives one line per stage, and `progress` shows a progress bar.

    Raises:
        DataError: if the corpus cannot be read, the disk is full, or a shard fails its checksum.
    """
    folder = prepared_folder(config)
    if (folder / MANIFEST).exists():
        return open_prepared(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = folder.parent / f".{folder.name}.lock"
    with blocking_lock(lock, lambda: log(f"waiting for another process to prepare {folder}")):
        if not (folder / MANIFEST).exists():
            kind = config.tokenizer.kind
            log(f"preparing data={_corpus_name(config)} with tokenizer={kind} ...")
            with _report_full_disk(folder):
                _prepare_folder(config, folder, log, progress)
    return open_prepared(folder)


def prepared_folder(config: Config) -> Path:
    """Return the folder for the tokens of a config; its name contains a hash of their identity.

    Raises:
        DataError: if the corpus or the tokenizer's file is missing.
    """
    if config.data.prepared is not None:
        load_prepared_manifest(config)
        return Path(config.data.prepared)
    tokenizer = config.tokenizer
    identity = [corpus_settings(config.data), corpus_content(config), tokenizer_identity(config)]
    size = tokenizer.vocab_size if tokenizer.kind == "bpe" else ""
    name = f"{_corpus_name(config)}-{tokenizer.kind}{size}"
    return Path(config.cache_dir) / f"{name}-{canonical_hash([SCHEMA_VERSION, identity])[:8]}"


def _corpus_name(config: Config) -> str:
    """Return a short name of the corpus for folder names and log lines."""
    data = config.data
    return Path(data.repo).name if data.source == "hub" and data.repo else data.source


@contextmanager
def _report_full_disk(folder: Path) -> Iterator[None]:
    """Raise DataError instead of the various errors that a full disk causes."""
    try:
        yield
    except (OSError, sqlite3.OperationalError) as error:
        if getattr(error, "errno", None) not in NO_SPACE and not _is_full(error):
            raise
        raise DataError(
            f"{folder.parent}: no space left on the disk while preparing data ({error}); free some space "
            "and run the same command again to continue, or set cache_dir to another disk"
        ) from None


def _is_full(error: Exception) -> bool:
    return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL


def _prepare_folder(config: Config, folder: Path, log: Log, progress: bool) -> None:
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        _write_partial(config, partial, log, progress)
    except ResumeError as error:
        log(f"restarting the preparation: {error}")
        shutil.rmtree(partial)
        _write_partial(config, partial, log, progress)
    shutil.rmtree(folder, ignore_errors=True)  # has no manifest, so it holds no prepared data
    partial.rename(folder)


def _write_partial(config: Config, partial: Path, log: Log, progress: bool) -> None:
    """Write all files, the manifest last; then remove the files that the manifest does not list."""
    partial.mkdir(exist_ok=True)
    if not (partial / MANIFEST).exists():
        start_seconds = time.perf_counter()
        content = corpus_content(config)
        parts = open_parts(config.data)
        census = _load_or_count_census(config, parts, partial)
        _check_space(config, census, partial)
        tokenizer = _load_or_build_tokenizer(config, parts, census, partial, log)
        with _progress_bar(config, census, progress) as update_bar:
            encoder = Encoder(
                partial,
                tokenizer,
                workers=config.data.workers or available_cores(),
                max_train_tokens=config.data.max_train_tokens,
                stop_at_limit=config.data.source == "hub",  # avoids downloading the rest
                skip_lossy=config.data.skip_bad_rows,
                on_progress=update_bar,
            )
            seconds_before = encoder.progress.seconds
            _encode(config, parts, census, encoder, log)
        manifest = _build_manifest(config, content, tokenizer, encoder)
        if corpus_content(config) != content:
            shutil.rmtree(partial)
            raise DataError("the corpus changed during preparation; run the same command again")
        seconds = seconds_before + time.perf_counter() - start_seconds
        write_json(partial / MANIFEST, {**manifest, "wall_seconds": round(seconds, 2)})
    listed = {MANIFEST, *dict(expected_hashes(read_json(partial / MANIFEST)))}
    for path in partial.iterdir():
        if path.name not in listed:
            path.unlink()


def _load_or_count_census(config: Config, parts: Parts, partial: Path) -> Census:
    """Load census.json, or count and check the documents in a first pass and write it."""
    data, path = config.data, partial / CENSUS
    if path.exists():
        return Census(**read_object(path, f"delete {partial} and prepare the data again"))
    if data.source == "hub":
        census = Census({"hub": expected_cut(data.val_fraction)})
    else:
        census = count_documents(parts, data.val_fraction, count_all=data.max_train_tokens is None)
        _check_documents(data, census)
    write_json(path, asdict(census))
    return census


def _check_documents(data: DataConfig, census: Census) -> None:
    """Raise DataError if a part has no text, or there are too few documents to hold one out."""
    for part, distinct in census.distinct.items():
        key, files = ("val_files", data.val_files) if part == "val" else ("files", data.files)
        setting = f"data.{key}={','.join(files)}" if files else f"data.source={data.source}"
        if not distinct:
            condition = " that is not also in data.val_files" if part == "train" else ""
            raise DataError(f"{setting}: no text found{condition}; name other files")
        if part == "all" and distinct == 1:
            smaller = SMALLER_UNIT.get(data.document) if data.source == "text_files" else None
            split = f", or split the text with data.document={smaller}" if smaller else ""
            raise DataError(
                f"{setting}: only one distinct document, but holding one out for validation needs two; "
                f"set data.val_files to other files{split}"
            )


def _check_space(config: Config, census: Census, partial: Path) -> None:
    """Raise DataError if the shards will not fit on the disk.

    Their size is estimated with 2 bytes of text per token for a BPE or a tokenizer file, otherwise 1.
    """
    text_tokens = math.inf
    if census.text_bytes is not None:
        text_tokens = census.text_bytes / (2 if config.tokenizer.kind in {"bpe", "file"} else 1)
    tokens = min(text_tokens, config.data.max_train_tokens or math.inf)
    if tokens == math.inf:
        return  # the size of a hub dataset is unknown
    needed = tokens * (4 if config.tokenizer.kind == "file" else 2)
    needed += (census.documents or 0) * BYTES_PER_INDEX_ENTRY
    free = shutil.disk_usage(partial).free + sum(p.stat().st_size for p in partial.iterdir())
    if needed > free:
        raise DataError(
            f"{partial.parent}: the tokens need about {needed / 1e9:.2g} GB, but only "
            f"{free / 1e9:.2g} GB are free; free some space, or set cache_dir to another disk"
        )


def _load_or_build_tokenizer(
    config: Config, parts: Parts, census: Census, partial: Path, log: Log
) -> Tokenizer:
    """Load the saved tokenizer, or build and save it; a BPE is trained on the training split."""
    settings = config.tokenizer
    if (partial / TOKENIZER_FILE).exists():
        return load_tokenizer(partial, settings.end_of_text)
    if settings.kind != "bpe":
        return build_tokenizer(settings, iter(()), partial)
    log(f"training a BPE tokenizer with vocab_size={settings.vocab_size} ...")
    seen = SeenTexts(partial / "seen-for-tokenizer.sqlite")
    documents = CorpusReader(parts, census.cuts, seen if config.data.deduplicate else None)
    with closing(seen):
        texts = _train_texts(documents, settings.train_text_bytes)
        tokenizer = build_tokenizer(settings, texts, partial)
    seen.discard()
    return tokenizer


def _train_texts(documents: CorpusReader, limit_bytes: int) -> Iterator[str]:
    """Yield the texts of the first training documents, up to `limit_bytes`."""
    size = 0
    for document in documents:
        if document.split == "train":
            yield document.text
            size += document.text_bytes
            if size >= limit_bytes:
                return


def _encode(config: Config, parts: Parts, census: Census, encoder: Encoder, log: Log) -> None:
    with closing(encoder):
        if encoder.progress.complete:
            return
        state = encoder.progress.state
        if state is not None:
            log(f"continuing after {state['read']:,} documents")
        seen = _open_seen_texts(encoder.folder / "seen.sqlite", state, config.data.deduplicate)
        with closing(seen):
            duplicates = seen if config.data.deduplicate else None
            encoder.run(CorpusReader(parts, census.cuts, duplicates, state), seen)


def _open_seen_texts(path: Path, state: dict[str, Any] | None, deduplicate: bool) -> SeenTexts:
    """Open the set of texts read so far; raise ResumeError unless its size equals the saved count."""
    read = 0 if state is None else state["read"]
    kept = read - sum(state["left_out"].values()) if state is not None and deduplicate else 0
    try:
        seen = SeenTexts(path, documents=read)
        is_complete = len(seen) == kept
    except sqlite3.DatabaseError as error:
        if _is_full(error):
            raise
        is_complete = False
    if not is_complete:
        raise ResumeError(f"{path} does not match the saved progress")
    return seen


@contextmanager
def _progress_bar(
    config: Config, census: Census, enabled: bool
) -> Iterator[Callable[[EncodingProgress], None]]:
    """Show a progress bar (bytes of text, or training tokens if limited); yield its update function."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    limit = config.data.max_train_tokens
    counts_column, time_column = TextColumn("{task.fields[counts]}"), TimeRemainingColumn()
    columns = (TextColumn("encoding"), BarColumn(), counts_column, time_column)
    with Progress(*columns, disable=not enabled) as bar:
        task = bar.add_task("", total=limit or census.text_bytes, counts="")

        def update(progress: EncodingProgress) -> None:
            counts = progress.counts.values()
            size, tokens = (sum(split[key] for split in counts) for key in ("bytes", "tokens"))
            rate = tokens / progress.seconds
            text = f"{size / 1e6:,.0f} MB, {tokens / 1e6:,.1f}M tokens, {rate / 1e6:.2f}M tokens/s"
            completed = progress.counts["train"]["tokens"] if limit else size
            bar.update(task, completed=completed, counts=text)

        yield update


def _finish_splits(tokenizer: Tokenizer, encoder: Encoder) -> dict[str, Any]:
    """Sort validation documents by rank, which mixes their sources, and return the manifest entries."""
    dtype, folder, progress = token_dtype(tokenizer.vocab_size), encoder.folder, encoder.progress
    train = SplitWriter(folder, "train", dtype, resume_point=progress.points["train"])
    unsorted = SplitWriter(folder, "unsorted", dtype, resume_point=progress.points["val"])
    val = SplitWriter(folder, "val", dtype)
    with closing(train), closing(unsorted), closing(val):
        unsorted.sort_into(val)
    for split in SPLITS:
        if not progress.counts[split]["documents"]:
            raise DataError(
                f"the {split} split has no documents; change data.val_fraction, or set a "
                "validation split with data.val_files or data.val_split"
            )
    writers = {"train": train, "val": val}
    return {s: {**progress.counts[s], "shards": writers[s].shards()} for s in SPLITS}


def _build_manifest(
    config: Config, content: dict[str, Any], tokenizer: Tokenizer, encoder: Encoder
) -> dict[str, Any]:
    splits, progress = _finish_splits(tokenizer, encoder), encoder.progress
    tokenizer_hash = file_hash(encoder.folder / TOKENIZER_FILE)
    hashes = [shard["sha256"] for split in splits.values() for shard in split["shards"]]
    assert progress.state is not None
    left_out = progress.state["left_out"] | ({LOSSY: progress.lossy} if progress.lossy else {})
    changes = {"normalized_documents": progress.normalized} if progress.normalized else {}
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "corpus": corpus_settings(config.data),
        "asked_for": requested_paths(config.data),
        "content": content,
        "tokenizer": tokenizer_identity(config),
        "tokenizer_sha256": tokenizer_hash,
        "vocab_size": tokenizer.vocab_size,
        "end_of_text": tokenizer.end_of_text if isinstance(tokenizer, HFTokenizer) else None,
        "dtype": token_dtype(tokenizer.vocab_size).str,
        "fingerprint": canonical_hash([tokenizer_hash, *hashes])[:16],
        "splits": splits,
        "left_out": left_out,
        **changes,
    }
    return {**manifest, "overlap": validation_overlap(PreparedData(encoder.folder, manifest))}
