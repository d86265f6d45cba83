"""Tokenizers are lossless and count the bytes of text of their tokens."""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import slm.data.tokenizers.tokenizer
from slm.config.schema import Config, TokenizerConfig
from slm.data.tokenizers.hf_files import load_hf_tokenizer, read_tokenizer_file, train_bpe
from slm.data.tokenizers.tokenizer import (
    ByteTokenizer,
    HFTokenizer,
    Tokenizer,
    build_tokenizer,
    fixed_tokenizer,
    load_tokenizer,
)
from slm.data.tokens.prepare import prepare
from slm.data.tokens.summary import summarize_data
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


def test_texts_round_trip_and_bytes_are_counted(tokenizer: Tokenizer) -> None:
    for text, ids in zip(TEXTS, tokenizer.encode_batch(TEXTS), strict=True):
        assert tokenizer.decode(ids) == text
        assert tokenizer.count_bytes(ids) == len(text.encode())
        with_separator = np.concatenate([[tokenizer.eot_id], ids]).astype(np.uint16)
        assert tokenizer.count_bytes(with_separator) == len(text.encode())
        assert len(ids) == 0 or ids.max() < tokenizer.eot_id


def test_saved_tokenizer_encodes_the_same_ids(tokenizer: Tokenizer, tmp_path: Path) -> None:
    loaded = load_tokenizer(tmp_path)
    assert (loaded.vocab_size, loaded.eot_id) == (tokenizer.vocab_size, tokenizer.vocab_size - 1)
    for a, b in zip(loaded.encode_batch(TEXTS), tokenizer.encode_batch(TEXTS), strict=True):
        assert np.array_equal(a, b)


def test_vocabulary_sizes_of_byte_tokenizers() -> None:
    assert ByteTokenizer("byte").vocab_size == 257
    assert ByteTokenizer("ascii").vocab_size == 97 + 1 + 1


def test_end_of_text_written_in_a_document_is_ordinary_text(tokenizer: Tokenizer) -> None:
    (ids,) = tokenizer.encode_batch(["a <|endoftext|> b"])
    assert tokenizer.eot_id not in ids
    assert tokenizer.decode(ids) == "a <|endoftext|> b"


def test_bpe_raises_if_the_text_is_too_small_for_the_vocabulary(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"vocab_size=5000.*supports only"):
        build_tokenizer(TokenizerConfig(kind="bpe", vocab_size=5000), iter(["tiny"]), tmp_path)


def test_documents_are_decoded_from_a_stream(tokenizer: Tokenizer) -> None:
    parts = [[tokenizer.eot_id, *ids] for ids in tokenizer.encode_batch(TEXTS)]
    stream = np.array([index for part in parts for index in part], dtype=np.uint16)
    assert tokenizer.decode_documents(stream) == [text.encode() for text in TEXTS]


def test_long_text_in_pieces_encodes_to_the_same_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = " ".join(CORPUS * 30) + "\n\n  Punctuation!? 3.14 don't   stop;héllo  " * 40
    bpe = build_tokenizer(TokenizerConfig(kind="bpe", vocab_size=280), iter(CORPUS), tmp_path)
    (whole,) = bpe.encode_batch([text])
    for characters in (1, 7, 100, 1000):
        monkeypatch.setattr(slm.data.tokenizers.tokenizer, "PIECE_CHARACTERS", characters)
        (pieces,) = bpe.encode_batch([text])
        assert np.array_equal(pieces, whole)


def write_gpt2_files(folder: Path) -> Path:
    """Write a small BPE as vocab.json and merges.txt, the format of GPT-2."""
    bpe = train_bpe(CORPUS, 280)
    bpe.model.save(str(folder))
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    vocabulary["<|endoftext|>"] = len(vocabulary)
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    return folder


def write_llama_file(folder: Path) -> Path:
    """Write a tokenizer.json in the style of Llama: "\u2581" before words, and byte fallback."""
    from tokenizers import Tokenizer as HFBpe
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
    bpe = HFBpe(
        models.BPE(
            vocab=vocabulary, merges=merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True
        )
    )
    bpe.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    bpe.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    bpe.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize("write_files", [write_gpt2_files, write_llama_file])
def test_existing_tokenizers_round_trip(
    write_files: Callable[[Path], Path], tmp_path: Path
) -> None:
    folder = write_files(tmp_path)
    config = TokenizerConfig(kind="file", path=str(folder))
    saved = tmp_path / "saved"
    saved.mkdir()
    built = build_tokenizer(config, iter([]), saved)
    assert isinstance(built, HFTokenizer)
    texts = ["ab cd ab", "héllo — ab", " ab"]
    for tokenizer in (built, load_tokenizer(saved)):
        parts = tokenizer.encode_batch(texts)
        stream = np.concatenate([[tokenizer.eot_id, *ids] for ids in parts])
        assert [tokenizer.decode(ids) for ids in parts] == texts
        assert tokenizer.count_bytes(stream) == sum(len(text.encode()) for text in texts)
        assert tokenizer.decode_documents(stream) == [text.encode() for text in texts]
        assert tokenizer.eot_id == tokenizer._hf_tokenizer.token_to_id(built.end_of_text)  # type: ignore[attr-defined]


