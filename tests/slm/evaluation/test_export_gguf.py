"""GGUF files, read back with `gguf.GGUFReader` and run by an independent forward pass in NumPy."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from slm.architecture.shapes import ModelShape
from slm.data.tokenizers.gguf import TokenKind, gguf_vocabulary
from slm.data.tokenizers.hf_files import END_OF_TEXT, byte_characters
from slm.data.tokenizers.tokenizer import ByteTokenizer, HFTokenizer, Tokenizer
from slm.errors import ConfigError, DataError, SlmError
from slm.evaluation.export import export, export_run, write_gguf
from slm.model.hf import export_llama, import_llama, llama_tensors
from slm.model.transformer import Transformer
from slm.run.spec import RunSpec
from tests.slm.evaluation.exports import (
    SHAPES,
    TEXTS,
    byte_level_bpe,
    random_model,
    trained_run,
)
from tests.slm.evaluation.gguf_files import GGUFFile

pytest.importorskip("gguf")
pytestmark = pytest.mark.numeric


@pytest.fixture(scope="module")
def bpe() -> HFTokenizer:
    from tokenizers import pre_tokenizers

    return byte_level_bpe(pre_tokenizers.ByteLevel(add_prefix_space=False))


def write_random(path: Path, arguments: tuple[Any, ...], dtype: str = "fp32") -> Transformer:
    """Write a random model with the byte tokenizer, of which the file has the rows of the model."""
    layers, heads, groups, d_head, d_ff, _, seq_len = arguments[0]
    model = random_model((layers, heads, groups, d_head, d_ff, 259, seq_len), *arguments[1:])
    vocabulary = gguf_vocabulary(ByteTokenizer("byte"), 259)
    write_gguf(model, vocabulary, path, name="random", dtype=dtype)
    return model


@pytest.mark.parametrize("arguments", SHAPES, ids=str)
def test_logits_of_the_file_equal_ours(arguments: tuple[Any, ...], tmp_path: Path) -> None:
    """Interleaved RoPE on reordered rows, grouped queries, folded multipliers, shared blocks."""
    model = write_random(tmp_path / "model.gguf", arguments)
    file = GGUFFile(tmp_path / "model.gguf")
    tokens = torch.randint(259, (1, 40))
    with torch.no_grad():
        ours = model(tokens)[0].double().numpy()
    theirs = file.logits(tokens[0].tolist())
    assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()
    assert ("output.weight" in file.tensors) == (not model.shape.tied)
    assert file.llama("block_count") == model.shape.depth


def test_rows_of_queries_and_keys_are_reordered_within_heads(tmp_path: Path) -> None:
    """Row 2i of a head of the file is row i of ours, and row 2i + 1 is row i + d_head/2."""
    model = write_random(tmp_path / "model.gguf", SHAPES[0])
    file, ours = GGUFFile(tmp_path / "model.gguf"), dict(llama_tensors(model))
    half = model.shape.d_head // 2
    for name, llama_name in (("attn_q", "q_proj"), ("attn_k", "k_proj")):
        found = file.tensors[f"blk.1.{name}.weight"]
        expected = ours[f"model.layers.1.self_attn.{llama_name}.weight"].numpy()
        for row in range(len(found)):
            head, place = divmod(row, 2 * half)
            source = head * 2 * half + place // 2 + (place % 2) * half
            assert np.array_equal(found[row], expected[source])
    others = {
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_up": "mlp.up_proj",
    }
    for name, llama_name in others.items():
        expected = ours[f"model.layers.0.{llama_name}.weight"].numpy()
        assert np.array_equal(file.tensors[f"blk.0.{name}.weight"], expected)


@pytest.mark.parametrize(
    ("dtype", "torch_dtype", "stored", "file_type"),
    [
        ("fp32", torch.float32, "F32", 0),
        ("fp16", torch.float16, "F16", 1),
        ("bf16", torch.bfloat16, "BF16", 32),
    ],
)
def test_number_formats(
    dtype: str, torch_dtype: torch.dtype, stored: str, file_type: int, tmp_path: Path
) -> None:
    model = write_random(tmp_path / "model.gguf", SHAPES[0], dtype)
    file, expected = GGUFFile(tmp_path / "model.gguf"), dict(llama_tensors(model))
    assert file.fields["general.file_type"] == file_type
    for name, kind in file.types.items():
        assert kind == ("F32" if "norm" in name else stored), name
    pairs = {
        "token_embd.weight": "model.embed_tokens.weight",
        "blk.1.ffn_down.weight": "model.layers.1.mlp.down_proj.weight",
    }
    for name, llama_name in pairs.items():
        rounded = expected[llama_name].to(torch_dtype).float().numpy()
        assert np.array_equal(file.tensors[name], rounded)

    export_llama(model, tmp_path / "hf", 256, dtype)
    imported = import_llama(tmp_path / "hf")
    table = model.embedding.weight.detach().to(torch_dtype).float()
    assert torch.equal(imported.embedding.weight, table)
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["dtype"] == str(torch_dtype).removeprefix("torch.")


def test_hyperparameters(tmp_path: Path) -> None:
    shape = ModelShape(2, 60, 6, 2, 10, 76, 257, 33, tied=False)
    model = Transformer(shape, rope_theta=500_000.0, norm_eps=1e-6).eval()
    write_gguf(
        model, gguf_vocabulary(ByteTokenizer("byte"), 257), tmp_path / "m.gguf", name="named"
    )
    file = GGUFFile(tmp_path / "m.gguf")
    assert file.fields["general.architecture"] == "llama"
    assert file.fields["general.name"] == "named"
    expected = {
        "context_length": 33,
        "embedding_length": 60,
        "block_count": 2,
        "feed_forward_length": 76,
        "attention.head_count": 6,
        "attention.head_count_kv": 2,
        "attention.key_length": 10,
        "attention.value_length": 10,
        "rope.dimension_count": 10,
        "rope.freq_base": 500_000.0,
        "vocab_size": 257,
    }
    assert {key: file.llama(key) for key in expected} == expected
    assert file.llama("attention.layer_norm_rms_epsilon") == pytest.approx(1e-6)


def encode_as_llama_cpp(file: GGUFFile, text: str) -> list[int]:
    """Encode with the tokens and merges of the file and GPT-2's pattern, merging the first rank first."""
    regex = pytest.importorskip("regex")
    pattern = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    ids = {token: index for index, token in enumerate(file.tokenizer("tokens"))}
    ranks = {tuple(m.split(" ")): rank for rank, m in enumerate(file.tokenizer("merges"))}
    character, encoded = byte_characters(), []
    for word in regex.findall(pattern, text):
        parts = [character[byte] for byte in word.encode()]
        while pairs := [
            (ranks[pair], place)
            for place in range(len(parts) - 1)
            if (pair := (parts[place], parts[place + 1])) in ranks
        ]:
            _, place = min(pairs)
            parts[place : place + 2] = ["".join(parts[place : place + 2])]
        encoded += [ids[part] for part in parts]
    return encoded


