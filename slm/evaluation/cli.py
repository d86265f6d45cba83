"""python -m slm evaluate: from its settings to a printed table."""

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


def evaluate_text(given: Mapping[str, str]) -> list[Score]:
    """Scores of all documents that `text` names, and last of all together.

    Raises:
        ConfigError: for settings that cannot be used.
        DataError, RunError: for a model or a text that cannot be read.
    """
    _check(given)
    model, tokenizer = _opened(given)
    window = int(given.get("window", model.shape.seq_len))
    stride = int(given.get("stride", max(1, window // 2)))
    texts = read_texts(
        given["text"], document=given.get("document", "file"), column=given.get("column", "text")
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    scores = score_texts(
        model.to(device),
        tokenizer,
        texts,
        window=window,
        stride=stride,
        start_token=given.get("start_token", "true") == "true",
    )
    if not scores:
        raise DataError(f"text={given['text']}: no text in there")
    return [*scores, total(scores)]


def print_scores(scores: Sequence[Score], *, documents: bool) -> None:
    """A table of the total, or of every document too."""
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


def _check(given: Mapping[str, str]) -> None:
    problems = []
    if ("run" in given) == ("hf" in given):
        shown = given.get("run")
        problems.append(Problem("run", shown, "give a model as either run=DIR or hf=DIR"))
    for key in ("window", "stride"):
        if key in given and not given[key].isdecimal():
            problems.append(Problem(key, given[key], "must be a number of tokens", "1024"))
    for key, values in {"document": DOCUMENTS, "start_token": ("true", "false")}.items():
        if key in given and given[key] not in values:
            problems.append(Problem(key, given[key], f"must be one of {', '.join(values)}"))
    if problems:
        raise ConfigError(problems)


def _opened(given: Mapping[str, str]) -> tuple[Transformer, Tokenizer]:
    if "run" in given:
        run = Path(given["run"])
        if not (run / "config.yaml").is_file():
            raise DataError(
                f"run={run}: not a run, it has no config.yaml; hf=DIR reads Llama's format"
            )
        return load_model(run), load_tokenizer_of(run)
    folder = Path(given["hf"])
    return load_model(folder), HFTokenizer(load_hf_tokenizer(folder), _first_token(folder))


def _first_token(folder: Path) -> str | None:
    """What the model's texts began with, by its own word; None leaves it to the usual names."""
    try:
        token = read_json(folder / "tokenizer_config.json").get("bos_token")
    except (OSError, ValueError):
        return None
    return token.get("content") if isinstance(token, dict) else token
