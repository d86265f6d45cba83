"""GGUF files in llama.cpp itself: token ids, log probabilities and greedy text equal ours.

Not part of CI. To run it, install llama.cpp as a Python package (a wheel of 34 MB, nothing to build):

    pip install xllamacpp
    python -m pytest tests/slm/evaluation/test_llama_cpp.py -s
"""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from slm.data.tokenizers.gguf import gguf_vocabulary
from slm.data.tokenizers.hf_files import load_hf_tokenizer
from slm.data.tokenizers.tokenizer import ByteTokenizer, HFTokenizer, Tokenizer
from slm.evaluation.export import write_gguf
from slm.model.transformer import Transformer
from tests.in_process import ROOT
from tests.slm.evaluation.exports import (
    SHAPES,
    TEXTS,
    byte_level_bpe,
    random_model,
    sentencepiece_bpe,
)

llama_cpp = pytest.importorskip("xllamacpp", reason="pip install xllamacpp")
pytest.importorskip("gguf")

NEW_TOKENS = 100
# Largest difference of a log probability; llama.cpp rounds the activations to the dtype of the weights.
TOLERANCE = {"fp32": 5e-5, "fp16": 2e-2, "bf16": 2e-1}


class Server:
    """llama.cpp's server in this process, with keys and values in fp32.

    Its flash attention rounds keys and values to fp16, which changes log probabilities by up to 6e-3.
    """

    def __init__(self, path: Path, context: int):
        settings = llama_cpp.CommonParams()
        settings.model.path = str(path)
        settings.n_ctx, settings.n_parallel, settings.warmup, settings.verbosity = (
            context,
            1,
            False,
            0,
        )
        settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
        settings.flash_attn_type = llama_cpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        settings.cache_type_k = settings.cache_type_v = llama_cpp.ggml_type.GGML_TYPE_F32
        self._server = llama_cpp.Server(settings)

    def post(self, path: str, **body: Any) -> dict[str, Any]:
        url, data = f"{self._server.listening_address}/{path}", json.dumps(body).encode()
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    def encode(self, text: str) -> list[int]:
        return self.post("tokenize", content=text, add_special=True, parse_special=False)["tokens"]

    def decode(self, ids: list[int]) -> str:
        return self.post("detokenize", tokens=ids)["content"]

    def generate(self, ids: list[int], vocab_size: int) -> tuple[list[int], torch.Tensor]:
        """Return greedy tokens, and the log probabilities (T, V) that each was chosen from."""
        answer = self.post(
            "completion", prompt=ids, n_predict=NEW_TOKENS, samplers=["top_k"], top_k=1,
            n_probs=vocab_size, return_tokens=True, cache_prompt=False, ignore_eos=True,
        )  # fmt: skip
        found = torch.full((len(answer["completion_probabilities"]), vocab_size), float("nan"))
        for row, position in enumerate(answer["completion_probabilities"]):
            for entry in position["top_logprobs"]:
                found[row, entry["id"]] = entry["logprob"]
        return answer["tokens"], found


def assert_same_predictions(
    model: Transformer, server: Server, prompt: list[int], eos_id: int, tolerance: float
) -> None:
    tokens, found = server.generate(prompt, model.shape.vocab_size)
    sequence = torch.tensor([[*prompt, *tokens]])
    with torch.no_grad():
        ours = model(sequence)[0, len(prompt) - 1 : -1].log_softmax(-1)
    difference = (ours - found).abs().max().item()
    ours[:, eos_id] = -torch.inf  # the server was asked to continue after the end of the text
    chosen = ours.gather(1, torch.tensor(tokens)[:, None])[:, 0]
    same = int((chosen == ours.amax(-1)).sum())
    print(f"{len(tokens)} tokens, {same} equal, log probabilities within {difference:.1e}")
    assert len(tokens) == NEW_TOKENS and difference <= tolerance
    # Rounding may exchange two tokens of nearly equal probability.
    assert (ours.amax(-1) - chosen).max() <= 2 * tolerance


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("arguments", SHAPES, ids=str)
def test_predictions(arguments: tuple[Any, ...], dtype: str, tmp_path: Path) -> None:
    model = random_model(*arguments)
    rows = model.shape.vocab_size
    tokenizer = SmallTokenizer(rows)
    path = tmp_path / "model.gguf"
    write_gguf(model, gguf_vocabulary(tokenizer, rows), path, name="test", dtype=dtype)
    prompt = [tokenizer.eot_id, 5, 9, 2, 30, 7]
    assert_same_predictions(model, Server(path, 128), prompt, tokenizer.eot_id, TOLERANCE[dtype])


class SmallTokenizer(HFTokenizer):
    """A tokenizer of at most 128 bytes: the server returns no probabilities within a character."""

    def __init__(self, rows: int):
        from tokenizers import AddedToken, decoders, models, normalizers
        from tokenizers import Tokenizer as LibraryTokenizer

        from slm.data.tokenizers.hf_files import byte_characters

        characters = byte_characters()[: rows - 1]
        library = LibraryTokenizer(models.BPE({c: i for i, c in enumerate(characters)}, []))
        library.normalizer, library.decoder = normalizers.ByteLevel(), decoders.ByteLevel()
        library.add_special_tokens([AddedToken("<|endoftext|>", special=True)])
        super().__init__(library)


def gpt2(_: Path) -> Tokenizer:
    folder = Path(os.environ.get("SLM_TEST_DATA", ROOT.parent / "shared" / "data")) / "gpt2_bpe"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent; set SLM_TEST_DATA to the folder of published data")
    return HFTokenizer(load_hf_tokenizer(folder))


def bpe(_: Path) -> Tokenizer:
    from tokenizers import pre_tokenizers

    return byte_level_bpe(pre_tokenizers.ByteLevel(add_prefix_space=False))


def smollm(_: Path) -> Tokenizer:
    from tokenizers import pre_tokenizers

    digits, words = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)
    return byte_level_bpe(pre_tokenizers.Sequence([digits, words]))


def byte(_: Path) -> Tokenizer:
    return ByteTokenizer("byte")


def sentencepiece(folder: Path) -> Tokenizer:
    pytest.importorskip("sentencepiece")
    return sentencepiece_bpe(folder)


@pytest.mark.parametrize("make", [byte, bpe, smollm, gpt2, sentencepiece])
def test_token_ids_and_text(make: Callable[[Path], Tokenizer], tmp_path: Path) -> None:
    tokenizer = make(tmp_path)
    rows = tokenizer.vocab_size + 3  # a table may have more rows than the tokenizer has tokens
    model = random_model((1, 2, 2, 8, 16, rows, 128))
    path = tmp_path / "model.gguf"
    write_gguf(model, gguf_vocabulary(tokenizer, rows), path, name="test")
    server = Server(path, 128)
    for text in (*TEXTS, *(file.read_text() for file in sorted((ROOT / "docs").glob("*.md"))[:6])):
        ours = tokenizer.encode_batch([text])[0].tolist()
        theirs = server.encode(text)
        assert theirs == [tokenizer.eot_id, *ours]
        # SentencePiece puts a space before the text, and llama.cpp does not remove it.
        assert server.decode(theirs[1:]).removeprefix(" " if make is sentencepiece else "") == text
