"""Settings of an evaluation, and presets of published protocols that explicit keys override."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from slm.architecture.shapes import ModelShape
from slm.errors import NO_VALUE, ConfigError, Problem, nearest
from slm.evaluation.texts import DOCUMENTS, WIKITEXT2
from slm.formatting import count

ProtocolName = Literal["seed", "mobilellm"]
DTYPES = ("fp32", "bf16")
MAX_LISTED = 3  # models in a message
# Zero-shot tasks of Liu et al. 2024 (MobileLLM, arXiv 2402.14905), table 3, in its order.
MOBILELLM_TASKS = (
    "arc_easy", "arc_challenge", "boolq", "piqa", "social_iqa", "hellaswag", "openbookqa", "winogrande",
)  # fmt: skip
# The seed's perplexities are those of the loop in the transformers guide "Perplexity of fixed-length models" on the
# rows of WikiText-2 joined by blank lines. Its first token is not scored.
PROTOCOLS: Mapping[str, Mapping[str, Any]] = {
    "seed": {
        "text": WIKITEXT2,
        "window": 1024,
        "stride": 512,
        "document": "joined",
        "start_token": False,
    },
    "mobilellm": {"tasks": MOBILELLM_TASKS},
}
DEFAULTS: Mapping[str, Any] = {"document": "file", "start_token": True, "tasks": ()}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured, and how.

    Attributes:
        protocol: name of the preset, or None.
        changes: keys whose value replaces that of the preset, as text such as `window=128 instead of 1024`.
        text: pattern of text files, `wikitext2`, or None.
        window: length of a window in tokens; None means the seq_len of each model.
        stride: distance of two windows in tokens; None means half a window.
        document: unit that is scored as one document.
        column: column with the text of .jsonl and .parquet files.
        start_token: whether the end-of-text token precedes each document.
        tasks: names of zero-shot tasks.
        task_data: folder with TASK.jsonl files, or None for the hub.
        limit: number of examples per task, or None for all.
        speed: whether speed and memory are measured, with the following settings.
        prompt_tokens, new_tokens: length of the prompt and of its continuation.
        rounds: number of timed repetitions.
        dtype: fp32 or bf16, of the weights and activations whose speed is measured.
    """

    protocol: str | None = None
    changes: tuple[str, ...] = ()
    text: str | None = None
    window: int | None = None
    stride: int | None = None
    document: str = "file"
    column: str = "text"
    start_token: bool = True
    tasks: tuple[str, ...] = ()
    task_data: Path | None = None
    limit: int | None = None
    speed: bool = False
    prompt_tokens: int = 64
    new_tokens: int = 128
    rounds: int = 3
    dtype: str = "fp32"

    def window_of(self, seq_len: int) -> int:
        return self.window or seq_len

    def stride_of(self, seq_len: int) -> int:
        return self.stride or max(1, self.window_of(seq_len) // 2)

    def as_dict(self) -> dict[str, Any]:
        """Return values for JSON."""
        values = asdict(self)
        return values | {"task_data": None if self.task_data is None else str(self.task_data)}


def resolve_settings(protocol: str | None, given: Mapping[str, Any]) -> Settings:
    """Merge the explicit settings, the preset and the defaults, in this order; None means not given.

    Raises:
        ConfigError: for an unknown name or an impossible value; all problems together.
    """
    if protocol is not None and protocol not in PROTOCOLS:
        fix = nearest(protocol, PROTOCOLS)
        raise ConfigError([Problem("protocol", protocol, "unknown protocol", fix)])
    preset = dict(PROTOCOLS.get(protocol or "", {}))
    explicit = {key: value for key, value in given.items() if value not in (None, ())}
    if "window" in explicit and "stride" in preset:
        # half of the given window, as in the preset
        explicit.setdefault("stride", max(1, explicit["window"] // 2))
    changes = tuple(
        f"{key}={_text(explicit[key])} instead of {_text(preset[key])}"
        for key in preset
        if key in explicit and explicit[key] != preset[key]
    )
    settings = Settings(**{**DEFAULTS, **preset, **explicit}, protocol=protocol, changes=changes)
    settings = replace(settings, tasks=tuple(settings.tasks))
    if problems := list(_problems(settings)):
        raise ConfigError(problems)
    return settings


def _problems(settings: Settings) -> list[Problem]:
    problems = []
    if settings.text is None and not settings.tasks and not settings.speed:
        rule = "nothing to measure"
        problems.append(
            Problem(
                "text", NO_VALUE, rule, "give text=FILES, tasks=NAMES, protocol=NAME or --speed"
            )
        )
    if settings.document not in DOCUMENTS:
        fix = nearest(settings.document, DOCUMENTS)
        problems.append(Problem("document", settings.document, "unknown unit", fix))
    if settings.dtype not in DTYPES:
        problems.append(Problem("dtype", settings.dtype, "must be fp32 or bf16"))
    for key, least in (
        ("window", 2), ("stride", 1), ("limit", 1), ("prompt_tokens", 1), ("new_tokens", 2), ("rounds", 1),
    ):  # fmt: skip
        value = getattr(settings, key)
        if value is not None and value < least:
            problems.append(Problem(key, value, f"must be at least {least}"))
    if settings.window and settings.stride and settings.stride >= settings.window:
        rule = f"must be less than window={settings.window}"
        problems.append(
            Problem("stride", settings.stride, rule, f"use {max(1, settings.window // 2)}")
        )
    return problems


def check_lengths(settings: Settings, shapes: Mapping[str, ModelShape]) -> None:
    """Check that the windows fit every model.

    Raises:
        ConfigError: with the models that are too short, and the largest value that fits all.
    """
    problems = []
    shortest = min(shape.seq_len for shape in shapes.values())
    if settings.text is not None and settings.window is not None:
        rule = _too_short(settings.window, shapes)
        if rule:
            fix = f"window={shortest} fits all; the table states the window"
            problems.append(Problem("window", settings.window, rule, fix))
    elif settings.text is not None and settings.stride is not None and settings.stride >= shortest:
        rule = f"must be less than the window, which is {shortest}, the seq_len of a model"
        problems.append(Problem("stride", settings.stride, rule, f"use {max(1, shortest // 2)}"))
    if problems:
        raise ConfigError(problems)


def _too_short(length: int, shapes: Mapping[str, ModelShape]) -> str:
    """Return which models have fewer positions than `length`; empty if none."""
    short = [f"{name} has {s.seq_len}" for name, s in shapes.items() if s.seq_len < length]
    if not short:
        return ""
    lengths = {shape.seq_len for shape in shapes.values()}
    if len(lengths) == 1:
        return f"exceeds the models' seq_len, {min(lengths)}"
    more = f" and {len(short) - MAX_LISTED} more" if len(short) > MAX_LISTED else ""
    models = f"{len(short)} of {count(len(shapes), 'model')}"
    return f"exceeds the seq_len of {models}: {', '.join(short[:MAX_LISTED])}{more}"


def split_names(names: str | Sequence[str]) -> tuple[str, ...]:
    """Return the names in `a,b` or in a sequence."""
    parts = names.split(",") if isinstance(names, str) else names
    return tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(value) if isinstance(value, tuple) else str(value)