@pytest.mark.parametrize("kind", ["byte", "bpe"])
def test_vocabulary_of_our_tokenizers(kind: str, bpe: HFTokenizer, tmp_path: Path) -> None:
    tokenizer: Tokenizer = bpe if kind == "bpe" else ByteTokenizer("byte")
    size = tokenizer.vocab_size
    model = random_model((1, 2, 2, 8, 16, size + 2, 16))  # two rows of the table have no token
    write_gguf(model, gguf_vocabulary(tokenizer, size + 2), tmp_path / "m.gguf", name="test")
    file = GGUFFile(tmp_path / "m.gguf")
    assert (file.tokenizer("model"), file.tokenizer("pre")) == ("gpt2", "gpt-2")
    normal, control, unused = TokenKind.NORMAL, TokenKind.CONTROL, TokenKind.UNUSED
    assert file.tokenizer("token_type") == [*[normal] * (size - 1), control, unused, unused]
    assert file.tokenizer("tokens")[tokenizer.eot_id] == END_OF_TEXT
    assert len(set(file.tokenizer("tokens"))) == size + 2
    for key in ("bos_token_id", "eos_token_id"):
        assert file.tokenizer(key) == tokenizer.eot_id
    flags = ("add_bos_token", "add_eos_token", "add_space_prefix")
    assert [file.tokenizer(flag) for flag in flags] == [True, False, False]
    for text in TEXTS:
        assert encode_as_llama_cpp(file, text) == tokenizer.encode_batch([text])[0].tolist()


def sentencepiece_like(ranks: list[tuple[str, str]]) -> HFTokenizer:
    """Return a tokenizer of the form that Llama's has, with the given merges."""
    from tokenizers import AddedToken, Tokenizer, models, normalizers

    special = ["<unk>", "<s>", "</s>"]
    pieces = [*(f"<0x{byte:02X}>" for byte in range(256)), *"▁abc", *("".join(r) for r in ranks)]
    vocabulary = {token: i for i, token in enumerate([*special, *dict.fromkeys(pieces)])}
    library = Tokenizer(models.BPE(vocabulary, ranks, byte_fallback=True, unk_token="<unk>"))
    library.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    library.add_special_tokens([AddedToken(name, special=True) for name in special])
    return HFTokenizer(library, "<s>")