def test_large_vocabulary_is_stored_as_uint32(
    tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    from tokenizers import AddedToken

    bpe = train_bpe(CORPUS, 280)
    bpe.add_special_tokens([AddedToken(f"<extra_{n}>", special=True) for n in range(70_000)])
    bpe.save(str(tmp_path / "tokenizer.json"))
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


def test_lossy_tokenizer_raises(tiny_config: Callable[..., Config], tmp_path: Path) -> None:
    from tokenizers import normalizers

    bpe = train_bpe(CORPUS, 280)
    bpe.normalizer = normalizers.Replace("Text 2", "text 2")  # changes one document of three
    bpe.save(str(tmp_path / "tokenizer.json"))
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text(f"Text {number}")
    config = tiny_config(
        cache_dir=str(tmp_path / "cache"),
        data={"source": "text_files", "files": [f"{tmp_path}/*.txt"]},
        tokenizer={"kind": "file", "path": str(tmp_path)},
    )
    with pytest.raises(
        DataError,
        match=r"document \w+/2.txt: the tokenizer \(normalizer: Replace\) is not lossless: 'Text 2' is decoded",
    ):
        prepare(config)
    skipping = replace(config, data=replace(config.data, skip_bad_rows=True))
    data = prepare(skipping)
    assert data.manifest["left_out"]["not kept by the tokenizer"] == 1
    assert sum(split["documents"] for split in data.manifest["splits"].values()) == 2


@pytest.mark.parametrize("form", ["NFC", "NFKC", "NFD"])
def test_text_is_brought_into_the_unicode_form_of_the_tokenizer(
    tiny_config: Callable[..., Config], tmp_path: Path, form: str
) -> None:
    """As for the tokenizers of Pythia, OLMo and Qwen2, with documents from the web."""
    from tokenizers import normalizers

    bpe = train_bpe(CORPUS, 280)
    bpe.normalizer = normalizers.Sequence([getattr(normalizers, form)()])
    bpe.save(str(tmp_path / "tokenizer.json"))
    texts = ["re\u0301sume\u0301 \ufb01ve", "r\u00e9sum\u00e9 fi", "plain text", "more of it"]
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.txt").write_text(text)
    data = prepare(
        tiny_config(
            cache_dir=str(tmp_path / "cache"),
            data={"source": "text_files", "files": [f"{tmp_path}/*.txt"], "val_fraction": 0.5},
            tokenizer={"kind": "file", "path": str(tmp_path)},
        )
    )
    normal = [unicodedata.normalize(form, text) for text in texts]  # type: ignore[arg-type]
    stream = np.concatenate([*data.split("train"), *data.split("val")])
    found = sorted(document.decode() for document in data.tokenizer.decode_documents(stream))
    assert found == sorted(normal)
    splits = data.manifest["splits"].values()
    assert sum(split["bytes"] for split in splits) == sum(len(text.encode()) for text in normal)
    changed = sum(a != b for a, b in zip(texts, normal, strict=True))
    assert data.manifest["normalized_documents"] == changed > 0


def test_padding_and_truncation_of_a_file_are_disabled(tmp_path: Path) -> None:
    bpe = train_bpe(CORPUS, 280)
    bpe.enable_padding(length=500)
    bpe.enable_truncation(max_length=3)
    bpe.save(str(tmp_path / "tokenizer.json"))
    built = build_tokenizer(TokenizerConfig(kind="file", path=str(tmp_path)), iter([]), tmp_path)
    (ids,) = built.encode_batch([CORPUS[1]])
    assert np.array_equal(ids, HFTokenizer(train_bpe(CORPUS, 280)).encode_batch([CORPUS[1]])[0])


def test_tokenizer_has_the_same_properties_in_either_format(tmp_path: Path) -> None:
    gpt2_folder = write_gpt2_files(tmp_path)
    json_folder = tmp_path / "saved"
    json_folder.mkdir()
    load_hf_tokenizer(gpt2_folder).save(str(json_folder / "tokenizer.json"))
    configs = [TokenizerConfig(kind="file", path=str(path)) for path in (gpt2_folder, json_folder)]
    assert read_tokenizer_file(configs[0]) == read_tokenizer_file(configs[1])


def test_missing_or_invalid_tokenizer_files_raise(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no tokenizer found"):
        load_hf_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="not a tokenizer of the library"):
        load_hf_tokenizer(tmp_path)
    with pytest.raises(
        DataError, match=r"end_of_text=<eot>: no such token in the vocabulary.*<\|endo"
    ):
        HFTokenizer(train_bpe(CORPUS, 280), "<eot>")


@pytest.mark.skipif(not (TEST_DATA / "gpt2_bpe").is_dir(), reason="no folder of test data")
def test_gpt2_token_counts_of_wikitext_equal_published_counts(
    tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    """Published token counts of WikiText-2 with GPT-2's vocabulary; each file is one document."""
    data = prepare(
        tiny_config(
            cache_dir=str(tmp_path / "cache"),
            data={
                "source": "text_files",
                "files": [str(TEST_DATA / "wikitext-2" / "test.txt")],
                "val_files": [str(TEST_DATA / "wikitext-2" / "valid.txt")],
            },
            tokenizer={"kind": "file", "path": str(TEST_DATA / "gpt2_bpe")},
        )
    )
    splits = summarize_data(data)["splits"]
    assert (splits["val"]["text_tokens"], splits["train"]["text_tokens"]) == (258_659, 295_877)
    assert (splits["val"]["bytes"], splits["train"]["bytes"]) == (1_121_681, 1_256_449)


def test_word_without_unknown_token_is_named(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as LibraryTokenizer
    from tokenizers import models, pre_tokenizers

    vocabulary = {"the": 0, "cat": 1, "<|endoftext|>": 2}
    library = LibraryTokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    library.save(str(tmp_path / "tokenizer.json"))
    config = TokenizerConfig(kind="file", path=str(tmp_path))
    tokenizer = fixed_tokenizer(config)
    (ids,) = tokenizer.encode_batch(["the cat"])
    assert ids.tolist() == [0, 1]
    named = rf"tokenizer {tmp_path} \(WordLevel\): cannot encode 'zebra' .*Missing \[UNK\].*tokenizer=bpe"
    with pytest.raises(DataError, match=named):
        tokenizer.encode_batch(["the cat", "the zebra cat"])
