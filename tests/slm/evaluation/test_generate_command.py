"""`python -m slm generate`: text of whole characters, the end of a text, samples, and errors."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import slm
from slm.__main__ import parse
from slm.data.tokenizers.hf_files import train_bpe
from slm.data.tokenizers.tokenizer import ByteTokenizer, HFTokenizer, Tokenizer
from slm.errors import ConfigError, DataError
from slm.evaluation.export import export_run
from slm.evaluation.generate import (
    WINDOW_TOKENS,
    decode_stream,
    generate,
    stop_ids,
    stream_text,
)
from slm.evaluation.load import load_with_tokenizer
from slm.files import read_json, write_json
from slm.run.spec import RunSpec
from slm.tracking.run_dir import RunDirectory
from slm.training.runner import train

TEXT = "na\u00efve \u20ac5 \U0001f600 \u4e2d\u6587 ~ end"
SETTINGS: dict[str, Any] = {"new_tokens": 12, "samples": 1, "json": False}


def bpe() -> HFTokenizer:
    return HFTokenizer(train_bpe(["the state of the union " * 50, "\u4e2d\u6587 " * 3], 270))


@pytest.mark.parametrize(
    "build",
    [lambda: ByteTokenizer("byte"), lambda: ByteTokenizer("ascii"), bpe],
    ids=["byte", "ascii", "bpe"],
)
def test_pieces_are_whole_characters(build: Callable[[], Tokenizer]) -> None:
    tokenizer = build()
    prompt, rest = "Pri\u00e8re: ", TEXT
    ids = [tokenizer.eot_id, *tokenizer.encode_batch([prompt])[0].tolist()]
    tokens = tokenizer.encode_batch([rest])[0].tolist()
    pieces = list(decode_stream(tokenizer, ids, tokens))
    assert "".join(pieces) == rest
    assert all("\ufffd" not in piece for piece in pieces) and len(pieces) > 10
    ended = decode_stream(
        tokenizer, ids, [*tokens, tokenizer.eot_id, *tokens], frozenset({tokenizer.eot_id})
    )
    assert "".join(ended) == rest


def test_invalid_bytes_are_shown_and_nothing_is_read_ahead() -> None:
    tokenizer = ByteTokenizer("byte")
    read: list[int] = []

    def tokens() -> Iterator[int]:
        for token in [*b"ab", 0xE2, 0x82, *[0xFF] * 9, *b"c", 0xE2]:
            read.append(token)
            yield token

    pieces = decode_stream(tokenizer, [tokenizer.eot_id], tokens())
    assert next(pieces) == "a" and len(read) == 1
    text = bytes([*b"ab", 0xE2, 0x82, *[0xFF] * 9, *b"c", 0xE2]).decode(errors="replace")
    assert "a" + "".join(pieces) == text


@pytest.mark.parametrize("kind", ["byte", "ascii", "bpe"])
def test_only_the_last_tokens_are_decoded(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = bpe() if kind == "bpe" else ByteTokenizer(kind)
    text = "".join(chr(0x4E00 + index) + "a\u20ac \U0001f600"[: index % 5] for index in range(150))
    ids = tokenizer.encode_batch([text])[0].tolist()
    lengths: list[int] = []
    decode = type(tokenizer).decode

    def recorded(self: Any, ids: Any) -> str:
        lengths.append(len(ids))
        return decode(self, ids)

    monkeypatch.setattr(type(tokenizer), "decode", recorded)
    pieces = list(decode_stream(tokenizer, [tokenizer.eot_id, *ids[:90]], ids[90:]))
    shown = len(decode(tokenizer, ids[:90]))
    monkeypatch.undo()
    assert "".join(pieces) == tokenizer.decode(ids)[shown:] and len(pieces) > 150
    # The first step decodes the prompt; a character has up to 12 tokens, and a window begins with a whole one.
    assert max(lengths[40:]) <= 2 * WINDOW_TOKENS + 12


@pytest.fixture
def run(tiny_spec: Callable[..., RunSpec]) -> Path:
    spec = tiny_spec(budget={"tokens": 2 * 256})
    directory = RunDirectory.of(spec)
    with directory.claim(spec):
        train(spec, directory)
    return directory.path


def test_command_on_a_run_and_on_its_export(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_with_tokenizer(run)
    assert stop_ids(loaded) == {loaded.tokenizer.eot_id}
    ids = torch.tensor(
        [[loaded.tokenizer.eot_id, *loaded.tokenizer.encode_batch(["Deep"])[0].tolist()]]
    )
    row = slm.load(run).generate(ids, 12)[0, 5:].numpy()
    assert loaded.tokenizer.eot_id not in row
    expected = loaded.tokenizer.decode(row)
    assert "".join(stream_text(loaded, "Deep", 12)) == expected
    generate(run=run, prompt="Deep", **SETTINGS)
    assert capsys.readouterr().out == f"Deep{expected}\n"
    assert generated(run, "Deep", capsys) == expected

    monkeypatch.setattr("sys.stdin.read", lambda: "Deep\n", raising=False)
    generate(
        run=run, prompt="-", **{**SETTINGS, "samples": 2, "json": True}, temperature=1.0, seed=3
    )
    printed = json.loads(capsys.readouterr().out)
    assert printed["prompt"] == "Deep" and len(printed["continuations"]) == 2
    settings = {"model": str(run), "temperature": 1.0, "top_k": None, "top_p": None, "seed": 3}
    assert {key: printed[key] for key in settings} == settings
    assert printed["prompt_tokens"] == 5 and max(printed["new_tokens"]) <= 12
    generate(run=run, prompt="Deep", **{**SETTINGS, "samples": 2}, temperature=1.0, seed=3)
    assert all(f"Deep{text}\n" in capsys.readouterr().out for text in printed["continuations"][:1])

    # Without new_tokens, up to the end of seq_len.
    assert len(list(stream_text(loaded, "Deep"))) > 12
    with pytest.raises(ConfigError, match="leaves no room for new ones: seq_len=32"):
        generate(run=run, prompt="x" * 40, **SETTINGS)
    with pytest.raises(ConfigError, match="top_p=2"):
        generate(run=tmp_path / "missing", prompt="x", top_p=2.0, **SETTINGS)
    with pytest.raises(
        ConfigError, match=r"top_k=5 and samples=3 have no effect .set temperature, "
    ):
        generate(run=run, prompt="x", top_k=5, **{**SETTINGS, "samples": 3})
    with pytest.raises(ConfigError, match=r"temperature=1e-40: must be 0 or at least 0.0001"):
        generate(run=run, prompt="x", temperature=1e-40, **SETTINGS)
    _, arguments = parse(["generate", f"run={run}", "prompt=", "new_tokens=3"])
    generate(**arguments)
    assert len(capsys.readouterr().out) <= 4  # characters and a line break
    with pytest.raises(DataError, match="1 run is below; give one of them"):
        generate(run=run.parent, prompt="x", **SETTINGS)
    (tmp_path / "model.gguf").touch()
    with pytest.raises(DataError, match="GGUF cannot be read back; export with format=hf"):
        generate(run=tmp_path / "model.gguf", prompt="x", **SETTINGS)
    with pytest.raises(DataError, match="no such folder"):
        generate(run=tmp_path / "missing", prompt="x", **SETTINGS)


def generated(folder: Path, prompt: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Return the continuation that the command prints with `--json`, which generates a batch."""
    capsys.readouterr()
    generate(run=folder, prompt=prompt, **{**SETTINGS, "json": True})
    return json.loads(capsys.readouterr().out)["continuations"][0]


