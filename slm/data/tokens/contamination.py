"""How much of the validation text is in the training text too: the share of its 13-grams of words.

Words are runs of letters, digits and bytes beyond ASCII, without case. They are hashed by a
polynomial modulo 2^64 and so are 13 of them in a row, in numpy over whole blocks of tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slm.data.shuffle import mix
from slm.data.tokens.shards import PreparedData

WORDS = 13  # as in GPT-3's check for contamination (2005.14165, appendix C)
BLOCK_TOKENS = 1 << 18
FILTER_BITS = 24
WORD_BYTES = 64
MAX_TOKENS = 1 << 26  # of validation; of more, a part of the 13-grams is looked at
BASE = np.uint64(0xD6E8FEB86659FD93)  # odd, so that it has an inverse modulo 2^64
Hashes = NDArray[np.uint64]


def validation_overlap(data: PreparedData) -> dict[str, Any]:
    """`ngrams` of the validation split, and the `share` of them that training holds too.

    A document of fewer than 13 words has none. `share` is None if no document has any. Of a very large
    validation split those n-grams count whose hashes are small, which are a random part of them.
    """
    part = min(1.0, MAX_TOKENS / data.manifest["splits"]["val"]["tokens"])
    limit = np.uint64(min(int(part * 2**64), 2**64 - 1))
    sampled = [ngrams[ngrams <= limit] for ngrams in _ngrams_of_split(data, "val")]
    val = np.concatenate([np.zeros(0, np.uint64), *sampled])
    distinct, counts = np.unique(val, return_counts=True)
    found = np.zeros(len(distinct), dtype=bool)
    is_possible = np.zeros(1 << FILTER_BITS, dtype=bool)
    is_possible[_filter_slot(distinct)] = True
    for ngrams in _ngrams_of_split(data, "train"):
        likely = ngrams[is_possible[_filter_slot(ngrams)]]
        place = np.searchsorted(distinct, likely)
        place = np.minimum(place, len(distinct) - 1)
        found[place[distinct[place] == likely]] = True
    share = float(counts[found].sum() / len(val)) if len(val) else None
    return {"words": WORDS, "ngrams": len(val), "share": share}


def _filter_slot(ngrams: Hashes) -> Hashes:
    return ngrams >> np.uint64(64 - FILTER_BITS)


def _ngrams_of_split(data: PreparedData, split: str) -> Iterator[Hashes]:
    for ids, starts in data.shards(split):
        first = 0
        ends = np.append(starts[1:], len(ids)).astype(np.int64)
        while first < len(starts):
            begin = int(starts[first])
            last = max(first + 1, int(np.searchsorted(ends, begin + BLOCK_TOKENS, side="right")))
            yield ngrams_of(data.tokenizer.decode_documents(ids[begin : ends[last - 1]]))
            first = last


def ngrams_of(documents: list[bytes]) -> Hashes:
    """Hashes of all 13-grams of words within each document, in order."""
    is_word = np.zeros(256, dtype=bool)
    is_word[[*b"0123456789abcdefghijklmnopqrstuvwxyz", *range(128, 256)]] = True
    text = np.frombuffer(b"\n".join(documents).lower() + b"\n", dtype=np.uint8)
    inside = is_word[text]
    edges = np.flatnonzero(np.diff(inside, prepend=False))
    starts, ends = edges[::2], edges[1::2]
    hashes = _word_hashes(text, starts, ends)
    if len(hashes) < WORDS:
        return np.zeros(0, dtype=np.uint64)
    windows = len(hashes) - WORDS + 1
    total = np.zeros(windows, dtype=np.uint64)
    for offset in range(WORDS):
        total = total * BASE + hashes[offset : offset + windows]
    boundaries = np.cumsum([len(document) + 1 for document in documents])
    document_of = np.searchsorted(boundaries, starts, side="right")
    within = document_of[:windows] == document_of[WORDS - 1 :]
    return mix(total[within])


def _word_hashes(text: NDArray[np.uint8], starts: NDArray[np.int64], ends: Any) -> Hashes:
    """A hash of each word: of its length and of its first bytes, so that none costs more than others."""
    hashes = (ends - starts).astype(np.uint64)
    alive = np.arange(len(starts))
    for place in range(WORD_BYTES):
        alive = alive[starts[alive] + place < ends[alive]]
        if not len(alive):
            break
        hashes[alive] = hashes[alive] * BASE + text[starts[alive] + place]
    return mix(hashes)
