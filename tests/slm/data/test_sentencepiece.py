"""Converted SentencePiece models give the ids of SentencePiece itself, and lose no text."""

from __future__ import annotations

import io
import os
import random
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import slm.data.tokenizers.tokenizer
from slm.config.schema import TokenizerConfig
from slm.data.tokenizers.hf_files import load_hf_tokenizer, read_tokenizer_file
from slm.data.tokenizers.sentencepiece_file import parse_model
from slm.data.tokenizers.tokenizer import HFTokenizer, build_tokenizer, load_tokenizer
from slm.data.tokens.encode import encode_and_check
from slm.errors import DataError
from tests.conftest import ROOT

sentencepiece = pytest.importorskip("sentencepiece")

TEST_DATA = Path(os.environ.get("SLM_TEST_DATA", ROOT.parent / "shared" / "data"))
LLAMA: dict[
    str, Any
] = {  # the settings that Llama 2's tokenizer.model was trained with, and a small vocabulary
    "model_type": "bpe",
    "vocab_size": 700,
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "allow_whitespace_only_pieces": True,
    "split_digits": True,
    "num_threads": 1,
    "minloglevel": 2,
}
EDGES = [
    "",
    " ",
    "   ",
    "a",
    " a",
    "a ",
    "  two  spaces  ",
    "\n",
    "\n\n \n",
    "tab\tand\r\nreturn\x00",
    "caf\u00e9 cafe\u0301 \u4e16\u754c \U0001f600\U0001f468\u200d\U0001f469 \ufb01",
    "<s> </s> <unk> <0x41> are written as text",
    "a" * 500,
    "1234567890 3.14",
]


def prose() -> str:
    return "\n".join(
        path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))
    )