def test_llama_folder_stops_at_its_eos_token(
    tiny_spec: Callable[..., RunSpec], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(100):
        (tmp_path / f"{number}.txt").write_text(
            f"{number}: the state of the Union is strong. " * 40
        )
    spec = tiny_spec(
        data={"source": "text_files", "files": [f"{tmp_path}/*.txt"]},
        tokenizer={"kind": "bpe", "vocab_size": 300},
        budget={"tokens": 256},
    )
    directory, out = RunDirectory.of(spec), tmp_path / "exported"
    with directory.claim(spec):
        train(spec, directory)
    export_run(directory.path, out)
    assert generated(out, "the", capsys) == generated(directory.path, "the", capsys)
    model = slm.load(out)
    ids = [299, *load_with_tokenizer(out).tokenizer.encode_batch(["the"])[0].tolist()]
    row = model.generate(torch.tensor([ids]), 12)[0, len(ids) :].tolist()
    write_json(out / "config.json", {**read_json(out / "config.json"), "eos_token_id": [row[5], 7]})
    loaded = load_with_tokenizer(out)
    assert stop_ids(loaded) == {row[5], 7, 299}
    stopped = generated(out, "the", capsys)
    assert stopped == loaded.tokenizer.decode(torch.tensor(row[: row.index(row[5])]).numpy())
    write_json(out / "config.json", {**read_json(out / "config.json"), "eos_token_id": "</s>"})
    with pytest.raises(DataError, match='eos_token_id="</s>" must be an integer'):
        stop_ids(loaded)
