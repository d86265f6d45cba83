"""Encoding of documents into the shards of both splits: parallel, in order, and resumable."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from slm.data.corpus.splits import CorpusReader, KeptDocument, SeenTexts, batch_documents
from slm.data.tokenizers.tokenizer import Ids, Tokenizer
from slm.data.tokens.shards import SplitWriter, token_dtype
from slm.errors import DataError
from slm.files import read_object, write_json

PROGRESS = "progress.json"
SPLITS = ("train", "val")
BATCH_CHARACTERS = 1 << 19
SAVE_SECONDS = 1.0
UNLIMITED_TOKENS = 1 << 62
MAX_QUOTED_CHARACTERS = 20


@dataclass
class EncodingProgress:
    """Contents of progress.json: how much of the encoding is complete on disk."""

    seconds: float = 0.0
    """Time of the encoding, over all starts."""
    complete: bool = False
    """Whether all documents are encoded."""
    state: dict[str, Any] | None = None
    """State of the CorpusReader."""
    points: dict[str, dict[str, int]] = field(default_factory=dict)
    """Resume point of each SplitWriter."""
    counts: dict[str, dict[str, int]] = field(
        default_factory=lambda: {s: {"documents": 0, "tokens": 0, "bytes": 0} for s in SPLITS}
    )
    normalized: int = 0
    """Documents that were brought into the Unicode normal form of the tokenizer."""
    lossy: int = 0
    """Documents left out because the tokenizer does not keep their text."""

    @classmethod
    def load(cls, path: Path) -> EncodingProgress:
        """Load progress.json, or return zero progress if there is none."""
        if not path.exists():
            return cls()
        return cls(**read_object(path, f"delete {path.parent} and prepare the data again"))


@dataclass(frozen=True)
class Encoded:
    """Ids of a document; None if the tokenizer does not keep its text. `text_bytes` are those of its normal form."""

    ids: Ids | None
    text_bytes: int
    is_normalized: bool


class Encoder:
    """Encodes documents and writes them: training to `train` shards, validation to `unsorted`.

    After `max_train_tokens` training tokens it stops if `stop_at_limit`. Otherwise it continues with
    validation documents only, so that the validation split does not depend on the limit.
    """

    def __init__(
        self,
        folder: Path,
        tokenizer: Tokenizer,
        *,
        workers: int,
        max_train_tokens: int | None,
        stop_at_limit: bool,
        skip_lossy: bool,
        on_progress: Callable[[EncodingProgress], None],
    ):
        self.folder = folder
        self._tokenizer = tokenizer
        self._workers = workers
        self._limit = max_train_tokens
        self._stop_at_limit = stop_at_limit
        self._skip_lossy = skip_lossy
        self._on_progress = on_progress
        self._start_seconds = time.perf_counter()
        self._progress_file = folder / PROGRESS
        self.progress = EncodingProgress.load(self._progress_file)
        self._seconds_before = self.progress.seconds
        dtype, points = token_dtype(tokenizer.vocab_size), self.progress.points
        train = SplitWriter(folder, "train", dtype, resume_point=points.get("train"))
        val = SplitWriter(
            folder, "unsorted", dtype, shard_tokens=UNLIMITED_TOKENS, resume_point=points.get("val")
        )
        self.writers = {"train": train, "val": val}

    def run(self, documents: CorpusReader, seen: SeenTexts) -> None:
        """Encode the remaining documents, up to the end of the corpus or the token limit.

        Raises:
            DataError: if the tokenizer is not lossless on a document, unless such documents are skipped.
        """
        last_saved = time.perf_counter()
        for batch, state, encoded in self._encode_batches(documents):
            self._write(batch, encoded)
            self.progress.state = state
            self.progress.seconds = self._elapsed_seconds()
            self._on_progress(self.progress)
            if self._limit_reached() and self._stop_at_limit:
                break
            if time.perf_counter() - last_saved > SAVE_SECONDS:
                self._save(seen)
                last_saved = time.perf_counter()
        else:
            # This state also counts the documents left out after the last batch.
            self.progress.state = documents.state()
        self.progress.complete = True
        self._save(seen)

    def close(self) -> None:
        for writer in self.writers.values():
            writer.close()

    def _encode_batches(
        self, documents: CorpusReader
    ) -> Iterator[tuple[list[KeptDocument], dict[str, Any], list[Encoded]]]:
        """Yield (documents, state after them, ids) in order, while threads encode later batches."""
        pending: deque[tuple[list[KeptDocument], dict[str, Any], Future[list[Encoded]]]] = deque()
        with ThreadPoolExecutor(self._workers) as pool:
            try:
                for read in batch_documents(documents, BATCH_CHARACTERS):
                    batch = [d for d in read if d.split == "val" or not self._limit_reached()]
                    texts = [(document.id, document.text) for document in batch]
                    encoding = pool.submit(
                        encode_and_check, self._tokenizer, texts, skip_lossy=self._skip_lossy
                    )
                    pending.append((batch, documents.state(), encoding))
                    if len(pending) > 2 * self._workers:
                        ready, state, encoding = pending.popleft()
                        yield ready, state, encoding.result()
                while pending:
                    ready, state, encoding = pending.popleft()
                    yield ready, state, encoding.result()
            finally:
                pool.shutdown(cancel_futures=True)

    def _write(self, batch: list[KeptDocument], encoded: list[Encoded]) -> None:
        end_of_text = np.array([self._tokenizer.eot_id])
        for document, one in zip(batch, encoded, strict=True):
            if self._limit_reached() and (document.split == "train" or self._stop_at_limit):
                continue
            if one.ids is None:
                self.progress.lossy += 1
                continue
            ids = np.concatenate([end_of_text, one.ids])
            self.writers[document.split].append(ids, document.rank)
            self.progress.normalized += one.is_normalized
            counts = self.progress.counts[document.split]
            counts["documents"] += 1
            counts["tokens"] += len(ids)
            counts["bytes"] += one.text_bytes

    def _limit_reached(self) -> bool:
        return self._limit is not None and self.progress.counts["train"]["tokens"] >= self._limit

    def _elapsed_seconds(self) -> float:
        """Return the seconds of this encoding and of those that were interrupted."""
        return self._seconds_before + time.perf_counter() - self._start_seconds

    def _save(self, seen: SeenTexts) -> None:
        seen.commit()
        self.progress.points = {
            split: writer.save_resume_point() for split, writer in self.writers.items()
        }
        self.progress.seconds = self._elapsed_seconds()
        write_json(self._progress_file, asdict(self.progress))


def encode_and_check(
    tokenizer: Tokenizer, documents: Sequence[tuple[str, str]], *, skip_lossy: bool = False
) -> list[Encoded]:
    """Encode documents (id, text) and check that the ids decode to the same texts, in the tokenizer's normal form.

    Bits per byte would be wrong with a tokenizer that loses text.

    Raises:
        DataError: if a text does not round-trip, unless `skip_lossy`.
    """
    texts = [tokenizer.normal_form(text) for _, text in documents]
    found = []
    for (name, original), text, ids in zip(
        documents, texts, tokenizer.encode_batch(texts), strict=True
    ):
        loss = describe_loss(tokenizer, text, ids)
        if loss and not skip_lossy:
            raise DataError(
                f"document {name}: the tokenizer{_with_normalizer(tokenizer)} is not lossless: {loss}, so bits per byte "
                "would be wrong; use a lossless tokenizer, or leave such documents out with data.skip_bad_rows=true"
            )
        found.append(Encoded(None if loss else ids, len(text.encode()), text != original))
    return found


def _with_normalizer(tokenizer: Tokenizer) -> str:
    return "" if tokenizer.normalizer is None else f" (normalizer: {tokenizer.normalizer})"


def describe_loss(tokenizer: Tokenizer, text: str, ids: Ids) -> str | None:
    """Return the first difference between a text and its decoded ids, in ASCII, or None if they are equal."""
    if tokenizer.round_trips(text, ids):
        return None
    decoded = tokenizer.decode(ids)
    pairs = enumerate(zip(text, decoded, strict=False))
    start = next((i for i, (a, b) in pairs if a != b), min(len(text), len(decoded)))
    quoted = slice(start, start + MAX_QUOTED_CHARACTERS)
    return f"{text[quoted]!a} is decoded as {decoded[quoted]!a}"
