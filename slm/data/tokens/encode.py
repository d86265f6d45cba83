"""From kept documents to the shards of both splits: in parallel, in order, and able to go on."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from slm.data.corpus.splits import Kept, KeptDocuments, Seen, batches
from slm.data.tokenizers.tokenizer import Ids, Tokenizer
from slm.data.tokens.shards import SplitWriter, token_dtype
from slm.errors import DataError
from slm.files import read_json, write_json

PROGRESS = "progress.json"
SPLITS = ("train", "val")
BATCH_CHARACTERS = 1 << 19
SAVE_SECONDS = 1.0
NEVER_FULL = 1 << 62  # tokens
SHOWN_CHARACTERS = 20


@dataclass
class Done:
    """What is whole on disk."""

    seconds: float = 0.0
    complete: bool = False
    """Nothing is left to encode."""
    state: dict[str, Any] | None = None
    """Of the documents."""
    points: dict[str, dict[str, int]] = field(default_factory=dict)
    """Of the writers."""
    counts: dict[str, dict[str, int]] = field(
        default_factory=lambda: {s: {"documents": 0, "tokens": 0, "bytes": 0} for s in SPLITS}
    )

    @classmethod
    def saved_at(cls, path: Path) -> Done:
        return cls(**read_json(path)) if path.exists() else cls()


class Encoder:
    """Writes documents to train shards, and to `unsorted` those of validation with their ranks.

    After `max_train_tokens` it `stops`, or reads on for validation alone, which is then the same
    whatever the limit.
    """

    def __init__(
        self,
        folder: Path,
        tokenizer: Tokenizer,
        *,
        workers: int,
        max_train_tokens: int | None,
        stops: bool,
        show: Callable[[Done], None],
    ):
        self.folder = folder
        self._tokenizer = tokenizer
        self._workers = workers
        self._limit = max_train_tokens
        self._stops = stops
        self._show = show
        self._start_seconds = time.perf_counter()
        self._saved = folder / PROGRESS
        self.done = Done.saved_at(self._saved)
        self._seconds_before = self.done.seconds
        dtype, points = token_dtype(tokenizer.vocab_size), self.done.points
        train = SplitWriter(folder, "train", dtype, point=points.get("train"))
        val = SplitWriter(
            folder, "unsorted", dtype, shard_tokens=NEVER_FULL, point=points.get("val")
        )
        self.writers = {"train": train, "val": val}

    def run(self, documents: KeptDocuments, seen: Seen) -> None:
        """Encode what is left, until the corpus ends or holds enough.

        Raises:
            DataError: if the tokenizer does not give the text back.
        """
        last_saved = time.perf_counter()
        for batch, state, encoded in self._encoded(documents):
            self._write(batch, encoded)
            self.done.state = state
            self._show(self.done)
            if self._is_enough() and self._stops:
                break
            if time.perf_counter() - last_saved > SAVE_SECONDS:
                self._save(seen)
                last_saved = time.perf_counter()
        else:
            self.done.state = documents.state()  # what was left out after the last batch, too
        self.done.complete = True
        self._save(seen)

    def close(self) -> None:
        for writer in self.writers.values():
            writer.close()

    def _encoded(
        self, documents: KeptDocuments
    ) -> Iterator[tuple[list[Kept], dict[str, Any], list[Ids]]]:
        """Batches in order, with the state of the documents after each; threads encode ahead."""
        waiting: deque[tuple[list[Kept], dict[str, Any], Future[list[Ids]]]] = deque()
        with ThreadPoolExecutor(self._workers) as pool:
            try:
                for read in batches(documents, BATCH_CHARACTERS):
                    batch = [d for d in read if d.split == "val" or not self._is_enough()]
                    texts = [document.text for document in batch]
                    encoding = pool.submit(encode_checked, self._tokenizer, texts)
                    waiting.append((batch, documents.state(), encoding))
                    if len(waiting) > 2 * self._workers:
                        ready, state, encoding = waiting.popleft()
                        yield ready, state, encoding.result()
                while waiting:
                    ready, state, encoding = waiting.popleft()
                    yield ready, state, encoding.result()
            finally:
                pool.shutdown(cancel_futures=True)

    def _write(self, batch: list[Kept], encoded: list[Ids]) -> None:
        separator = np.array([self._tokenizer.eot_id])
        for document, ids in zip(batch, encoded, strict=True):
            if self._is_enough() and (document.split == "train" or self._stops):
                continue
            self.writers[document.split].append(np.concatenate([separator, ids]), document.rank)
            counts = self.done.counts[document.split]
            counts["documents"] += 1
            counts["tokens"] += 1 + len(ids)
            counts["bytes"] += document.text_bytes

    def _is_enough(self) -> bool:
        return self._limit is not None and self.done.counts["train"]["tokens"] >= self._limit

    def _save(self, seen: Seen) -> None:
        seen.commit()
        self.done.points = {split: writer.point() for split, writer in self.writers.items()}
        self.done.seconds = self._seconds_before + time.perf_counter() - self._start_seconds
        write_json(self._saved, asdict(self.done))


def encode_checked(tokenizer: Tokenizer, texts: list[str]) -> list[Ids]:
    """The tokens of each text, once they are known to hold it: else bits per byte mean nothing.

    Raises:
        DataError: showing what comes back other than it was.
    """
    encoded = tokenizer.encode_batch(texts)
    for text, ids in zip(texts, encoded, strict=True):
        if not tokenizer.holds(text, ids):
            back = tokenizer.decode(ids)
            pairs = enumerate(zip(text, back, strict=False))
            at = next((i for i, (a, b) in pairs if a != b), min(len(text), len(back)))
            there, here = text[at : at + SHOWN_CHARACTERS], back[at : at + SHOWN_CHARACTERS]
            raise DataError(
                f"tokenizer: its tokens do not hold the text ({there!r} comes back as {here!r}), so bits "
                "per byte would be wrong; use one that is lossless"
            )
    return encoded
