"""Loading of checkpoint folders with their tokenizers: start token, fit to the table, exact bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as LibraryTokenizer

import slm
import slm.data.tokenizers.tokenizer
from slm.architecture.shapes import ModelShape
from slm.data.tokenizers.tokenizer import HFTokenizer
from slm.errors import DataError
from slm.evaluation.load import load_with_tokenizer
from slm.evaluation.perplexity import score_texts
from slm.files import write_json
from slm.logs import log
from slm.model.hf import export_llama
from slm.model.transformer import Transformer
from tests.conftest import ROOT

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<file_sep>"]
TEXTS = [
    "",
    "In 1789, 12 of 345 deep models; don't  stop\n\n",
    " caf\u00e9 cafe\u0301 \u4e16\u754c \U0001f600 \u00bd",
    "<|im_start|>user",
]


def train_smollm_tokenizer(texts: list[str], *steps: Any) -> LibraryTokenizer:
    """Train a tokenizer of SmolLM2's kind: digits one by one, then byte-level BPE; special tokens first."""
    tokenizer = LibraryTokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    split = steps or (digits, pre_tokenizers.ByteLevel(add_prefix_space=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(list(split))
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=SPECIAL,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


@pytest.fixture
def messages(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> pytest.LogCaptureFixture:
    """Messages of the logger of slm, which do not propagate once a command has set it up."""
    monkeypatch.setattr(log, "propagate", True)
    return caplog


@pytest.fixture(scope="module")
def prose() -> str:
    return (ROOT / "docs" / "data.md").read_text(encoding="utf-8")


@pytest.fixture
def smollm(prose: str) -> LibraryTokenizer:
    return train_smollm_tokenizer([prose])


def save_checkpoint(folder: Path, rows: int, bos_token_id: int | None = 0) -> Path:
    torch.manual_seed(0)
    model = Transformer(ModelShape(1, 16, 2, 1, 8, 24, rows, 64))
    export_llama(model, folder, bos_token_id)
    return folder


@pytest.fixture
def checkpoint(smollm: LibraryTokenizer, tmp_path: Path) -> Path:
    """A checkpoint folder as on the hub, with files of chat models that have no effect."""
    save_checkpoint(tmp_path, rows=400)
    smollm.enable_truncation(max_length=5)
    smollm.save(str(tmp_path / "tokenizer.json"))
    names = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>", "chat_template": "{{ x }}"}
    write_json(tmp_path / "tokenizer_config.json", names)
    write_json(tmp_path / "generation_config.json", {"temperature": 0.6})
    return tmp_path


def test_tokenizer_of_smollm2_is_lossless_and_encodes_as_the_library(
    checkpoint: Path, smollm: LibraryTokenizer, prose: str
) -> None:
    tokenizer = slm.load_tokenizer(checkpoint)
    texts = [*TEXTS[:-1], prose]
    smollm.no_truncation()
    for text in texts:
        ids = tokenizer.encode(text)
        assert ids.tolist() == smollm.encode(text).ids
        assert tokenizer.decode(ids) == text
        assert tokenizer.count_bytes(ids) == len(text.encode())
    stream = np.concatenate([[0, *ids] for ids in tokenizer.encode_batch([*texts, TEXTS[-1]])])
    assert tokenizer.decode_documents(stream) == [text.encode() for text in [*texts, TEXTS[-1]]]
    assert not set(tokenizer.encode(TEXTS[-1]).tolist()) & set(range(len(SPECIAL)))
    assert (
        isinstance(tokenizer, HFTokenizer) and tokenizer._is_byte_level
    )  # so bytes are table look-ups


def test_long_text_in_pieces_encodes_to_the_same_ids(
    smollm: LibraryTokenizer, prose: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = HFTokenizer(smollm)
    whole = tokenizer.encode(prose)
    for characters in (1, 50, 1000):
        monkeypatch.setattr(slm.data.tokenizers.tokenizer, "PIECE_CHARACTERS", characters)
        assert len(tokenizer._split_long_text(prose)) > 3
        assert np.array_equal(tokenizer.encode(prose), whole)


def test_byte_level_tokenizer_with_a_pattern_of_its_own(prose: str) -> None:
    """Llama 3's kind: bytes are counted by table, but long text is not cut where the pattern may not."""
    pattern = Regex(r"\p{N}{1,3}| ?\p{L}+ \p{L}+|[^\p{L}\p{N}]+|.")
    split = pre_tokenizers.Split(pattern, "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer = HFTokenizer(train_smollm_tokenizer([prose], split, byte_level))
    assert tokenizer._is_byte_level and tokenizer._long_text == "whole"
    for text in [*TEXTS, prose]:
        assert tokenizer.count_bytes(tokenizer.encode(text)) == len(text.encode())
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_bytes_of_an_added_token_outside_ascii(smollm: LibraryTokenizer) -> None:
    smollm.add_tokens([AddedToken("\u00e9t\u00e9", normalized=False)])
    tokenizer = HFTokenizer(smollm)
    ids = tokenizer.encode("un \u00e9t\u00e9")
    assert 400 in ids and tokenizer.count_bytes(ids) == 8
    assert tokenizer.decode_documents(np.array([0, *ids])) == ["un \u00e9t\u00e9".encode()]


def test_scores_count_the_bytes_of_the_text(checkpoint: Path) -> None:
    loaded = load_with_tokenizer(checkpoint)
    scores = score_texts(
        loaded.model, loaded.tokenizer, [(text, text) for text in TEXTS], window=16, stride=8
    )
    assert [score.text_bytes for score in scores] == [len(text.encode()) for text in TEXTS]


def test_evaluation_reports_text_that_the_tokenizer_changes(
    checkpoint: Path, smollm: LibraryTokenizer, messages: pytest.LogCaptureFixture
) -> None:
    smollm.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace("x", "y")])
    smollm.save(str(checkpoint / "tokenizer.json"))
    loaded = load_with_tokenizer(checkpoint)
    texts = [("plain", "cafe"), ("decomposed", "cafe\u0301"), ("changed", "box")]
    scores = score_texts(loaded.model, loaded.tokenizer, texts, window=16, stride=8)
    assert [score.text_bytes for score in scores] == [4, 5, 3]  # in the normal form
    assert [score.is_lossless for score in scores] == [True, True, False]
    (record,) = messages.records
    assert "changes 1 of 3 texts" in record.getMessage()
    assert "changed: 'x' is decoded as 'y'" in record.getMessage()


@pytest.mark.parametrize(
    ("files", "start"),
    [
        ({"tokenizer_config.json": {"bos_token": "<|im_start|>"}}, "<|im_start|>"),
        ({"tokenizer_config.json": {"bos_token": {"content": "<|im_end|>"}}}, "<|im_end|>"),
        ({"tokenizer_config.json": {"bos_token": None}}, "<repo_name>"),
        ({}, "<repo_name>"),  # bos_token_id of config.json
    ],
    ids=str,
)
def test_start_token(
    files: dict[str, Any], start: str, smollm: LibraryTokenizer, tmp_path: Path
) -> None:
    save_checkpoint(tmp_path, rows=400, bos_token_id=3)
    smollm.save(str(tmp_path / "tokenizer.json"))
    for name, content in files.items():
        write_json(tmp_path / name, content)
    assert slm.load_tokenizer(tmp_path).eot_id == SPECIAL.index(start)


def test_table_may_have_more_rows_than_the_tokenizer(
    checkpoint: Path, messages: pytest.LogCaptureFixture
) -> None:
    save_checkpoint(checkpoint, rows=448)
    assert load_with_tokenizer(checkpoint).model.shape.vocab_size == 448
    assert not messages.records
    save_checkpoint(checkpoint, rows=2048)
    load_with_tokenizer(checkpoint)
    assert "table has 2,048 rows, but the tokenizer only 400 entries" in messages.text


DAMAGES: list[tuple[Callable[[Path], object], str]] = [
    (lambda f: save_checkpoint(f, rows=399), "tokenizer has 400 entries, .* table only 399 rows"),
    (
        lambda f: (f / "tokenizer.json").unlink(),
        "no tokenizer; add the tokenizer.json or tokenizer.model",
    ),
    (
        lambda f: (f / "tokenizer.json").write_text("{}"),
        "tokenizer.json: not a tokenizer of the library",
    ),
    (lambda f: (f / "tokenizer.json").write_text("version https://git-lfs.g"), "git lfs pull"),
    (
        lambda f: write_json(f / "tokenizer_config.json", {"bos_token": "<s>"}),
        "bos_token=<s> is not in the tokenizer",
    ),
    (lambda f: (f / "config.json").unlink(), "neither a run directory"),
]


@pytest.mark.parametrize(
    ("damage", "message"), DAMAGES, ids=[message[:30] for _, message in DAMAGES]
)
def test_tokenizer_errors_come_before_the_weights_are_read(
    checkpoint: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(checkpoint)
    (checkpoint / "model.safetensors").write_bytes(b"")
    with pytest.raises(DataError, match=message):
        load_with_tokenizer(checkpoint)


def test_mobilellm_folder_with_a_sentencepiece_model(prose: str, tmp_path: Path) -> None:
    """Texts start with <s>, every byte counts once, and the first token of a text may be a lone space."""
    sentencepiece = pytest.importorskip("sentencepiece")
    with (tmp_path / "tokenizer.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(prose.splitlines()),
            model_writer=file,
            model_type="bpe",
            vocab_size=400,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            minloglevel=2,
        )
    save_checkpoint(tmp_path, rows=400, bos_token_id=1)
    write_json(tmp_path / "tokenizer_config.json", {"bos_token": "<s>", "eos_token": "</s>"})
    loaded = load_with_tokenizer(tmp_path)
    assert (loaded.tokenizer.vocab_size, loaded.tokenizer.eot_id) == (400, 1)
    named = [(text, text) for text in TEXTS if text]
    for start_token in (True, False):
        scores = score_texts(
            loaded.model, loaded.tokenizer, named, window=16, stride=8, start_token=start_token
        )
        first = [loaded.tokenizer.decode(loaded.tokenizer.encode(text)[:1]) for text, _ in named]
        unscored = [0 if start_token else len(text.encode()) for text in first]
        sizes = [len(text.encode()) for text, _ in named]
        assert [score.text_bytes for score in scores] == list(np.subtract(sizes, unscored))
    save_checkpoint(tmp_path, rows=399, bos_token_id=1)
    with pytest.raises(DataError, match=r"tokenizer has 400 entries, .* table only 399 rows"):
        load_with_tokenizer(tmp_path)


def test_model_loads_without_a_tokenizer(checkpoint: Path) -> None:
    (checkpoint / "tokenizer.json").unlink()
    assert slm.load(checkpoint).shape.vocab_size == 400
