"""How much of the validation text is in the training text too: the share of its 13-grams of words.

Words are runs of letters, digits and bytes beyond ASCII, without case. They are hashed by a
polynomial modulo 2^64 and so are 13 of them in a row, in numpy over whole blocks of tokens; memory is
a few times that of the validation text.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slm.data.order import mix
from slm.data.shards import PreparedData

WORDS = 13  # as in GPT-3's check for contamination (2005.14165, appendix C)
BLOCK_TOKENS = 1 << 22
FILTER_BITS = 24
BASE = np.uint64(0xD6E8FEB86659FD93)  # odd, so that it has an inverse modulo 2^64
Hashes = NDArray[np.uint64]


def validation_overlap(data: PreparedData) -> dict[str, Any]:
    """`ngrams` of the validation split, and the `share` of them that training holds too.

    A document of fewer than 13 words has none. `share` is None if no document has any.
    """
    val = np.concatenate([np.zeros(0, np.uint64), *_ngrams_of_split(data, "val")])
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
    for ids, starts in zip(data.split(split), data.document_starts(split), strict=True):
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
    """sum of byte * BASE^(its place from the word's end), for each word."""
    longest = int((ends - starts).max(initial=0))
    hashes = np.zeros(len(starts), dtype=np.uint64)
    for place in range(longest):
        inside = starts + place < ends
        if place and not inside.all():
            alive = np.flatnonzero(inside)
            hashes[alive] = hashes[alive] * BASE + text[starts[alive] + place]
        else:
            hashes = hashes * BASE + text[starts + place]
    return mix(hashes)
