"""Tokenizers are lossless and count the bytes that tokens stand for."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import slm.data.tokenizers.tokenizer
from slm.config.schema import Config, TokenizerConfig
from slm.data.tokenizers.hf_files import known_file, open_library, train_bpe
from slm.data.tokenizers.tokenizer import (
    ByteTokenizer,
    LibraryTokenizer,
    Tokenizer,
    build_tokenizer,
    load_tokenizer,
)
from slm.data.tokens.prepare import prepare
from slm.data.tokens.summary import described_data
from slm.errors import DataError
from tests.conftest import ROOT

TEST_DATA = Path(os.environ.get("SLM_TEST_DATA", ROOT.parent / "shared" / "data"))

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


def test_documents_come_back_from_a_stream(tokenizer: Tokenizer) -> None:
    parts = [[tokenizer.eot_id, *ids] for ids in tokenizer.encode_batch(TEXTS)]
    stream = np.array([index for part in parts for index in part], dtype=np.uint16)
    assert tokenizer.decode_documents(stream) == [text.encode() for text in TEXTS]


def test_a_long_text_encodes_the_same_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = " ".join(CORPUS * 30) + "\n\n  Punctuation!? 3.14 don't   stop;héllo  " * 40
    ours = build_tokenizer(TokenizerConfig(kind="bpe", vocab_size=280), iter(CORPUS), tmp_path)
    (whole,) = ours.encode_batch([text])
    for characters in (1, 7, 100, 1000):
        monkeypatch.setattr(slm.data.tokenizers.tokenizer, "PIECE_CHARACTERS", characters)
        (pieces,) = ours.encode_batch([text])
        assert np.array_equal(pieces, whole)


def gpt2_files(folder: Path) -> Path:
    """Our own small BPE as the two files of GPT-2's format."""
    library = train_bpe(CORPUS, 280)
    library.model.save(str(folder))
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    vocabulary["<|endoftext|>"] = len(vocabulary)
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    return folder


def llama_file(folder: Path) -> Path:
    """A tokenizer as Llama's: words marked with an underscore, other bytes as tokens of their own."""
    from tokenizers import Tokenizer as LibraryBpe
    from tokenizers import decoders, models, normalizers

    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "\u2581",
        *"abcdefgh",
    ]
    vocabulary = {piece: index for index, piece in enumerate([*pieces, "ab", "\u2581ab"])}
    merges = [("a", "b"), ("\u2581", "ab")]
    library = LibraryBpe(
        models.BPE(
            vocab=vocabulary, merges=merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True
        )
    )
    library.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    library.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )  # fmt: skip
    library.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize("files", [gpt2_files, llama_file])
def test_tokenizers_of_others(files: Callable[[Path], Path], tmp_path: Path) -> None:
    folder = files(tmp_path)
    config = TokenizerConfig(kind="file", path=str(folder))
    saved = tmp_path / "saved"
    saved.mkdir()
    ours = build_tokenizer(config, iter([]), saved)
    assert isinstance(ours, LibraryTokenizer)
    texts = ["ab cd ab", "héllo — ab", " ab"]
    for tokenizer in (ours, load_tokenizer(saved)):
        parts = tokenizer.encode_batch(texts)
        stream = np.concatenate([[tokenizer.eot_id, *ids] for ids in parts])
        assert [tokenizer.decode(ids) for ids in parts] == texts
        assert tokenizer.count_bytes(stream) == sum(len(text.encode()) for text in texts)
        assert tokenizer.decode_documents(stream) == [text.encode() for text in texts]
        assert tokenizer.eot_id == tokenizer._library.token_to_id(ours.end_of_text)  # type: ignore[attr-defined]


def test_a_vocabulary_beyond_sixteen_bits_takes_thirty_two(
    tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    from tokenizers import AddedToken

    library = train_bpe(CORPUS, 280)
    library.add_special_tokens([AddedToken(f"<extra_{n}>", special=True) for n in range(70_000)])
    library.save(str(tmp_path / "tokenizer.json"))
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text(CORPUS[0] + str(number))
    data = prepare(
        tiny_config(
            cache_dir=str(tmp_path / "cache"),
            data={"source": "text_files", "files": [f"{tmp_path}/*.txt"]},
            tokenizer={"kind": "file", "path": str(tmp_path)},
        )
    )
    (train,) = data.split("train")
    assert train.dtype == np.uint32 and data.manifest["vocab_size"] == 70_280
    assert data.tokenizer.decode_documents(train)[0].decode().startswith(CORPUS[0])


def test_a_tokenizer_that_loses_text_is_refused(
    tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    from tokenizers import normalizers

    library = train_bpe(CORPUS, 280)
    library.normalizer = normalizers.Replace("Text 2", "text 2")  # late, in one document of three
    library.save(str(tmp_path / "tokenizer.json"))
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text(f"Text {number}")
    config = tiny_config(
        cache_dir=str(tmp_path / "cache"),
        data={"source": "text_files", "files": [f"{tmp_path}/*.txt"]},
        tokenizer={"kind": "file", "path": str(tmp_path)},
    )
    with pytest.raises(
        DataError, match=r"do not hold the text \('Text 2' comes back as 'text 2'\)"
    ):
        prepare(config)


def test_padding_and_truncation_stay_out_of_the_tokens(tmp_path: Path) -> None:
    library = train_bpe(CORPUS, 280)
    library.enable_padding(length=500)
    library.enable_truncation(max_length=3)
    library.save(str(tmp_path / "tokenizer.json"))
    ours = build_tokenizer(TokenizerConfig(kind="file", path=str(tmp_path)), iter([]), tmp_path)
    (ids,) = ours.encode_batch([CORPUS[1]])
    assert np.array_equal(
        ids, LibraryTokenizer(train_bpe(CORPUS, 280)).encode_batch([CORPUS[1]])[0]
    )


def test_a_tokenizer_is_the_same_in_either_format(tmp_path: Path) -> None:
    pair = gpt2_files(tmp_path)
    (tmp_path / "saved").mkdir()
    open_library(pair).save(str(tmp_path / "saved" / "tokenizer.json"))
    either = [TokenizerConfig(kind="file", path=str(p)) for p in (pair, tmp_path / "saved")]
    assert known_file(either[0]) == known_file(either[1])


def test_files_that_are_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no tokenizer"):
        open_library(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="not a tokenizer of the library"):
        open_library(tmp_path)
    with pytest.raises(
        DataError, match=r"end_of_text=<eot>: the vocabulary has no such token.*<\|endo"
    ):
        LibraryTokenizer(train_bpe(CORPUS, 280), "<eot>")


@pytest.mark.skipif(not (TEST_DATA / "gpt2_bpe").is_dir(), reason="no folder of test data")
def test_gpt2_counts_wikitext_as_published(
    tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    """The usual token counts of WikiText-2 with GPT-2's vocabulary, each file one document."""
    data = prepare(
        tiny_config(
            cache_dir=str(tmp_path / "cache"),
            data={
                "source": "text_files", "files": [str(TEST_DATA / "wikitext-2" / "test.txt")],
                "val_files": [str(TEST_DATA / "wikitext-2" / "valid.txt")],
            },
            tokenizer={"kind": "file", "path": str(TEST_DATA / "gpt2_bpe")},
        )
    )  # fmt: skip
    splits = described_data(data)["splits"]
    assert (splits["val"]["text_tokens"], splits["train"]["text_tokens"]) == (258_659, 295_877)
    assert (splits["val"]["bytes"], splits["train"]["bytes"]) == (1_121_681, 1_256_449)
