"""Filtering of a corpus (no empty or repeated documents) and its division into train and val."""

from __future__ import annotations

import hashlib
import math
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from slm.data.corpus.documents import Document, Stream

Split = Literal["train", "val"]
Parts = Mapping[str, Callable[[], Stream]]
RANK_LIMIT = 1 << 64
MAX_EXACT_DOCUMENTS = 100_000  # in larger corpora the held-out share is approximate
SQLITE_CACHE_KIB = 65_536


@dataclass(frozen=True)
class KeptDocument:
    """Document that is written to the shards of a split."""

    split: Split
    id: str
    text: str
    text_bytes: int
    rank: int
    """Hash of the document's id: decides its split and its position in validation."""


@dataclass(frozen=True)
class Census:
    """Counts of a first pass over a corpus; a hub dataset is not read twice and has only cuts."""

    cuts: dict[str, int]
    """Highest rank that is held out, by source."""
    documents: int | None = None
    """None if not counted."""
    text_bytes: int | None = None
    """UTF-8 bytes; None if not counted."""
    distinct: dict[str, int] = field(default_factory=dict)
    """Non-empty distinct documents by part, among the first MAX_EXACT_DOCUMENTS documents."""


def rank_of(document: Document) -> int:
    """Return a hash of the document's id as an integer below 2^64."""
    digest = hashlib.sha256(f"{document.source}/{document.id}".encode()).digest()
    return int.from_bytes(digest[:8], "big")


def count_documents(parts: Parts, val_fraction: float, *, count_all: bool = True) -> Census:
    """Read the corpus once and find the cuts that hold out `val_fraction` of each source.

    Up to MAX_EXACT_DOCUMENTS documents the share is exact, and at least one document. With
    `count_all=False`, reading stops there and the counts of documents and bytes are None.

    Raises:
        DataError: for the first file or row that cannot be used.
    """
    documents = text_bytes = 0
    ranks: dict[str, list[int]] = defaultdict(list)
    seen: set[bytes] = set()
    distinct = dict.fromkeys(parts, 0)
    for part, open_part in parts.items():
        for document in open_part():
            documents += 1
            if documents > MAX_EXACT_DOCUMENTS and not count_all:
                cuts = dict.fromkeys(ranks, expected_cut(val_fraction))
                return Census(cuts, distinct=distinct)
            encoded = (document.text or "").encode()
            text_bytes += len(encoded)
            if documents <= MAX_EXACT_DOCUMENTS and encoded.strip():
                digest = hashlib.sha256(encoded).digest()
                if digest not in seen:
                    seen.add(digest)
                    distinct[part] += 1
                    ranks[document.source].append(rank_of(document))
    cuts = {}
    for source, source_ranks in ranks.items():
        held_out = math.ceil(val_fraction * len(source_ranks))
        exact = sorted(source_ranks)[held_out - 1]
        is_small = documents <= MAX_EXACT_DOCUMENTS
        cuts[source] = exact if is_small else expected_cut(val_fraction)
    return Census(cuts, documents, text_bytes, distinct)


def expected_cut(val_fraction: float) -> int:
    """Return the cut that holds out `val_fraction` of the documents on average."""
    return int(val_fraction * RANK_LIMIT)


class SeenTexts:
    """Set of hashes of the texts read so far, in an SQLite file so that memory use stays constant.

    Entries added after the last `commit` are lost if the process is killed.
    """

    def __init__(self, path: Path, *, documents: int = 0):
        """Open or create the file and delete the entries that come after the first `documents`."""
        self._path = path
        # BPE training reads its texts from another thread; only one thread uses the set at a time.
        self._database = sqlite3.connect(path, check_same_thread=False)
        # A power failure can lose entries; a resumed preparation detects this by their number.
        self._database.execute("PRAGMA synchronous = OFF")
        self._database.execute(f"PRAGMA cache_size = -{SQLITE_CACHE_KIB}")
        self._database.execute(
            "CREATE TABLE IF NOT EXISTS seen (hash BLOB PRIMARY KEY, document INTEGER) WITHOUT ROWID"
        )
        self._database.execute("DELETE FROM seen WHERE document > ?", (documents,))
        self._database.commit()

    def __len__(self) -> int:
        return int(self._database.execute("SELECT COUNT(*) FROM seen").fetchone()[0])

    def add(self, text: bytes, document: int) -> bool:
        """Add a text and return whether it is new. `document` is its 1-based position in the corpus."""
        row = (hashlib.sha256(text).digest()[:16], document)
        return self._database.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", row).rowcount == 1

    def commit(self) -> None:
        self._database.commit()

    def close(self) -> None:
        self._database.close()

    def discard(self) -> None:
        """Close the set and delete its files."""
        self.close()
        for path in self._path.parent.glob(f"{self._path.name}*"):
            path.unlink()


class CorpusReader:
    """Reads a corpus in order, leaves out empty and repeated documents, assigns the rest to splits."""

    def __init__(
        self,
        parts: Parts,
        cuts: Mapping[str, int],
        seen: SeenTexts | None,
        state: Mapping[str, Any] | None = None,
    ):
        """Read from the beginning, or after the `state()` of an earlier reader.

        With `seen=None`, repeated documents are kept.
        """
        self._parts = parts
        self._cuts = cuts
        self._seen = seen
        self._resume_state = state
        self._part = next(iter(parts))
        self._stream: Stream | None = None
        self.read = 0 if state is None else state["read"]
        self.left_out: Counter[str] = Counter({} if state is None else state["left_out"])

    def __iter__(self) -> Iterator[KeptDocument]:
        names = list(self._parts)
        first = 0 if self._resume_state is None else names.index(self._resume_state["part"])
        for name in names[first:]:
            self._part, self._stream = name, self._parts[name]()
            if self._resume_state is not None and name == self._resume_state["part"]:
                self._stream.restore(self._resume_state["stream"])
            yield from self._filter(self._stream)

    def _filter(self, stream: Iterable[Document]) -> Iterator[KeptDocument]:
        for document in stream:
            self.read += 1
            if document.text is None:
                self.left_out["bad rows"] += 1
                continue
            encoded = document.text.encode()
            if not encoded.strip():
                self.left_out["empty documents"] += 1
            elif self._seen is not None and not self._seen.add(encoded, self.read):
                self.left_out["duplicates"] += 1
            else:
                rank = rank_of(document)
                split = self._choose_split(document, rank)
                yield KeptDocument(split, document.id, document.text, len(encoded), rank)

    def _choose_split(self, document: Document, rank: int) -> Split:
        if self._part != "all":
            return "val" if self._part == "val" else "train"
        return "val" if rank <= self._cuts[document.source] else "train"

    def state(self) -> dict[str, Any]:
        """Return the current position and counts as a JSON value, from which a reader can continue."""
        assert self._stream is not None, "iteration has not begun"
        return {
            "part": self._part,
            "stream": self._stream.state(),
            "read": self.read,
            "left_out": dict(self.left_out),
        }


def batch_documents(
    documents: Iterable[KeptDocument], characters: int
) -> Iterator[list[KeptDocument]]:
    """Group documents into lists of at least this many characters (the last may be shorter)."""
    batch: list[KeptDocument] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= characters:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
