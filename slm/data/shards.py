"""Prepared tokens on disk: written once, checked on opening, memory-mapped after.

    <cache_dir>/<source>-<tokenizer>-<hash>/
      manifest.json     sources and versions, per split: documents, tokens, bytes, shards + sha256
      tokenizer.json    what made the tokens
      train-00000.bin   uint16 ids, little endian; each document starts with end-of-text
      val-00000.bin

The folder appears whole or not at all; its name is a hash of the data and tokenizer config and of
the versions of the corpus packages.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slm.data.corpora import Document, load_corpus, source_versions
from slm.data.tokenizer import FILE_NAME, Tokenizer, build_tokenizer, load_tokenizer
from slm.errors import DataError
from slm.files import canonical_hash, file_hash, read_json, waiting_lock, write_json
from slm.schema import Config

SCHEMA_VERSION = 1
DTYPE = np.dtype("<u2")
SHARD_TOKENS = 1 << 26  # 128 MiB a file
ENCODE_BATCH_DOCUMENTS = 256
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class PreparedData:
    """A checked folder of shards."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        return self.manifest["fingerprint"]

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.folder)

    def split(self, name: str) -> list[NDArray[np.uint16]]:
        """Memory maps of a split's shards, in order."""
        shards = self.manifest["splits"][name]["shards"]
        return [np.memmap(self.folder / shard["file"], dtype=DTYPE, mode="r") for shard in shards]


def prepare(config: Config, announce: Callable[[str], None] = lambda _: None) -> PreparedData:
    """Open the prepared data of a config, making them first if need be.

    Two processes that ask at once share one preparation: the second waits for the first.

    Raises:
        DataError: if the corpus cannot be read, or a prepared shard fails its checksum.
    """
    cache_dir = Path(config.cache_dir)
    try:
        folder = cache_dir / _folder_name(config)
    except DataError:
        # The packages of the corpus are not here, but its tokens may have been brought along.
        carried = _carried_along(config, cache_dir)
        if carried is None:
            raise
        return open_prepared(carried)
    cache_dir.mkdir(parents=True, exist_ok=True)
    with waiting_lock(cache_dir / f".{folder.name}.lock"):
        if not (folder / MANIFEST).exists():
            announce(
                f"preparing data={config.data.source} with tokenizer={config.tokenizer.kind} ..."
            )
            _write(config, folder)
    return open_prepared(folder)


def open_prepared(folder: Path) -> PreparedData:
    """Check every file of a prepared folder against its manifest.

    Raises:
        DataError: naming the file that is missing, truncated or altered.
    """
    remedy = f"delete {folder} and run again to prepare it anew"
    try:
        manifest = read_json(folder / MANIFEST)
    except ValueError as error:
        raise DataError(f"{folder / MANIFEST}: not readable ({error}); {remedy}") from None
    for split in manifest["splits"].values():
        for shard in split["shards"]:
            path = folder / shard["file"]
            if not path.is_file():
                raise DataError(f"{path}: the shard is missing; {remedy}")
            size = path.stat().st_size
            if size != shard["tokens"] * DTYPE.itemsize:
                expected = shard["tokens"] * DTYPE.itemsize
                raise DataError(f"{path}: {size} bytes, but its manifest says {expected}; {remedy}")
            if file_hash(path) != shard["sha256"]:
                raise DataError(f"{path}: the checksum differs from its manifest's; {remedy}")
    if file_hash(folder / FILE_NAME) != manifest["tokenizer_sha256"]:
        raise DataError(f"{folder / FILE_NAME}: the checksum differs from its manifest's; {remedy}")
    return PreparedData(folder, manifest)


def _settings(config: Config) -> dict[str, Any]:
    """What decides the tokens, besides the versions of the corpus."""
    return {
        "source": config.data.source,
        "val_fraction": config.data.val_fraction,
        "tokenizer": [config.tokenizer.kind, config.tokenizer.vocab_size],
    }


def _folder_name(config: Config) -> str:
    tokenizer = config.tokenizer
    content = [SCHEMA_VERSION, _settings(config), source_versions(config.data)]
    size = "" if tokenizer.vocab_size is None else str(tokenizer.vocab_size)
    return f"{config.data.source}-{tokenizer.kind}{size}-{canonical_hash(content)[:8]}"


def _carried_along(config: Config, cache_dir: Path) -> Path | None:
    """A preparation with these settings, whatever the versions of its corpus."""
    for manifest in sorted(cache_dir.glob(f"{config.data.source}-*/{MANIFEST}")):
        if read_json(manifest).get("settings") == _settings(config):
            return manifest.parent
    return None


def _write(config: Config, folder: Path) -> None:
    start_seconds = time.perf_counter()
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    corpus = load_corpus(config.data, Path(config.cache_dir))
    tokenizer = build_tokenizer(config.tokenizer, (d.text for d in corpus.train), partial)
    splits = {
        "train": _write_split(partial, "train", corpus.train, tokenizer),
        "val": _write_split(partial, "val", corpus.val, tokenizer),
    }
    shard_hashes = [shard["sha256"] for split in splits.values() for shard in split["shards"]]
    tokenizer_hash = file_hash(partial / FILE_NAME)
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "settings": _settings(config),
        "versions": corpus.versions,
        "vocab_size": tokenizer.vocab_size,
        "tokenizer_sha256": tokenizer_hash,
        "fingerprint": canonical_hash([tokenizer_hash, *shard_hashes])[:16],
        "splits": splits,
        "wall_seconds": round(time.perf_counter() - start_seconds, 2),
    }
    write_json(partial / MANIFEST, manifest)
    shutil.rmtree(folder, ignore_errors=True)  # a folder without a manifest is not a preparation
    partial.rename(folder)


def _write_split(
    folder: Path, split: str, documents: list[Document], tokenizer: Tokenizer
) -> dict[str, Any]:
    shards = []
    for index, ids in enumerate(_shards_of(documents, tokenizer)):
        path = folder / f"{split}-{index:05d}.bin"
        ids.astype(DTYPE).tofile(path)
        shards.append({"file": path.name, "tokens": len(ids), "sha256": file_hash(path)})
    return {
        "documents": len(documents),
        "tokens": sum(shard["tokens"] for shard in shards),
        "bytes": sum(len(document.text.encode()) for document in documents),
        "shards": shards,
    }


def _shards_of(documents: list[Document], tokenizer: Tokenizer) -> Iterator[NDArray[np.uint16]]:
    separator = np.array([tokenizer.eot_id], dtype=DTYPE)
    pending: list[NDArray[Any]] = []
    pending_tokens = 0
    for start in range(0, len(documents), ENCODE_BATCH_DOCUMENTS):
        batch = documents[start : start + ENCODE_BATCH_DOCUMENTS]
        for ids in tokenizer.encode_batch([document.text for document in batch]):
            pending += [separator, ids]
            pending_tokens += 1 + len(ids)
        if pending_tokens >= SHARD_TOKENS:
            yield np.concatenate(pending)
            pending, pending_tokens = [], 0
    if pending:
        yield np.concatenate(pending)
