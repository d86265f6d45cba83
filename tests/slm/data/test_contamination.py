"""The overlap of the splits equals a count over word tuples in plain Python."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import slm.data.tokens.contamination
from slm.config.schema import Config
from slm.data.tokens.contamination import WORDS, hash_ngrams
from slm.data.tokens.prepare import prepare


def plain_ngrams(documents: list[str]) -> list[tuple[str, ...]]:
    words = [re.findall(r"[0-9a-z\x80-\U0010ffff]+", text.lower()) for text in documents]
    return [tuple(w[i : i + WORDS]) for w in words for i in range(len(w) - WORDS + 1)]


def test_hashes_identify_the_word_ngrams() -> None:
    random = np.random.default_rng(1)
    vocabulary = ["a", "the", "Ox", "é", "3d", "x" * 40, "word"]
    documents = [
        " -,\n"[i % 4 : i % 4 + 1].join(random.choice(vocabulary, 5 + 13 * i)) + "!" * (i % 3)
        for i in range(12)
    ]
    plain, hashed = plain_ngrams(documents), hash_ngrams([text.encode() for text in documents])
    assert len(plain) == len(hashed) > 500
    assert len(set(plain)) == len(set(hashed.tolist()))
    hash_by_ngram: dict[tuple[str, ...], int] = {}
    for ngram, value in zip(plain, hashed.tolist(), strict=True):
        assert hash_by_ngram.setdefault(ngram, value) == value


@pytest.mark.parametrize("kind", ["ascii", "bpe", "byte"])
def test_share_equals_a_plain_count(
    tiny_config: Callable[..., Config], tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slm.data.tokens.contamination, "BLOCK_TOKENS", 3000)
    random = np.random.default_rng(2)
    words = [f"w{i}" for i in range(50)]
    train = [" ".join(random.choice(words, 200)) for _ in range(30)]
    val = [" ".join(random.choice(words, 60)) for _ in range(4)]
    val[1] += " " + train[17][40:400]
    for name, texts in (("train", train), ("val", val)):
        for number, text in enumerate(texts):
            (tmp_path / f"{name}-{number}.txt").write_text(text, encoding="utf-8")
    size = 280 if kind == "bpe" else None
    data = {
        "source": "text_files",
        "files": [f"{tmp_path}/train-*.txt"],
        "val_files": [f"{tmp_path}/val-*.txt"],
    }
    config = tiny_config(
        cache_dir=str(tmp_path / "cache"), data=data, tokenizer={"kind": kind, "vocab_size": size}
    )
    overlap = prepare(config).manifest["overlap"]
    train_ngrams, val_ngrams = set(plain_ngrams(train)), plain_ngrams(val)
    expected = sum(ngram in train_ngrams for ngram in val_ngrams) / len(val_ngrams)
    assert 0.1 < expected < 0.9
    assert overlap == {"words": 13, "ngrams": len(val_ngrams), "share": expected}


def test_word_of_a_million_letters_is_one_word() -> None:
    plain = [f"w{i}" for i in range(40)]
    long = [*plain[:20], "x" * 1_000_000, *plain[20:]]
    other = [*plain[:20], "x" * 999_999, *plain[20:]]
    texts = [" ".join(words).encode() for words in (plain, long, other)]
    sets = [set(hash_ngrams([text]).tolist()) for text in texts]
    assert len(sets[1] - sets[0]) == 13 and len(sets[1] & sets[2]) == len(sets[1]) - 13
