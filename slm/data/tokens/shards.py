"""Prepared tokens on disk: checked on opening, memory-mapped after.

<cache_dir>/<name>-<tokenizer>-<hash>/
  manifest.json     what was read and how, and per split: documents, tokens, bytes, shards + sha256
  tokenizer.json    what made the tokens
  train-00000.bin   ids, little endian, uint16 where the vocabulary fits; each document starts with
  train-00000.idx   end-of-text. The index holds the documents' starts in the shard, as uint64
  val-00000.bin  val-00000.idx
  verified.json     sizes and times of the files when they were last hashed on this machine
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
from slm.data.tokenizers.tokenizer import FILE_NAME, Tokenizer, load_tokenizer
from slm.errors import DataError
from slm.files import file_hash, read_json, stamp_of, write_json

VERIFIED = "verified.json"
INDEX_DTYPE = np.dtype("<u8")
SHARD_TOKENS = 1 << 26  # 128 MiB a file of uint16
ALWAYS_HASHED_BYTES = 1 << 30  # half a second; more is hashed again only if its time has changed


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


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
        return load_tokenizer(self.folder, self.manifest["end_of_text"])

    def split(self, name: str) -> list[NDArray[Any]]:
        """Memory maps of a split's shards, in order."""
        return list(self._maps(name))

    def document_starts(self, name: str) -> list[NDArray[np.uint64]]:
        """For each shard of a split, where its documents begin."""
        return list(self._starts(name))

    def shards(self, name: str) -> Iterator[tuple[NDArray[Any], NDArray[np.uint64]]]:
        """Tokens and documents' starts of one shard at a time, each forgotten before the next."""
        return zip(self._maps(name), self._starts(name), strict=True)

    def _maps(self, name: str) -> Iterator[NDArray[Any]]:
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
    remedy = f"delete {folder} and prepare it anew"
    try:
        manifest = read_json(folder / MANIFEST)
        expected = dict(expected_hashes(manifest))
        dtype = np.dtype(manifest["dtype"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder / MANIFEST}: not readable ({error}); {remedy}") from None
    for split in manifest["splits"].values():
        for shard in split["shards"]:
            path, size = folder / shard["file"], shard["tokens"] * dtype.itemsize
            if path.is_file() and path.stat().st_size != size:
                found = path.stat().st_size
                raise DataError(f"{path}: {found} bytes, but its manifest says {size}; {remedy}")
    _verify(folder, expected, remedy)
    return PreparedData(folder, manifest)


def expected_hashes(manifest: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The name and sha256 of every file beside the manifest."""
    yield FILE_NAME, manifest["tokenizer_sha256"]
    for split in manifest["splits"].values():
        for shard in split["shards"]:
            yield shard["file"], shard["sha256"]
            yield shard["index"], shard["index_sha256"]


def _verify(folder: Path, expected: dict[str, str], remedy: str) -> None:
    for name in expected:
        if not (folder / name).is_file():
            raise DataError(f"{folder / name}: the file is missing; {remedy}")
    now = {name: stamp_of(folder / name) for name in expected}
    before = {}
    if sum(size for size, _ in now.values()) > ALWAYS_HASHED_BYTES:
        with suppress(OSError, ValueError):
            before = read_json(folder / VERIFIED)
    changed = [name for name in expected if before.get(name) != now[name]]
    for name in changed:
        if file_hash(folder / name) != expected[name]:
            raise DataError(f"{folder / name}: the checksum differs from its manifest's; {remedy}")
    if before != now:
        with suppress(OSError):  # a folder that is only lent for reading is hashed each time
            write_json(folder / VERIFIED, now)


class Incomplete(Exception):
    """What an earlier call left behind cannot be gone on from."""


class SplitWriter:
    """Appends documents to the shards of a split; can go on from a point it was known to be at.

    Ranks are kept beside the documents where they are to be sorted afterwards.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        dtype: np.dtype[Any],
        *,
        shard_tokens: int = SHARD_TOKENS,
        point: dict[str, int] | None = None,
    ):
        self._folder = folder
        self._name = name
        self._dtype = dtype
        self._shard_tokens = shard_tokens
        at = point or {"shard": 0, "tokens": 0, "documents": 0}
        self._shard, self._tokens, self._documents = at["shard"], at["tokens"], at["documents"]
        self._open()

    def append(self, ids: NDArray[Any], rank: int) -> None:
        """A document: end-of-text first. A shard that is full gives way to the next."""
        if self._tokens >= self._shard_tokens:
            self.close()
            self._shard, self._tokens, self._documents = self._shard + 1, 0, 0
            self._open()
        self._data.write(ids.astype(self._dtype).tobytes())
        self._index.write(np.array([self._tokens], dtype=INDEX_DTYPE).tobytes())
        self._ranks.write(np.array([rank], dtype=INDEX_DTYPE).tobytes())
        self._tokens += len(ids)
        self._documents += 1

    def point(self) -> dict[str, int]:
        """Put everything on disk; what a writer needs to go on from here."""
        for stream in (self._data, self._index, self._ranks):
            stream.flush()
            os.fsync(stream.fileno())
        return {"shard": self._shard, "tokens": self._tokens, "documents": self._documents}

    def close(self) -> None:
        for stream in (self._data, self._index, self._ranks):
            stream.close()

    def shards(self) -> list[dict[str, Any]]:
        """The manifest's entries of what was written, after `close`."""
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
        """Append the documents of the only shard to another writer, lowest rank first."""
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
        self._data = self._cut("bin", self._tokens * self._dtype.itemsize)
        self._index = self._cut("idx", self._documents * item)
        self._ranks = self._cut("rank", self._documents * item)

    def _cut(self, suffix: str, size_bytes: int) -> IO[bytes]:
        """A file opened for appending after its first bytes; later ones were not known to be whole."""
        path = self._path(self._shard, suffix)
        if size_bytes and (not path.exists() or path.stat().st_size < size_bytes):
            raise Incomplete(f"{path} is not what it was when it was last saved")
        stream = path.open("r+b" if path.exists() else "w+b")
        stream.truncate(size_bytes)
        stream.seek(size_bytes)
        return stream

    def _path(self, number: int, suffix: str) -> Path:
        return self._folder / f"{self._name}-{number:05d}.{suffix}"
