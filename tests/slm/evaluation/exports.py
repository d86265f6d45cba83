"""Models and tokenizers for the tests of exports: random weights, real definitions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from slm.architecture.shapes import ModelShape
from slm.config.schema import Config, ParametrizationConfig
from slm.data.tokenizers.hf_files import byte_characters
from slm.data.tokenizers.sentencepiece_model import load_sentencepiece
from slm.data.tokenizers.tokenizer import HFTokenizer
from slm.model.build import build_model
from slm.model.parametrization import Parametrization, initialize
from slm.model.transformer import Transformer
from slm.run.spec import RunSpec
from slm.tracking.run_dir import RunDirectory
from slm.training.runner import train
from tests.in_process import ROOT

# (layers, heads, kv heads, d_head, d_ff, vocab_size, seq_len), tied, layer_sharing, parametrization
SHAPES: list[tuple[tuple[int, ...], bool, int, str]] = [
    ((2, 4, 2, 8, 48, 61, 128), True, 1, "standard"),
    ((3, 6, 2, 10, 76, 101, 128), False, 1, "completep"),
    ((2, 3, 3, 16, 40, 120, 128), True, 2, "completep"),
    ((1, 5, 1, 6, 42, 33, 128), False, 1, "mup"),
]
TEXTS = (
    "Four score\tand seven — years…\n\n  ago; naïve 日本   x\n",
    "it's  I'LL we've 12345 3.14 ½ x²\u3000y\r\n  \u00a0z",
    " leading, trailing ",
    "e\u0301 👍🏽 ﷺ \u200b (a)(b)…!?<s>",
)


def random_model(
    dimensions: tuple[int, ...], tied: bool = True, layer_sharing: int = 1, kind: str = "standard"
) -> Transformer:
    """Return a model with random weights of every parameter, gains included."""
    layers, heads, groups, d_head, *rest = dimensions
    d_ff, vocab_size, seq_len = rest
    shape = ModelShape(
        layers, heads * d_head, heads, groups, d_head, d_ff, vocab_size, seq_len, tied,
        layer_sharing=layer_sharing,
    )  # fmt: skip
    settings = ParametrizationConfig(kind=kind, base_width=20, base_depth=3)  # type: ignore[arg-type]
    config = Config(parametrization=settings)
    model = build_model(config, shape)
    initialize(model, Parametrization.of(settings, shape), seed=0)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def trained_run(tiny_spec: Callable[..., RunSpec], **changes: Any) -> Path:
    """Train a byte model on the documentation for two steps, and return its run directory."""
    settings = {
        "data": {"source": "text_files", "files": [f"{ROOT}/docs/*.md"]},
        "tokenizer": {"kind": "byte"},
        "budget": {"tokens": 512},
    }
    spec = tiny_spec(**{**settings, **changes})
    directory = RunDirectory.of(spec)
    with directory.claim(spec):
        train(spec, directory)
    return directory.path


def texts_of_the_docs() -> list[str]:
    return [path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))]


def byte_level_bpe(pre_tokenizer: Any, vocab_size: int = 500) -> HFTokenizer:
    """Train a byte-level BPE on the documentation, with the given pre-tokenizer."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1, initial_alphabet=byte_characters(), show_progress=False
    )
    tokenizer.train_from_iterator(texts_of_the_docs(), trainer)
    tokenizer.add_special_tokens([AddedToken("<|endoftext|>", special=True)])
    return HFTokenizer(tokenizer)


def sentencepiece_bpe(folder: Path, vocab_size: int = 800) -> HFTokenizer:
    """Train a SentencePiece BPE with byte fallback, as Llama's, and convert it as an import does."""
    import sentencepiece

    text = folder / "text.txt"
    text.write_text("\n".join(texts_of_the_docs()), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(folder / "sp"), vocab_size=vocab_size, model_type="bpe",
        byte_fallback=True, split_digits=True, normalization_rule_name="identity",
        remove_extra_whitespaces=False, allow_whitespace_only_pieces=True, minloglevel=2,
    )  # fmt: skip
    return HFTokenizer(load_sentencepiece(folder / "sp.model"), "<s>")
