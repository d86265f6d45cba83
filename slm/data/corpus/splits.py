"""The documents of a corpus that are kept, each once, and which of them are held out."""

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
MAX_EXACT_DOCUMENTS = 100_000  # beyond, a share of the ranks is a share of the documents
SQLITE_CACHE_KIB = 65_536


@dataclass(frozen=True)
class Kept:
    """A document that goes into the shards of a split."""

    split: Split
    text: str
    text_bytes: int
    rank: int
    """Where it comes in validation, and whether it does: a hash of its id."""


@dataclass(frozen=True)
class Census:
    """What a first pass over a corpus found; of the hub's, which is not read twice, nothing."""

    cuts: dict[str, int]
    """Highest rank that is held out, by source."""
    documents: int | None = None
    text_bytes: int | None = None
    distinct: dict[str, int] = field(default_factory=dict)
    """Documents with text of their own in each part, counted among the first ones."""


def rank_of(document: Document) -> int:
    """A hash of the id as an integer below 2^64, the same whatever else is in the corpus."""
    digest = hashlib.sha256(f"{document.source}/{document.id}".encode()).digest()
    return int.from_bytes(digest[:8], "big")


def count(parts: Parts, val_fraction: float, *, to_the_end: bool = True) -> Census:
    """Read everything once, and find the ranks that hold out `val_fraction` of each source.

    In a small corpus this share is exact, and at least one document. Unless `to_the_end`, a large
    one is not counted.

    Raises:
        DataError: for the first row that cannot be used.
    """
    documents = text_bytes = 0
    ranks: dict[str, list[int]] = defaultdict(list)
    seen: set[bytes] = set()
    distinct = dict.fromkeys(parts, 0)
    for part, open_part in parts.items():
        for document in open_part():
            documents += 1
            if documents > MAX_EXACT_DOCUMENTS and not to_the_end:
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
    for source, found in ranks.items():
        share = math.ceil(val_fraction * len(found))
        exact = sorted(found)[share - 1]
        is_small = documents <= MAX_EXACT_DOCUMENTS
        cuts[source] = exact if is_small else expected_cut(val_fraction)
    return Census(cuts, documents, text_bytes, distinct)


def expected_cut(val_fraction: float) -> int:
    """The rank below which a share of a large corpus lies."""
    return int(val_fraction * RANK_LIMIT)


class Seen:
    """Hashes of the texts met so far, on disk, so that memory does not grow with the corpus.

    What was added after the last `commit` is forgotten if the process dies.
    """

    def __init__(self, path: Path, *, documents: int = 0):
        """`documents`: how many of the corpus are known to be done; later ones are forgotten."""
        self._path = path
        # The trainer of a bpe pulls its texts from a thread of its own; there is never more than one user.
        self._database = sqlite3.connect(path, check_same_thread=False)
        self._database.execute("PRAGMA synchronous = OFF")  # after a power cut a count finds out
        self._database.execute(f"PRAGMA cache_size = -{SQLITE_CACHE_KIB}")
        self._database.execute(
            "CREATE TABLE IF NOT EXISTS seen (hash BLOB PRIMARY KEY, document INTEGER) WITHOUT ROWID"
        )
        self._database.execute("DELETE FROM seen WHERE document > ?", (documents,))
        self._database.commit()

    def __len__(self) -> int:
        return int(self._database.execute("SELECT COUNT(*) FROM seen").fetchone()[0])

    def add(self, text: bytes, document: int) -> bool:
        """Whether the text is new."""
        row = (hashlib.sha256(text).digest()[:16], document)
        return self._database.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", row).rowcount == 1

    def commit(self) -> None:
        self._database.commit()

    def close(self) -> None:
        self._database.close()

    def discard(self) -> None:
        self.close()
        for path in self._path.parent.glob(f"{self._path.name}*"):
            path.unlink()


class KeptDocuments:
    """The documents of a corpus in order, without empty and repeated ones, each with its split."""

    def __init__(
        self,
        parts: Parts,
        cuts: Mapping[str, int],
        seen: Seen | None,
        state: Mapping[str, Any] | None = None,
    ):
        """`seen` None keeps repeated documents. `state`: of another object, to go on after it."""
        self._parts = parts
        self._cuts = cuts
        self._seen = seen
        self._resumed = state
        self._part = next(iter(parts))
        self._stream: Stream | None = None
        self.read = 0 if state is None else state["read"]
        self.left_out: Counter[str] = Counter({} if state is None else state["left_out"])

    def __iter__(self) -> Iterator[Kept]:
        names = list(self._parts)
        first = 0 if self._resumed is None else names.index(self._resumed["part"])
        for name in names[first:]:
            self._part, self._stream = name, self._parts[name]()
            if self._resumed is not None and name == self._resumed["part"]:
                self._stream.restore(self._resumed["stream"])
            yield from self._kept_of(self._stream)

    def _kept_of(self, stream: Iterable[Document]) -> Iterator[Kept]:
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
                split = self._split_of(document, rank)
                yield Kept(split, document.text, len(encoded), rank)

    def _split_of(self, document: Document, rank: int) -> Split:
        if self._part != "all":
            return "val" if self._part == "val" else "train"
        return "val" if rank <= self._cuts[document.source] else "train"

    def state(self) -> dict[str, Any]:
        """JSON; `read` documents are behind it."""
        assert self._stream is not None, "iteration has begun"
        return {
            "part": self._part,
            "stream": self._stream.state(),
            "read": self.read,
            "left_out": dict(self.left_out),
        }


def batches(documents: Iterable[Kept], characters: int) -> Iterator[list[Kept]]:
    """Lists of documents of about this many characters together."""
    batch: list[Kept] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= characters:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
