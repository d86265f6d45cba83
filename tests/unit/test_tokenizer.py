"""Tokenizers are lossless and count the bytes that tokens stand for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from slm.data.tokenizer import ByteTokenizer, Tokenizer, build_tokenizer, load_tokenizer
from slm.errors import DataError
from slm.schema import TokenizerConfig

TEXTS = ["plain words.\n", "tab\there", "héllo “quoted” €", "\x00\xff"[:1] + "é" * 5, ""]
CORPUS = ["the cat sat on the mat and the dog sat on the log " * 20, "and the rest, too, is text"]


@pytest.fixture(params=["ascii", "byte", "bpe"])
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> Tokenizer:
    size = 280 if request.param == "bpe" else None
    config = TokenizerConfig(kind=request.param, vocab_size=size)
    return build_tokenizer(config, iter(CORPUS), tmp_path)


def test_round_trip_and_bytes(tokenizer: Tokenizer) -> None:
    for text, ids in zip(TEXTS, tokenizer.encode_batch(TEXTS), strict=True):
        assert tokenizer.decode(ids) == text
        assert tokenizer.count_bytes(ids) == len(text.encode())
        with_separator = np.concatenate([[tokenizer.eot_id], ids]).astype(np.uint16)
        assert tokenizer.count_bytes(with_separator) == len(text.encode())
        assert len(ids) == 0 or ids.max() < tokenizer.eot_id


def test_a_saved_tokenizer_is_the_same(tokenizer: Tokenizer, tmp_path: Path) -> None:
    loaded = load_tokenizer(tmp_path)
    assert (loaded.vocab_size, loaded.eot_id) == (tokenizer.vocab_size, tokenizer.vocab_size - 1)
    for a, b in zip(loaded.encode_batch(TEXTS), tokenizer.encode_batch(TEXTS), strict=True):
        assert np.array_equal(a, b)


def test_sizes() -> None:
    assert ByteTokenizer("byte").vocab_size == 257
    assert ByteTokenizer("ascii").vocab_size == 97 + 1 + 1


def test_end_of_text_spelled_in_a_document_is_text(tokenizer: Tokenizer) -> None:
    (ids,) = tokenizer.encode_batch(["a <|endoftext|> b"])
    assert tokenizer.eot_id not in ids
    assert tokenizer.decode(ids) == "a <|endoftext|> b"


def test_a_vocabulary_that_the_text_cannot_fill_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"vocab_size=5000.*supports only"):
        build_tokenizer(TokenizerConfig(kind="bpe", vocab_size=5000), iter(["tiny"]), tmp_path)
