"""`python -m slm evaluate` and `export`."""

from __future__ import annotations

from collections.abc import Sequence
from json import dumps
from pathlib import Path
from typing import Any

import torch

from slm.console import Column, FittedTable, console
from slm.data.tokenizers.hf_files import load_hf_tokenizer
from slm.data.tokenizers.tokenizer import HFTokenizer, Tokenizer
from slm.errors import NO_VALUE, ConfigError, DataError, Problem
from slm.evaluation.load import export_run, load_model, load_tokenizer_of
from slm.evaluation.perplexity import Score, score_texts, total
from slm.evaluation.texts import read_texts
from slm.files import read_json
from slm.model.transformer import Transformer


def evaluate(*, documents: bool, json: bool, **settings: Any) -> None:
    """Print the scores of `evaluate_text`, whose arguments are the other keys of the command."""
    scores = evaluate_text(**settings)
    if json:
        print(dumps([score.as_dict() for score in scores], indent=2))
    else:
        print_scores(scores, documents=documents)


def export(run: Path, out: Path) -> None:
    """Save the model and tokenizer of a run in the format of transformers."""
    export_run(run, out)
    print(f"exported {run} to {out}")


def evaluate_text(
    text: str,
    *,
    run: Path | None = None,
    hf: Path | None = None,
    window: int | None = None,
    stride: int | None = None,
    document: str = "file",
    column: str = "text",
    start_token: bool = True,
) -> list[Score]:
    """Score every document of the files that `text` matches; the last score is their sum.

    The model is that of a run directory `run`, or of a Llama-format folder `hf`.

    Raises:
        ConfigError: if not exactly one model is given, or the window or the stride is invalid.
        DataError, RunError: if the model or a text cannot be read.
    """
    model, tokenizer = _load_model_and_tokenizer(run, hf)
    window = window or model.shape.seq_len
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    scores = score_texts(
        model.to(device),
        tokenizer,
        read_texts(text, document=document, column=column),
        window=window,
        stride=stride or max(1, window // 2),
        start_token=start_token,
    )
    if not scores:
        raise DataError(f"text={text}: the files contain no text")
    return [*scores, total(scores)]


def print_scores(scores: Sequence[Score], *, documents: bool) -> None:
    """Print a table with the total, and with `documents` one row for each document."""
    shown = scores if documents else scores[-1:]
    columns = [
        Column("text", [score.name for score in shown], is_left=True, wraps=True),
        Column("tokens", [f"{score.tokens:,}" for score in shown], rank=1),
        Column("bytes", [f"{score.text_bytes:,}" for score in shown], rank=2),
        Column("nats/token", [f"{score.nats_per_token:.4f}" for score in shown]),
        Column("perplexity", [f"{score.perplexity:.3f}" for score in shown]),
        Column("bits/byte", [f"{score.bits_per_byte:.4f}" for score in shown]),
    ]
    console().print(FittedTable(columns))


def _load_model_and_tokenizer(run: Path | None, hf: Path | None) -> tuple[Transformer, Tokenizer]:
    if (run is None) == (hf is None):
        given = NO_VALUE if run is None else run
        raise ConfigError([Problem("run", given, "give one model, as run=DIR or as hf=DIR")])
    if hf is not None:
        return load_model(hf), HFTokenizer(load_hf_tokenizer(hf), _read_bos_token(hf))
    assert run is not None
    if not (run / "config.yaml").is_file():
        raise DataError(
            f"run={run}: not a run directory, config.yaml is missing; use hf=DIR for a Llama folder"
        )
    return load_model(run), load_tokenizer_of(run)


def _read_bos_token(folder: Path) -> str | None:
    """Read the bos_token of tokenizer_config.json; None leaves the choice to the tokenizer's defaults."""
    try:
        token = read_json(folder / "tokenizer_config.json").get("bos_token")
    except (OSError, ValueError):
        return None
    return token.get("content") if isinstance(token, dict) else token
