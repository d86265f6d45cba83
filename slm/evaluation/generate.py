"""`python -m slm generate`, and the text of a stream of tokens."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from json import dumps
from pathlib import Path
from typing import Any

import numpy as np
import torch

from slm.data.tokenizers.tokenizer import ByteTokenizer, Tokenizer
from slm.errors import NO_VALUE, ConfigError, Problem
from slm.evaluation.load import LoadedModel, has_run_config, load_with_tokenizer
from slm.model.generate import Sampling, generate_batch, stream
from slm.model.hf_config import CONFIG, parse_eos_ids, read_config

DEFAULT_NEW_TOKENS = 128
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # what decoders put for bytes that are not UTF-8
MAX_PARTIAL_CHARACTERS = 3  # of the bytes of an incomplete character
ESCAPE_HALVES = 2  # tokens after an escape of the ASCII tokenizer
WINDOW_TOKENS = 32  # decoded for each new token; at most twice as many


def generate(
    *,
    run: Path,
    prompt: str,
    new_tokens: int | None,
    samples: int,
    json: bool,
    **sampling: Any,
) -> None:
    """Print the continuations of a prompt; `sampling` are the fields of `Sampling`.

    Raises:
        ConfigError: if a setting is invalid, or has no effect in greedy decoding.
        DataError, RunError: if the model cannot be read.
    """
    chosen = Sampling(**sampling)
    _check(chosen, samples)  # before the model is loaded
    text = sys.stdin.read().removesuffix("\n") if prompt == "-" else prompt
    _check_text(text)
    loaded = load_with_tokenizer(run)
    loaded.model.to("cuda" if torch.cuda.is_available() else "cpu")
    if samples == 1 and not json:
        pieces = stream_text(loaded, text, new_tokens, chosen)
        print(text, end="", flush=True)
        for piece in pieces:
            print(piece, end="", flush=True)
        print()
        return
    ids, rows = _sample_rows(loaded, text, new_tokens, chosen, samples)
    continuations = [_text_of(loaded, ids, row) for row in rows]
    if json:
        content = {
            "model": str(run),
            **asdict(chosen),
            "prompt": text,
            "prompt_tokens": len(ids),
            "continuations": continuations,
            "new_tokens": [len(row) for row in rows],
        }
        print(dumps(content, indent=2, ensure_ascii=False))
        return
    for number, continuation in enumerate(continuations, start=1):
        print(f"--- {number} of {samples}\n{text}{continuation}")


def _check_text(text: str) -> None:
    """Raise a ConfigError if the prompt has bytes that are not UTF-8, which Python reads as surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        rule = f"character {error.start + 1:,} is not UTF-8"
        raise ConfigError([Problem("prompt", ascii(text[:20]), rule, "convert the text")]) from None


def _check(sampling: Sampling, samples: int) -> None:
    """Raise a ConfigError for invalid values, and for settings that greedy decoding ignores."""
    problems = list(sampling.problems())
    settings = {"top_k": sampling.top_k, "top_p": sampling.top_p}
    ignored = [f"{key}={value}" for key, value in settings.items() if value is not None]
    if samples > 1:
        ignored.append(f"samples={samples}")
    if sampling.temperature == 0 and ignored:
        verb = "has" if len(ignored) == 1 else "have"
        rule = f"takes the likeliest token, so {' and '.join(ignored)} {verb} no effect"
        problems.append(Problem("temperature", 0, rule, "set temperature, for example temperature=0.8"))  # fmt: skip
    if problems:
        raise ConfigError(problems)


def stream_text(
    loaded: LoadedModel,
    prompt: str,
    new_tokens: int | None = None,
    sampling: Sampling | None = None,
) -> Iterator[str]:
    """Yield the continuation of a prompt in pieces of whole characters, while it is generated.

    Raises:
        ConfigError: if the prompt leaves no room for new tokens, or a setting is invalid.
    """
    ids = _prompt_ids(loaded, prompt)
    steps = stream(
        loaded.model,
        ids[None],
        _new_tokens(loaded, ids, new_tokens),
        sampling=sampling,
        stop=stop_ids(loaded),
    )
    return decode_stream(
        loaded.tokenizer, ids.tolist(), (int(tokens) for tokens in steps), stop_ids(loaded)
    )


