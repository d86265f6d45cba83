"""Implementation of `python -m slm evaluate`: settings to scores to a printed table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from slm.data.tokenizers.hf_files import load_hf_tokenizer
from slm.data.tokenizers.tokenizer import HFTokenizer, Tokenizer
from slm.errors import ConfigError, DataError, Problem
from slm.evaluation.load import load_model, load_tokenizer_of
from slm.evaluation.perplexity import Score, score_texts, total
from slm.evaluation.texts import read_texts
from slm.files import read_json
from slm.model.transformer import Transformer

DOCUMENTS = ("file", "paragraph", "line")


def evaluate_text(settings: Mapping[str, str]) -> list[Score]:
    """Score every document of the files that `text` matches; the last score is their sum.

    Raises:
        ConfigError: if a setting is invalid.
        DataError, RunError: if the model or a text cannot be read.
    """
    _check(settings)
    model, tokenizer = _load_model_and_tokenizer(settings)
    window = int(settings.get("window", model.shape.seq_len))
    stride = int(settings.get("stride", max(1, window // 2)))
    texts = read_texts(
        settings["text"],
        document=settings.get("document", "file"),
        column=settings.get("column", "text"),
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    scores = score_texts(
        model.to(device),
        tokenizer,
        texts,
        window=window,
        stride=stride,
        start_token=settings.get("start_token", "true") == "true",
    )
    if not scores:
        raise DataError(f"text={settings['text']}: the files contain no text")
    return [*scores, total(scores)]


def print_scores(scores: Sequence[Score], *, documents: bool) -> None:
    """Print a table with the total, and with `documents` one row for each document."""
    table = Table()
    table.add_column("text")
    for heading in ("tokens", "bytes", "nats/token", "perplexity", "bits/byte"):
        table.add_column(heading, justify="right")
    for score in scores if documents else scores[-1:]:
        table.add_row(
            score.name,
            f"{score.tokens:,}",
            f"{score.text_bytes:,}",
            f"{score.nats_per_token:.4f}",
            f"{score.perplexity:.3f}",
            f"{score.bits_per_byte:.4f}",
        )
    Console().print(table)


def _check(settings: Mapping[str, str]) -> None:
    problems = []
    if ("run" in settings) == ("hf" in settings):
        rule = "set exactly one model, as either run=DIR or hf=DIR"
        problems.append(Problem("run", settings.get("run"), rule))
    for key in ("window", "stride"):
        if key in settings and not settings[key].isdecimal():
            rule = "must be a number of tokens"
            problems.append(Problem(key, settings[key], rule, f"for example {key}=1024"))
    for key, values in {"document": DOCUMENTS, "start_token": ("true", "false")}.items():
        if key in settings and settings[key] not in values:
            problems.append(Problem(key, settings[key], f"must be one of {', '.join(values)}"))
    if problems:
        raise ConfigError(problems)


def _load_model_and_tokenizer(settings: Mapping[str, str]) -> tuple[Transformer, Tokenizer]:
    if "run" in settings:
        run = Path(settings["run"])
        if not (run / "config.yaml").is_file():
            raise DataError(
                f"run={run}: not a run directory, config.yaml is missing; use hf=DIR for a Llama folder"
            )
        return load_model(run), load_tokenizer_of(run)
    folder = Path(settings["hf"])
    return load_model(folder), HFTokenizer(load_hf_tokenizer(folder), _read_bos_token(folder))


def _read_bos_token(folder: Path) -> str | None:
    """Read the bos_token of tokenizer_config.json; None leaves the choice to the tokenizer's defaults."""
    try:
        token = read_json(folder / "tokenizer_config.json").get("bos_token")
    except (OSError, ValueError):
        return None
    return token.get("content") if isinstance(token, dict) else token
