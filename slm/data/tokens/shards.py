"""Prepared tokens on disk: checked when opened, then memory-mapped.

<cache_dir>/<name>-<tokenizer>-<hash>/
  manifest.json     settings and content of the corpus; per split: counts of documents, tokens and bytes,
                    and the shards with their sha256
  tokenizer.json    the tokenizer
  train-00000.bin   token ids, little-endian uint16 (uint32 for vocabularies above 65,536); each document
                    starts with end-of-text
  train-00000.idx   offset of each document in the shard, in tokens, little-endian uint64
  val-00000.bin, val-00000.idx
  verified.json     size and modification time of each file when it was last hashed on this machine
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from slm.data.corpus.identity import MANIFEST
from slm.data.tokenizers.hf_files import TOKENIZER_FILE
from slm.data.tokenizers.tokenizer import Tokenizer, load_tokenizer
from slm.errors import DataError
from slm.files import file_hash, read_json, size_and_mtime, write_json

VERIFIED = "verified.json"
INDEX_DTYPE = np.dtype("<u8")
SHARD_TOKENS = 1 << 26  # 128 MiB per shard of uint16
# Hashing 1 GiB takes half a second. In larger folders, only files with a new size or time are hashed.
ALWAYS_HASHED_BYTES = 1 << 30


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


@dataclass(frozen=True)
class PreparedData:
    """Folder of prepared tokens whose files match their manifest."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        return self.manifest["fingerprint"]

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.folder, self.manifest["end_of_text"])

    def split(self, name: str) -> list[NDArray[Any]]:
        """Return memory maps of a split's shards, in order."""
        return list(self._memory_maps(name))

    def shards(self, name: str) -> Iterator[tuple[NDArray[Any], NDArray[np.uint64]]]:
        """Yield (tokens, document offsets) of each shard, one shard at a time to limit memory use."""
        return zip(self._memory_maps(name), self._starts(name), strict=True)

    def _memory_maps(self, name: str) -> Iterator[NDArray[Any]]:
        dtype = np.dtype(self.manifest["dtype"])
        return (np.memmap(path, dtype=dtype, mode="r") for path in self._files(name, "file"))

    def _starts(self, name: str) -> Iterator[NDArray[np.uint64]]:
        return (np.fromfile(path, dtype=INDEX_DTYPE) for path in self._files(name, "index"))

    def _files(self, split: str, kind: str) -> list[Path]:
        return [self.folder / shard[kind] for shard in self.manifest["splits"][split]["shards"]]