def _sample_rows(
    loaded: LoadedModel,
    prompt: str,
    new_tokens: int | None,
    sampling: Sampling,
    samples: int,
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return the tokens of the prompt, and those of each continuation."""
    ids = _prompt_ids(loaded, prompt)
    rows = generate_batch(
        loaded.model,
        [ids] * samples,
        _new_tokens(loaded, ids, new_tokens),
        sampling=sampling,
        stop=stop_ids(loaded),
    )
    return ids, rows


def _text_of(loaded: LoadedModel, prompt: torch.Tensor, row: torch.Tensor) -> str:
    return "".join(decode_stream(loaded.tokenizer, prompt.tolist(), row.tolist()))


def decode_stream(
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    tokens: Iterable[int],
    stop: frozenset[int] = frozenset(),
) -> Iterator[str]:
    """Yield the text of tokens that follow a prompt, as soon as its characters are complete.

    A character of several bytes may be spread over several tokens. What is incomplete at the end is yielded as the
    tokenizer decodes it. Only the last tokens are decoded at each step: a window whose text ends that of all tokens.
    """
    window = list(prompt)
    shown = len(tokenizer.decode(np.array(window)))  # characters of the window's text
    for token in tokens:
        if token in stop:
            break
        window.append(token)
        text = _complete_text(tokenizer, window)
        if len(text) > shown:
            yield text[shown:]
            shown = len(text)
        if len(window) > 2 * WINDOW_TOKENS:
            window, shown = _shortened(tokenizer, window, shown)
    rest = tokenizer.decode(np.array(window))[shown:]
    if rest:
        yield rest


def _shortened(tokenizer: Tokenizer, window: list[int], shown: int) -> tuple[list[int], int]:
    """Return the last tokens of a window, and how many characters of their text were yielded.

    The window stays as it is if the last tokens do not begin with a whole character.
    """
    text = tokenizer.decode(np.array(window))
    tail = tokenizer.decode(np.array(window[-WINDOW_TOKENS:]))
    pending = len(text) - shown
    if not text.endswith(tail) or len(tail) <= pending:
        return window, shown
    return window[-WINDOW_TOKENS:], len(tail) - pending


def stop_ids(loaded: LoadedModel) -> frozenset[int]:
    """Return the tokens that end a text: end-of-text and, of a Llama-format folder, its eos_token_id.

    Raises:
        DataError: if config.json is damaged.
    """
    ids = {loaded.tokenizer.eot_id}
    if not has_run_config(loaded.folder):
        path = loaded.folder / CONFIG
        ids |= set(parse_eos_ids(read_config(path), path))
    return frozenset(ids)


def _complete_text(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """Decode ids without a character at the end whose bytes are not all there."""
    if isinstance(tokenizer, ByteTokenizer) and tokenizer.escapes:
        for distance in range(1, ESCAPE_HALVES + 1):
            if len(ids) >= distance and ids[-distance] == tokenizer.escape_id:
                ids = ids[:-distance]
                break
    text = tokenizer.decode(np.array(ids, dtype=np.int64))
    kept = text.rstrip(REPLACEMENT)
    # A long run of invalid bytes is no incomplete character: models of bytes may write them.
    return text[: max(len(kept), len(text) - MAX_PARTIAL_CHARACTERS)]


def _prompt_ids(loaded: LoadedModel, prompt: str) -> torch.Tensor:
    """Encode a prompt as a document: after the end-of-text (or BOS) token."""
    tokens = loaded.tokenizer.encode_batch([prompt])[0].tolist() if prompt else []
    return torch.tensor([loaded.tokenizer.eot_id, *tokens])


def _new_tokens(loaded: LoadedModel, ids: torch.Tensor, new_tokens: int | None) -> int:
    free = loaded.model.shape.seq_len - len(ids)
    if free < 1:
        seq_len = loaded.model.shape.seq_len
        rule = f"has {len(ids)} tokens and leaves no room for new ones: seq_len={seq_len}"
        raise ConfigError([Problem("prompt", NO_VALUE, rule, "shorten it")])
    return min(DEFAULT_NEW_TOKENS, free) if new_tokens is None else new_tokens
