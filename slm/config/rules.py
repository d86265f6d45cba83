"""Rules between the keys of a config; each broken rule becomes a Problem."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import is_dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from slm.config.schema import Config, DataConfig
from slm.config.schema.data import FILE_SOURCES, KEYS_READ_BY_SOURCE
from slm.errors import Problem

COMMIT = re.compile("[0-9a-f]{40}")
HUB_NAME = re.compile(r"(?!\.)[\w.-]+(/[\w.-]+)?")
MIN_BPE_VOCAB_SIZE = 257  # 256 bytes and the end-of-text token
MAX_DIVISOR = 100_000  # the search for the nearest divisor takes milliseconds
EVEN_D_HEAD = "must be even, because RoPE rotates pairs of dimensions"
KEYS_OF_SOURCES = sorted({key for keys in KEYS_READ_BY_SOURCE.values() for key in keys})
SHAPE_KEYS = ("n_layers", "d_model", "n_heads", "n_kv_heads", "d_head", "d_ff")


class _InvalidKeyRead(Exception):
    """A rule reads a key whose value is invalid."""


def check_rules(config: Config, invalid: Collection[str]) -> list[Problem]:
    """Return a Problem for every broken rule between keys.

    Args:
        invalid: dotted keys whose values are invalid. A rule ends where it reads one of them.
    """
    readable = _guard(config, invalid)
    problems: list[Problem] = []
    for rule in RULES:
        with suppress(_InvalidKeyRead):
            for problem in rule(readable):
                problems.append(problem)
    return problems


def _guard(section: Any, invalid: Collection[str]) -> Any:
    """Return a copy of a section of the config, in which reading an invalid key raises `_InvalidKeyRead`."""

    def end_rule(_: object) -> NoReturn:
        raise _InvalidKeyRead

    inner: dict[str, list[str]] = {}
    for key in invalid:
        name, _, rest = key.partition(".")
        inner.setdefault(name, []).append(rest)
    # A property of a subclass is read instead of the attribute of the instance, by methods of the section too.
    unreadable = {name: property(end_rule) for name, rests in inner.items() if "" in rests}
    kind = type(section.__class__.__name__, (section.__class__,), unreadable)
    copied: Any = object.__new__(kind)
    copied.__dict__.update(section.__dict__)
    for name, rests in inner.items():
        if name not in unreadable and is_dataclass(copied.__dict__.get(name)):
            copied.__dict__[name] = _guard(copied.__dict__[name], rests)
    return copied


def _check_budget(config: Config) -> Iterator[Problem]:
    given = config.budget.given
    if not given:
        fix = "set budget.tokens, budget.tokens_per_param or budget.flops"
        yield Problem("budget", None, "no budget is given", fix)
    if len(given) > 1:
        kept, *others = given
        fix = f"keep one, e.g. budget={kept} or " + " ".join(f"budget.{o}=null" for o in others)
        yield Problem(
            "budget", ", ".join(f"{k}: {v}" for k, v in given.items()), "more than one budget", fix
        )


def _check_branches(config: Config) -> Iterator[Problem]:
    budget = config.budget
    if not budget.branches or len(budget.given) != 1:
        return
    branches = list(budget.branches)
    if config.schedule.kind != "wsd":
        rule = f"schedule.kind={config.schedule.kind} has no trunk to branch from: only wsd has a trunk"
        yield Problem(
            "budget.branches", branches, rule, "set schedule=wsd, or run each budget alone"
        )
    if max(budget.branches) >= budget.amount:
        rule = f"must be below budget.{budget.unit}={budget.amount:g}, the longest budget"
        yield Problem("budget.branches", branches, rule, "remove the larger values")
    if budget.unit == "tokens" and any(end % 1 for end in budget.branches):
        yield Problem("budget.branches", branches, "must be whole numbers of tokens", "round them")


def _check_shape_source(config: Config) -> Iterator[Problem]:
    explicit = [key for key in SHAPE_KEYS if getattr(config.model, key) is not None]
    has_preset_only = config.model.preset is not None and config.size is None
    conflicts = [] if config.size is None else [f"size={config.size}"]
    if config.family.aspect_ratio is not None:
        conflicts.append(f"family={config.family.name}")
    if explicit and conflicts and not has_preset_only:
        yield Problem(
            f"model.{explicit[0]}",
            getattr(config.model, explicit[0]),
            f"conflicts with {' and '.join(conflicts)}, from which the shape is computed",
            "add family=custom size=null to set every dimension yourself",
        )
    elif explicit:
        for key in ("n_layers", "d_model", "n_heads"):
            if getattr(config.model, key) is None:
                rule = f"is needed because model.{explicit[0]} is set"
                yield Problem(f"model.{key}", None, rule, f"set model.{key}")
    elif config.size is None:
        fix = "set size, for example size=200k, or choose a preset such as model=tiny"
        yield Problem("size", None, "the config defines no shape", fix)
    elif config.family.aspect_ratio is None:
        fix = "set it, or choose family=deep_thin, balanced or wide_shallow"
        yield Problem("family.aspect_ratio", None, "is needed to compute the shape from size", fix)
    elif config.ladder.d_head % 2:
        near = config.ladder.d_head + 1
        yield Problem("ladder.d_head", config.ladder.d_head, EVEN_D_HEAD, f"nearest: {near}")


def _check_shape(config: Config) -> Iterator[Problem]:
    model = config.model
    if model.d_model is None or model.n_heads is None:
        return
    n_kv_heads = model.n_kv_heads or model.n_heads
    if model.n_heads % n_kv_heads:
        near = _nearest_divisor(model.n_heads, n_kv_heads)
        rule = f"must divide n_heads={model.n_heads}"
        yield Problem("model.n_kv_heads", n_kv_heads, rule, f"nearest: {near}")
    if model.d_head is None and model.d_model % model.n_heads:
        near = max(1, round(model.d_model / model.n_heads)) * model.n_heads
        rule = f"must be a multiple of n_heads={model.n_heads}"
        yield Problem("model.d_model", model.d_model, rule, f"nearest: {near}")
        return
    d_head = model.d_head or model.d_model // model.n_heads
    if d_head % 2:
        yield Problem("model.d_head", d_head, EVEN_D_HEAD, f"nearest: {d_head + 1}")
    if d_head * model.n_heads != model.d_model:
        rule = f"n_heads * d_head must equal d_model={model.d_model}"
        yield Problem("model.d_head", d_head, rule, f"nearest: {model.d_model / model.n_heads:g}")


def _check_batch(config: Config) -> Iterator[Problem]:
    tokens, seq_len = config.optimizer.global_batch_tokens, config.model.seq_len
    if tokens % seq_len:
        near = max(1, round(tokens / seq_len)) * seq_len
        rule = f"must be a multiple of model.seq_len={seq_len}"
        yield Problem("optimizer.global_batch_tokens", tokens, rule, f"nearest: {near}")
        return
    micro, sequences = config.trainer.micro_batch_sequences, tokens // seq_len
    rows = -(-sequences // config.trainer.processes)
    if isinstance(micro, int) and sequences % micro and rows % micro:
        rule = f"must divide the {sequences} sequences of optimizer.global_batch_tokens={tokens}"
        if rows < sequences:
            rule += f", or the {rows} sequences of one process"
        near = _nearest_divisor(rows, micro)
        yield Problem("trainer.micro_batch_sequences", micro, rule, f"nearest: {near}")


def _check_processes(config: Config) -> Iterator[Problem]:
    trainer = config.trainer
    processes = trainer.processes
    batch_tokens = config.optimizer.global_batch_tokens
    sequences = batch_tokens // config.model.seq_len
    if trainer.strategy == "single" and processes > 1:
        key = "devices" if trainer.devices > 1 else "num_nodes"
        rule = "trainer.strategy=single runs one process on one device"
        yield Problem(f"trainer.{key}", getattr(trainer, key), rule, "set trainer=ddp or fsdp")
    elif processes > max(sequences, 1):
        rule = f"{processes} processes, but optimizer.global_batch_tokens={batch_tokens} is only {sequences} sequences"
        fix = f"use at most {sequences} processes, or raise optimizer.global_batch_tokens"
        yield Problem("trainer.devices", trainer.devices, rule, fix)


def _check_attention(config: Config) -> Iterator[Problem]:
    if config.model.attention != "flash":
        return
    for key, value in (("precision", "fp32"), ("accelerator", "cpu")):
        if getattr(config.trainer, key) == value:
            rule = "model.attention=flash needs a CUDA device and bf16"
            fix = "set trainer=gpu, or model.attention=sdpa"
            yield Problem(f"trainer.{key}", value, rule, fix)


def _check_vocab_size(config: Config) -> Iterator[Problem]:
    kind, size = config.tokenizer.kind, config.tokenizer.vocab_size
    if kind == "bpe" and size is None:
        rule = "is needed for tokenizer.kind=bpe"
        yield Problem("tokenizer.vocab_size", None, rule, "set it, for example to 2048")
    if kind == "bpe" and size is not None and size < MIN_BPE_VOCAB_SIZE:
        rule = "is too small for the 256 bytes and the end-of-text token of a byte-level BPE"
        yield Problem("tokenizer.vocab_size", size, rule, f"nearest: {MIN_BPE_VOCAB_SIZE}")
    if kind != "bpe" and size is not None:
        rule = f"the vocabulary of tokenizer.kind={kind} is fixed"
        yield Problem("tokenizer.vocab_size", size, rule, "set it to null")


def _check_tokenizer_file(config: Config) -> Iterator[Problem]:
    if config.tokenizer.kind == "file" and config.tokenizer.path is None:
        fix = "set it to a tokenizer.json, a tokenizer.model, or a folder with GPT-2's vocab.json and merges.txt"
        yield Problem("tokenizer.path", None, "is needed for tokenizer.kind=file", fix)


def _check_unused_tokenizer_key(key: str, config: Config) -> Iterator[Problem]:
    kind, value = config.tokenizer.kind, getattr(config.tokenizer, key)
    if kind != "file" and value is not None:
        rule = f"has no effect with tokenizer.kind={kind}"
        yield Problem(f"tokenizer.{key}", value, rule, "set tokenizer=file, or remove it")


def _check_data_source(config: Config) -> Iterator[Problem]:
    data = config.data
    needed = "files" if data.source in FILE_SOURCES else "repo" if data.source == "hub" else None
    if needed and not getattr(data, needed) and data.prepared is None:
        suffix = "txt" if data.source == "text_files" else data.source
        example = f"files=[corpus/*.{suffix}]" if needed == "files" else "repo=owner/name"
        rule = f"is needed for data.source={data.source}"
        yield Problem(f"data.{needed}", None, rule, f"set it, for example data.{example}")


def _check_unused_data_key(key: str, config: Config) -> Iterator[Problem]:
    source, value = config.data.source, getattr(config.data, key)
    if key not in KEYS_READ_BY_SOURCE[source] and value != getattr(DataConfig(), key):
        readers = [each for each, keys in KEYS_READ_BY_SOURCE.items() if key in keys]
        value = list(value) if isinstance(value, tuple) else value
        rule = f"has no effect with data.source={source}"
        yield Problem(f"data.{key}", value, rule, f"remove it, or set data={' or '.join(readers)}")


def _check_hub(config: Config) -> Iterator[Problem]:
    data = config.data
    is_on_hub = data.source == "hub" and data.repo and not Path(data.repo).is_dir()
    if is_on_hub and not HUB_NAME.fullmatch(data.repo or ""):
        rule = "is neither an existing folder nor the name of a dataset on the Hugging Face hub"
        yield Problem("data.repo", data.repo, rule, "use owner/name")
    elif is_on_hub and not COMMIT.fullmatch(data.revision or ""):
        rule = "must be a commit hash of the dataset (40 hexadecimal digits)"
        fix = "copy it from Files, History on the page of the dataset"
        yield Problem("data.revision", data.revision, rule, fix)


def _check_new_document(config: Config) -> Iterator[Problem]:
    pattern = config.data.new_document
    if pattern is not None:
        try:
            re.compile(pattern)
        except re.error as error:
            rule = f"is not a valid regular expression: {error}"
            yield Problem("data.new_document", pattern, rule)


def _check_symbols(config: Config) -> Iterator[Problem]:
    source, kind = config.data.source, config.tokenizer.kind
    if (source == "khop") != (kind == "symbols"):
        rule = f"tokenizer.kind=symbols is for data.source=khop only, not for {source}"
        if source == "khop":
            rule = "data.source=khop needs tokenizer.kind=symbols"
        yield Problem("tokenizer.kind", kind, rule, "data=khop sets both")


def _check_khop_length(config: Config) -> Iterator[Problem]:
    data = config.data
    if data.source != "khop":
        return
    if data.khop_alphabet < 3:
        rule = "must be at least 3: adjacent symbols differ, so 2 symbols can only alternate"
        yield Problem("data.khop_alphabet", data.khop_alphabet, rule, "nearest: 3")
    needed_len = data.khop_alphabet * data.khop_max_hops
    if config.model.seq_len < needed_len:
        rule = f"must be at least data.khop_alphabet * data.khop_max_hops={needed_len}: "
        rule += "in a shorter sequence most positions have no target"
        yield Problem("model.seq_len", config.model.seq_len, rule, f"nearest: {needed_len}")


def _check_khop_documents(config: Config) -> Iterator[Problem]:
    if config.data.source == "khop" and config.model.document_mask:
        rule = "data.source=khop has no documents"
        yield Problem("model.document_mask", True, rule, "set it to false")


def _check_khop_validation(config: Config) -> Iterator[Problem]:
    if config.data.source == "khop" and config.data.val_tokens is None:
        rule = "is needed: data.source=khop has no last sequence"
        yield Problem("data.val_tokens", None, rule, "set it, for example to 65536")


def _check_schedule(config: Config) -> Iterator[Problem]:
    schedule = config.schedule
    if schedule.kind == "wsd" and schedule.warmup_fraction + schedule.decay_fraction > 1:
        rule = f"warmup_fraction + decay_fraction exceeds 1 (schedule.decay_fraction={schedule.decay_fraction:g})"
        fix = f"use at most {1 - schedule.decay_fraction:g}"
        yield Problem("schedule.warmup_fraction", schedule.warmup_fraction, rule, fix)


def _nearest_divisor(number: int, target: int) -> int:
    divisors = (n for n in range(1, min(number, MAX_DIVISOR) + 1) if number % n == 0)
    return min(divisors, key=lambda n: abs(n - target))


RULES: tuple[Callable[[Config], Iterator[Problem]], ...] = (
    _check_budget,
    _check_branches,
    _check_shape_source,
    _check_shape,
    _check_batch,
    _check_processes,
    _check_attention,
    _check_vocab_size,
    _check_tokenizer_file,
    *(partial(_check_unused_tokenizer_key, key) for key in ("path", "end_of_text")),
    _check_data_source,
    *(partial(_check_unused_data_key, key) for key in KEYS_OF_SOURCES),
    _check_hub,
    _check_new_document,
    _check_symbols,
    _check_khop_length,
    _check_khop_documents,
    _check_khop_validation,
    _check_schedule,
)