def open_prepared(folder: Path) -> PreparedData:
    """Check every file of a prepared folder against its manifest.

    Raises:
        DataError: naming the file that is missing, truncated or altered.
    """
    fix = f"delete {folder} and prepare the data again"
    try:
        manifest = read_json(folder / MANIFEST)
        expected = dict(expected_hashes(manifest))
        dtype = np.dtype(manifest["dtype"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder / MANIFEST}: not readable ({error}); {fix}") from None
    for split in manifest["splits"].values():
        for shard in split["shards"]:
            path, size = folder / shard["file"], shard["tokens"] * dtype.itemsize
            if path.is_file() and path.stat().st_size != size:
                raise DataError(
                    f"{path}: the file has {path.stat().st_size:,} bytes, but {MANIFEST} lists "
                    f"{size:,} bytes; {fix}"
                )
    _verify(folder, expected, fix)
    return PreparedData(folder, manifest)


def expected_hashes(manifest: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the name and sha256 of every file that the manifest lists."""
    yield TOKENIZER_FILE, manifest["tokenizer_sha256"]
    for split in manifest["splits"].values():
        for shard in split["shards"]:
            yield shard["file"], shard["sha256"]
            yield shard["index"], shard["index_sha256"]


def _verify(folder: Path, expected: dict[str, str], fix: str) -> None:
    for name in expected:
        if not (folder / name).is_file():
            raise DataError(f"{folder / name}: the file is missing; {fix}")
    stamps = {name: size_and_mtime(folder / name) for name in expected}
    verified = {}
    if sum(size for size, _ in stamps.values()) > ALWAYS_HASHED_BYTES:
        with suppress(OSError, ValueError):
            verified = read_json(folder / VERIFIED)
    changed = [name for name in expected if verified.get(name) != stamps[name]]
    for name in changed:
        if file_hash(folder / name) != expected[name]:
            raise DataError(f"{folder / name}: the checksum differs from that in {MANIFEST}; {fix}")
    if verified != stamps:
        with suppress(OSError):  # files in a read-only folder are hashed each time
            write_json(folder / VERIFIED, stamps)


class ResumeError(Exception):
    """The files of an interrupted preparation do not match its saved progress."""


class SplitWriter:
    """Appends documents to the shards of a split, from the beginning or from a resume point.

    The rank of each document is written beside the shard, for sorting the documents later.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        dtype: np.dtype[Any],
        *,
        shard_tokens: int = SHARD_TOKENS,
        resume_point: dict[str, int] | None = None,
    ):
        self._folder = folder
        self._name = name
        self._dtype = dtype
        self._shard_tokens = shard_tokens
        start = resume_point or {"shard": 0, "tokens": 0, "documents": 0}
        self._shard, self._tokens = start["shard"], start["tokens"]
        self._documents = start["documents"]
        self._open()

    def append(self, ids: NDArray[Any], rank: int) -> None:
        """Write one document, which starts with end-of-text; open a new shard if this one is full."""
        if self._tokens >= self._shard_tokens:
            self.close()
            self._shard, self._tokens, self._documents = self._shard + 1, 0, 0
            self._open()
        self._data.write(ids.astype(self._dtype).tobytes())
        self._index.write(np.array([self._tokens], dtype=INDEX_DTYPE).tobytes())
        self._ranks.write(np.array([rank], dtype=INDEX_DTYPE).tobytes())
        self._tokens += len(ids)
        self._documents += 1

    def save_resume_point(self) -> dict[str, int]:
        """Flush all files to disk and return the position from which a writer can continue."""
        for stream in (self._data, self._index, self._ranks):
            stream.flush()
            os.fsync(stream.fileno())
        return {"shard": self._shard, "tokens": self._tokens, "documents": self._documents}

    def close(self) -> None:
        for stream in (self._data, self._index, self._ranks):
            stream.close()

    def shards(self) -> list[dict[str, Any]]:
        """Return the manifest entries of the shards. Call after `close`."""
        entries = []
        for number in range(self._shard + 1):
            path = self._path(number, "bin")
            if path.stat().st_size:
                entries.append(
                    {
                        "file": path.name,
                        "tokens": path.stat().st_size // self._dtype.itemsize,
                        "sha256": file_hash(path),
                        "index": path.with_suffix(".idx").name,
                        "index_sha256": file_hash(path.with_suffix(".idx")),
                    }
                )
        return entries

    def sort_into(self, other: SplitWriter) -> None:
        """Append the documents to another writer, lowest rank first. There must be only one shard."""
        data = self._path(0, "bin")
        if not data.stat().st_size:
            return
        ids = np.memmap(data, dtype=self._dtype, mode="r")
        starts = np.fromfile(data.with_suffix(".idx"), dtype=INDEX_DTYPE).astype(np.int64)
        ranks = np.fromfile(data.with_suffix(".rank"), dtype=INDEX_DTYPE)
        ends = np.append(starts[1:], len(ids))
        for document in np.argsort(ranks, kind="stable"):
            other.append(ids[starts[document] : ends[document]], int(ranks[document]))

    def _open(self) -> None:
        item = INDEX_DTYPE.itemsize
        self._data = self._open_truncated("bin", self._tokens * self._dtype.itemsize)
        self._index = self._open_truncated("idx", self._documents * item)
        self._ranks = self._open_truncated("rank", self._documents * item)

    def _open_truncated(self, suffix: str, size_bytes: int) -> IO[bytes]:
        """Open a file for appending after its first `size_bytes` and remove the bytes after them."""
        path = self._path(self._shard, suffix)
        if size_bytes and (not path.exists() or path.stat().st_size < size_bytes):
            raise ResumeError(f"{path} is shorter than when progress was saved")
        stream = path.open("r+b" if path.exists() else "w+b")
        stream.truncate(size_bytes)
        stream.seek(size_bytes)
        return stream

    def _path(self, number: int, suffix: str) -> Path:
        return self._folder / f"{self._name}-{number:05d}.{suffix}"
