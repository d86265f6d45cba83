"""`python -m slm evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from json import dumps
from pathlib import Path
from typing import Any

import torch

from slm.console import Column, FittedTable, console
from slm.errors import NO_VALUE, ConfigError, DataError, Problem
from slm.evaluation.load import LoadedModel, is_run_directory, load_with_tokenizer
from slm.evaluation.perplexity import Score, score_texts, total
from slm.evaluation.texts import read_texts


def evaluate(*, documents: bool, json: bool, **settings: Any) -> None:
    """Print the scores of `evaluate_text`, whose arguments are the other keys of the command."""
    scores = evaluate_text(**settings)
    if json:
        print(dumps([score.as_dict() for score in scores], indent=2))
    else:
        print_scores(scores, documents=documents)


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
    loaded = _load(run, hf)
    model, tokenizer = loaded.model, loaded.tokenizer
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


def _load(run: Path | None, hf: Path | None) -> LoadedModel:
    if (run is None) == (hf is None):
        given = NO_VALUE if run is None else run
        raise ConfigError([Problem("run", given, "give one model, as run=DIR or as hf=DIR")])
    if run is not None and not is_run_directory(run):
        raise DataError(
            f"run={run}: not a run directory, config.yaml is missing; use hf=DIR for a Llama folder"
        )
    return load_with_tokenizer(run or hf or "")