def test_vocabulary_of_sentencepiece() -> None:
    tokenizer = sentencepiece_like([("a", "b"), ("ab", "c")])
    vocabulary = gguf_vocabulary(tokenizer, tokenizer.vocab_size, eos_id=2)
    assert (vocabulary.model, vocabulary.merges, vocabulary.add_space_prefix) == (
        "llama",
        None,
        True,
    )
    kind = dict(zip(vocabulary.tokens, vocabulary.kinds, strict=True))
    assert kind["<unk>"] == TokenKind.UNKNOWN and kind["<s>"] == TokenKind.CONTROL
    assert kind["<0x00>"] == kind["<0xFF>"] == TokenKind.BYTE and kind["abc"] == TokenKind.NORMAL
    score = dict(zip(vocabulary.tokens, vocabulary.scores or (), strict=True))
    assert score["ab"] > score["abc"]
    assert (vocabulary.bos_id, vocabulary.eos_id) == (tokenizer.eot_id, 2)
    # "abc" can be merged in two ways, and llama.cpp gives both the same priority.
    split = sentencepiece_like([("a", "b"), ("ab", "c"), ("b", "c"), ("a", "bc")])
    with pytest.raises(DataError, match="'abc' have no common rank"):
        gguf_vocabulary(split, split.vocab_size)


def byte_level(**changes: Any) -> HFTokenizer:
    """Return a small byte-level tokenizer with another component."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    library = Tokenizer(models.BPE({c: i for i, c in enumerate(byte_characters())}, []))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    for name, part in changes.items():
        setattr(library, name, part)
    library.add_special_tokens([AddedToken(END_OF_TEXT, special=True)])
    return HFTokenizer(library)


def unsupported_tokenizers() -> dict[str, Callable[[], Tokenizer]]:
    from tokenizers import models, normalizers, pre_tokenizers

    words = pre_tokenizers.Whitespace()
    unigram = models.Unigram([("a", -1.0), (END_OF_TEXT, -2.0)], 0)
    return {
        "tokenizer.kind=ascii.*tokenizer=byte": lambda: ByteTokenizer("ascii"),
        "pre_tokenizer=.*Whitespace.*format=hf": lambda: byte_level(pre_tokenizer=words),
        "normalizer=.*NFC.*format=hf": lambda: byte_level(normalizer=normalizers.NFC()),
        "type Unigram": lambda: byte_level(model=unigram),
        "dropout=0.5": lambda: byte_level(model=models.BPE(dropout=0.5)),
        "has 257 tokens, but the embedding table has 200 rows": byte_level,
    }


@pytest.mark.parametrize("message", unsupported_tokenizers())
def test_unsupported_tokenizers_are_refused(message: str) -> None:
    rows = 200 if "200 rows" in message else 300
    with pytest.raises(DataError, match=message):
        gguf_vocabulary(unsupported_tokenizers()[message](), rows)


@pytest.mark.parametrize("change", [{"mlp": "gelu"}, {"qk_norm": True}])
def test_unsupported_models_are_refused(change: dict[str, Any], tmp_path: Path) -> None:
    shape = ModelShape(1, 16, 2, 2, 8, 24, 257, 8, **change)
    vocabulary = gguf_vocabulary(ByteTokenizer("byte"), 257)
    with pytest.raises(DataError, match="not supported by the Llama format"):
        write_gguf(Transformer(shape), vocabulary, tmp_path / "m.gguf", name="test")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def run(tiny_spec: Callable[..., RunSpec]) -> Path:
    return trained_run(tiny_spec)


def test_export_of_a_run_and_of_a_llama_folder(run: Path, tmp_path: Path) -> None:
    """The GGUF file of the exported folder has the same tensors and vocabulary as that of the run."""
    export(run, tmp_path / "new" / "run.gguf", format="gguf")
    export_run(run, tmp_path / "hf")
    export(tmp_path / "hf", tmp_path / "new" / "hf.gguf", format="gguf")
    names = {"run.gguf", "run.md", "hf.gguf", "hf.md"}
    assert {path.name for path in (tmp_path / "new").iterdir()} == names
    first, second = (GGUFFile(tmp_path / "new" / f"{name}.gguf") for name in ("run", "hf"))
    assert first.tensors.keys() == second.tensors.keys()
    assert all(np.array_equal(first.tensors[name], second.tensors[name]) for name in first.tensors)
    for key in ("tokens", "token_type", "merges", "pre", "bos_token_id"):
        assert first.tokenizer(key) == second.tokenizer(key)

    mistakes: list[tuple[str, dict[str, str], type[SlmError], str]] = [
        ("new/run.gguf", {"format": "gguf"}, DataError, "run.gguf exists already"),
        (
            "new/model",
            {"format": "gguf"},
            ConfigError,
            r"must end in .gguf \(use out=.*/model.gguf",
        ),
        ("new/model.gguf", {}, ConfigError, "add format=gguf"),
    ]
    for out, settings, error, message in mistakes:
        with pytest.raises(error, match=message):
            export(run, tmp_path / out, **settings)
    (tmp_path / "new" / "run.gguf").unlink()
    with pytest.raises(DataError, match=r"run\.md exists already"):
        export(run, tmp_path / "new" / "run.gguf", format="gguf")


def test_missing_package_is_named_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[gguf\]'"):
        export(tmp_path / "run", tmp_path / "out" / "model.gguf", format="gguf")
    assert not (tmp_path / "out").exists()