def train_model(path: Path, **changes: Any) -> Any:
    """Train a SentencePiece model on this project's documentation, write it and return its processor."""
    model = io.BytesIO()
    settings = {**LLAMA, **changes}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(prose().splitlines()), model_writer=model, **settings
    )
    path.write_bytes(model.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sentencepiece")
    train_model(folder / "tokenizer.model")
    return folder


@pytest.fixture(scope="module")
def processor(folder: Path) -> Any:
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


@pytest.fixture
def tokenizer(folder: Path) -> HFTokenizer:
    return HFTokenizer(load_hf_tokenizer(folder), "<s>")


def assert_same_ids(tokenizer: HFTokenizer, processor: Any, texts: list[str]) -> None:
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert ids.tolist() == processor.encode(text), repr(text[:80])
        assert tokenizer.decode(ids) == text
        assert tokenizer.count_bytes(ids) == len(text.encode())
        assert tokenizer.round_trips(text, ids)


def test_ids_equal_those_of_sentencepiece(tokenizer: HFTokenizer, processor: Any) -> None:
    text = prose()
    assert_same_ids(tokenizer, processor, [*EDGES, text, *text.splitlines(keepends=True)])
    assert tokenizer.vocab_size == processor.vocab_size() and tokenizer.eot_id == processor.bos_id()


def test_ids_of_random_characters_equal_those_of_sentencepiece(
    tokenizer: HFTokenizer, processor: Any
) -> None:
    draw = random.Random(0)
    alphabet = "aaabbthe  theno\n\t019.,<s>\u00e9\u65e5\U0001f600\u0301\u200b\x00\r"
    texts = ["".join(draw.choices(alphabet, k=draw.randrange(60))) for _ in range(2000)]
    assert_same_ids(tokenizer, processor, texts)


@pytest.mark.parametrize(
    "changes", [{"add_dummy_prefix": False}, {"split_by_whitespace": False}], ids=str
)
def test_other_settings_of_sentencepiece(changes: dict[str, Any], tmp_path: Path) -> None:
    """Without the first space, and with pieces of several words, which forbid to encode word by word."""
    processor = train_model(tmp_path / "tokenizer.model", **changes)
    tokenizer = HFTokenizer(load_hf_tokenizer(tmp_path), "<s>")
    assert_same_ids(tokenizer, processor, [*EDGES, *prose().splitlines()[:500]])


@pytest.mark.slow
@pytest.mark.skipif(not (TEST_DATA / "enwiki_sample").is_dir(), reason="no folder of test data")
def test_ids_of_published_corpora_equal_those_of_sentencepiece(
    tokenizer: HFTokenizer, processor: Any
) -> None:
    names = ("tinyshakespeare/input.txt", "wikitext-2/test.txt", "enwiki_sample/enwiki.txt")
    for name in names:
        with (TEST_DATA / name).open(encoding="utf-8", newline="") as file:
            text = file.read(1 << 19)
        assert_same_ids(tokenizer, processor, [text, *text.splitlines(keepends=True)])


def test_saved_tokenizer_gives_the_same_ids_in_transformers(
    folder: Path, processor: Any, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    load_hf_tokenizer(folder).save(str(tmp_path / "tokenizer.json"))
    reader = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    special = re.compile("</?s>|<unk>")  # transformers parses these in a text
    for text in (special.sub("", text) for text in [*EDGES, prose()]):
        ids = processor.encode(text)
        assert reader.encode(text, add_special_tokens=False) == ids
        assert reader.decode(ids, clean_up_tokenization_spaces=False) == text


def test_documents_of_a_stream_are_decoded(tokenizer: HFTokenizer) -> None:
    parts = [[tokenizer.eot_id, *ids] for ids in tokenizer.encode_batch(EDGES)]
    stream = np.array([index for part in parts for index in part])
    assert tokenizer.decode_documents(stream) == [text.encode() for text in EDGES]
    assert tokenizer.count_bytes(stream) == sum(len(text.encode()) for text in EDGES)


def test_long_text_in_pieces_encodes_to_the_same_ids(
    tokenizer: HFTokenizer, processor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = prose()[:5000]
    for characters in (1, 7, 100, 1000):
        monkeypatch.setattr(slm.data.tokenizers.tokenizer, "PIECE_CHARACTERS", characters)
        assert len(tokenizer._split_long_text(text)) > 3
        assert tokenizer.encode(text).tolist() == processor.encode(text)


def test_text_with_the_space_character_of_sentencepiece_is_reported(tokenizer: HFTokenizer) -> None:
    with pytest.raises(DataError, match=r"'\\u2581b' is decoded as ' b'"):
        encode_and_check(tokenizer, [("0", "a\u2581b")])


def test_saved_tokenizer_is_a_tokenizer_json_with_the_same_ids(
    folder: Path, processor: Any, tmp_path: Path
) -> None:
    config = TokenizerConfig(kind="file", path=str(folder), end_of_text="<s>")
    build_tokenizer(config, iter([]), tmp_path)
    saved = load_tokenizer(tmp_path, "<s>")
    assert isinstance(saved, HFTokenizer)
    assert_same_ids(saved, processor, [*EDGES, prose()])
    files = [
        read_tokenizer_file(TokenizerConfig(kind="file", path=str(path)))
        for path in (folder, tmp_path / "tokenizer.json")
    ]
    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "unigram"}, "model_type other than BPE"),
        ({"byte_fallback": False}, "no byte fallback"),
        ({"normalization_rule_name": "nfkc"}, "normalization 'nfkc'"),
        ({"remove_extra_whitespaces": True}, "remove_extra_whitespaces"),
        ({"treat_whitespace_as_suffix": True}, "treat_whitespace_as_suffix"),
        ({"user_defined_symbols": ["<tool>"]}, r"pieces of type 4 \(such as '<tool>'\)"),
    ],
    ids=str,
)
def test_models_that_lose_text_or_differ_are_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    train_model(tmp_path / "tokenizer.model", **changes)
    with pytest.raises(DataError, match=f"SentencePiece model with {message}.*save_pretrained"):
        load_hf_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (bytes(100), "not a SentencePiece model, or damaged"),
        (b"", "not a SentencePiece model, or damaged"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "git lfs pull"),
    ],
)
def test_damaged_file(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_hf_tokenizer(tmp_path)


def test_truncated_file(folder: Path, tmp_path: Path) -> None:
    whole = (folder / "tokenizer.model").read_bytes()
    for size in (1, 5, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "tokenizer.model").write_bytes(whole[:size])
        with pytest.raises(DataError, match="not a SentencePiece model, or damaged"):
            load_hf_tokenizer(tmp_path)


def test_file_is_read_as_by_the_generated_code_of_sentencepiece(tmp_path: Path) -> None:
    generated = pytest.importorskip("sentencepiece.sentencepiece_model_pb2")
    for changes in (
        {},
        {"normalization_rule_name": "nfkc", "add_dummy_prefix": False, "vocab_size": 900},
    ):
        train_model(tmp_path / "tokenizer.model", **changes)
        content = (tmp_path / "tokenizer.model").read_bytes()
        theirs = generated.ModelProto.FromString(content)
        ours = parse_model(content)
        expected = [(piece.piece, piece.score, piece.type) for piece in theirs.pieces]
        assert [(piece.text, piece.score, piece.kind) for piece in ours.pieces] == expected
        trainer, normalizer = theirs.trainer_spec, theirs.normalizer_spec
        assert ours.model_type == trainer.model_type
        assert ours.byte_fallback == trainer.byte_fallback
        assert ours.treat_whitespace_as_suffix == trainer.treat_whitespace_as_suffix
        assert ours.normalization == normalizer.name
        assert ours.has_character_map == bool(normalizer.precompiled_charsmap)
        assert ours.add_dummy_prefix == normalizer.add_dummy_prefix
        assert ours.remove_extra_whitespaces == normalizer.remove_extra_whitespaces
        assert ours.escape_whitespaces == normalizer.escape_whitespaces


def test_missing_package_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(DataError, match=r"\.\[sentencepiece\].*save_pretrained"):
        load_hf_tokenizer(folder)
