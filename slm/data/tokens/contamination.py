"""Overlap of validation and training text: share of validation word 13-grams that occur in training.

Words are case-insensitive runs of letters, digits and non-ASCII bytes. Words, and sequences of 13 words,
are hashed with a polynomial modulo 2^64, vectorised over blocks of tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slm.data.shuffle import mix
from slm.data.tokens.shards import PreparedData

WORDS = 13  # as in the contamination analysis of GPT-3 (arXiv 2005.14165, appendix C)
BLOCK_TOKENS = 1 << 18
FILTER_BITS = 24
WORD_BYTES = 64  # later bytes of a word are not hashed
MAX_TOKENS = 1 << 26  # 13-grams of larger validation splits are sampled
BASE = np.uint64(0xD6E8FEB86659FD93)  # odd, hence invertible modulo 2^64
Hashes = NDArray[np.uint64]


def validation_overlap(data: PreparedData) -> dict[str, Any]:
    """Count the 13-grams of the validation split and the share of them that occur in training.

    13-grams do not cross documents. Above MAX_TOKENS validation tokens, only the 13-grams with the
    smallest hashes are counted, which are a random sample.

    Returns:
        `words` (13), `ngrams` (number of 13-grams counted) and `share` (None if there are none).
    """
    sampled_share = min(1.0, MAX_TOKENS / data.manifest["splits"]["val"]["tokens"])
    limit = np.uint64(min(int(sampled_share * 2**64), 2**64 - 1))
    sampled = [ngrams[ngrams <= limit] for ngrams in _hash_split(data, "val")]
    val = np.concatenate([np.zeros(0, np.uint64), *sampled])
    distinct, counts = np.unique(val, return_counts=True)
    found = np.zeros(len(distinct), dtype=bool)
    is_possible = np.zeros(1 << FILTER_BITS, dtype=bool)
    is_possible[_filter_slot(distinct)] = True
    for ngrams in _hash_split(data, "train"):
        candidates = ngrams[is_possible[_filter_slot(ngrams)]]
        index = np.searchsorted(distinct, candidates)
        index = np.minimum(index, len(distinct) - 1)
        found[index[distinct[index] == candidates]] = True
    share = float(counts[found].sum() / len(val)) if len(val) else None
    return {"words": WORDS, "ngrams": len(val), "share": share}


def _filter_slot(ngrams: Hashes) -> Hashes:
    """Return the highest bits of the hashes: indices into a table that excludes most n-grams."""
    return ngrams >> np.uint64(64 - FILTER_BITS)


def _hash_split(data: PreparedData, split: str) -> Iterator[Hashes]:
    """Yield the 13-gram hashes of a split, for about BLOCK_TOKENS tokens at a time."""
    for ids, starts in data.shards(split):
        first = 0
        ends = np.append(starts[1:], len(ids)).astype(np.int64)
        while first < len(starts):
            begin = int(starts[first])
            last = max(first + 1, int(np.searchsorted(ends, begin + BLOCK_TOKENS, side="right")))
            yield hash_ngrams(data.tokenizer.decode_documents(ids[begin : ends[last - 1]]))
            first = last


def hash_ngrams(documents: list[bytes]) -> Hashes:
    """Return the hashes of all word 13-grams within each document, in order."""
    is_word = np.zeros(256, dtype=bool)
    is_word[[*b"0123456789abcdefghijklmnopqrstuvwxyz", *range(128, 256)]] = True
    text = np.frombuffer(b"\n".join(documents).lower() + b"\n", dtype=np.uint8)
    inside = is_word[text]
    edges = np.flatnonzero(np.diff(inside, prepend=False))
    starts, ends = edges[::2], edges[1::2]
    hashes = _hash_words(text, starts, ends)
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


def _hash_words(text: NDArray[np.uint8], starts: NDArray[np.int64], ends: Any) -> Hashes:
    """Return a hash of each word's length and first WORD_BYTES bytes."""
    hashes = (ends - starts).astype(np.uint64)
    active = np.arange(len(starts))
    for offset in range(WORD_BYTES):
        active = active[starts[active] + offset < ends[active]]
        if not len(active):
            break
        hashes[active] = hashes[active] * BASE + text[starts[active] + offset]
    return mix(hashes)
