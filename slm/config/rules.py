"""Rules between the keys of a config; each broken one is a Problem."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from slm.config.schema import (
    BudgetConfig,
    Config,
    DataConfig,
    ModelConfig,
    ScheduleConfig,
    TokenizerConfig,
)
from slm.config.schema.data import FILE_SOURCES, KEYS_READ_BY_SOURCE
from slm.errors import Problem

COMMIT = re.compile("[0-9a-f]{40}")


HUB_NAME = re.compile(r"(?!\.)[\w.-]+(/[\w.-]+)?")


MIN_BPE_VOCAB_SIZE = 257  # every byte, and end-of-text


SHAPE_KEYS = ("n_layers", "d_model", "n_heads", "n_kv_heads", "d_head", "d_ff")


def check_rules(config: Config) -> list[Problem]:
    """Rules between keys."""
    return [
        *_check_budget(config.budget),
        *_check_branches(config),
        *_check_shape_source(config),
        *_check_shape(config.model),
        *_check_batch(config),
        *_check_processes(config),
        *_check_attention(config),
        *_check_tokenizer(config.tokenizer),
        *_check_data(config),
        *_check_khop(config),
        *_check_schedule(config.schedule),
    ]


def _check_budget(budget: BudgetConfig) -> Iterator[Problem]:
    given = budget.given
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
    shown = list(budget.branches)
    if config.schedule.kind != "wsd":
        rule = "only wsd has a trunk to branch from"
        yield Problem("budget.branches", shown, rule, "schedule=wsd, or a run for each budget")
    if max(budget.branches) >= budget.amount:
        rule = f"must lie below budget.{budget.unit}={budget.amount:g}, which is the longest branch"
        yield Problem("budget.branches", shown, rule, "leave that one out")
    if budget.unit == "tokens" and any(end % 1 for end in budget.branches):
        yield Problem("budget.branches", shown, "tokens are whole numbers")


def _check_shape_source(config: Config) -> Iterator[Problem]:
    explicit = [key for key in SHAPE_KEYS if getattr(config.model, key) is not None]
    counterpart = config.model.preset is not None and config.size is None
    solved = config.size is not None or config.family.aspect_ratio is not None
    if explicit and solved and not counterpart:
        origin = f"size={config.size} and family={config.family.name}"
        yield Problem(
            f"model.{explicit[0]}",
            getattr(config.model, explicit[0]),
            f"an explicit shape beside {origin}, which would solve for one",
            "add family=custom size=null to give every dimension yourself",
        )
    elif explicit:
        for key in ("n_layers", "d_model", "n_heads"):
            if getattr(config.model, key) is None:
                yield Problem(f"model.{key}", None, "is needed for an explicit shape")
    elif config.size is None:
        fix = "for example size=200k, or a preset such as model=tiny"
        yield Problem("size", None, "no shape is given", fix)
    elif config.family.aspect_ratio is None:
        fix = "choose family=deep_thin, balanced or wide_shallow"
        yield Problem("family.aspect_ratio", None, "is needed to solve a shape for `size`", fix)
    elif config.ladder.d_head % 2:
        near, rule = config.ladder.d_head + 1, "rotary embeddings need an even head width"
        yield Problem("ladder.d_head", config.ladder.d_head, rule, f"nearest: {near}")


def _check_shape(model: ModelConfig) -> Iterator[Problem]:
    if model.d_model is None or model.n_heads is None:
        return
    n_kv_heads = model.n_kv_heads or model.n_heads
    if model.n_heads % n_kv_heads:
        near = _nearest_divisor(model.n_heads, n_kv_heads)
        yield Problem(
            "model.n_kv_heads",
            n_kv_heads,
            f"must divide n_heads={model.n_heads}",
            f"nearest: {near}",
        )
    if model.d_head is None and model.d_model % model.n_heads:
        near = max(1, round(model.d_model / model.n_heads)) * model.n_heads
        yield Problem(
            "model.d_model", model.d_model, f"must be a multiple of n_heads={model.n_heads}",
            f"nearest: {near}",
        )  # fmt: skip
        return
    d_head = model.d_head or model.d_model // model.n_heads
    if d_head % 2:
        rule = "rotary embeddings need an even head width"
        yield Problem("model.d_head", d_head, rule, f"nearest: {d_head + 1}")
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
    rows = -(-sequences // (config.trainer.devices * config.trainer.num_nodes))
    if isinstance(micro, int) and sequences % micro and rows % micro:
        rule = f"must divide the {sequences} sequences of a global batch"
        if rows < sequences:
            rule += f", or the {rows} of one process"
        near = _nearest_divisor(rows, micro)
        yield Problem("trainer.micro_batch_sequences", micro, rule, f"nearest: {near}")


def _check_processes(config: Config) -> Iterator[Problem]:
    trainer = config.trainer
    processes = trainer.devices * trainer.num_nodes
    sequences = config.optimizer.global_batch_tokens // config.model.seq_len
    if trainer.strategy == "single" and processes > 1:
        key = "devices" if trainer.devices > 1 else "num_nodes"
        rule = "trainer.strategy=single is one process with one device"
        yield Problem(f"trainer.{key}", getattr(trainer, key), rule, "trainer=ddp or trainer=fsdp")
    elif processes > max(sequences, 1):
        rule = f"{processes} processes have no sequence each of a global batch of {sequences}"
        fix = f"at most {sequences}, or raise optimizer.global_batch_tokens"
        yield Problem("trainer.devices", trainer.devices, rule, fix)


def _check_attention(config: Config) -> Iterator[Problem]:
    if config.model.attention != "flash":
        return
    for key, value in (("precision", "fp32"), ("accelerator", "cpu")):
        if getattr(config.trainer, key) == value:
            rule = "model.attention=flash runs on CUDA in bf16"
            yield Problem(f"trainer.{key}", value, rule, "trainer=gpu, or model.attention=sdpa")


def _check_tokenizer(tokenizer: TokenizerConfig) -> Iterator[Problem]:
    kind, size = tokenizer.kind, tokenizer.vocab_size
    if kind == "bpe" and size is None:
        yield Problem("tokenizer.vocab_size", None, "is needed for a bpe", "for example 2048")
    if kind == "bpe" and size is not None and size < MIN_BPE_VOCAB_SIZE:
        rule = f"a byte-level bpe has at least {MIN_BPE_VOCAB_SIZE} entries"
        yield Problem("tokenizer.vocab_size", size, rule, f"nearest: {MIN_BPE_VOCAB_SIZE}")
    if kind != "bpe" and size is not None:
        yield Problem(
            "tokenizer.vocab_size", size, f"tokenizer {kind} fixes its own", "set it to null"
        )
    if kind == "file" and tokenizer.path is None:
        fix = "a tokenizer.json, or a folder with GPT-2's vocab.json and merges.txt"
        yield Problem("tokenizer.path", None, "is needed for kind=file", fix)
    for key in ("path", "end_of_text"):
        value = getattr(tokenizer, key)
        if kind != "file" and value is not None:
            yield Problem(f"tokenizer.{key}", value, "is read by kind=file alone", "tokenizer=file")


def _check_data(config: Config) -> Iterator[Problem]:
    data = config.data
    needed = "files" if data.source in FILE_SOURCES else "repo" if data.source == "hub" else None
    if needed and not getattr(data, needed) and data.prepared is None:
        example = "data.files=[corpus/*.txt]" if needed == "files" else "data.repo=owner/name"
        rule = f"is needed for data.source={data.source}"
        yield Problem(f"data.{needed}", None, rule, f"for example {example}")
    for key in sorted({key for keys in KEYS_READ_BY_SOURCE.values() for key in keys}):
        value = getattr(data, key)
        if key not in KEYS_READ_BY_SOURCE[data.source] and value != getattr(DataConfig(), key):
            readers = ", ".join(
                source for source, keys in KEYS_READ_BY_SOURCE.items() if key in keys
            )
            shown = list(value) if isinstance(value, tuple) else value
            rule = f"is not read by data.source={data.source}"
            yield Problem(f"data.{key}", shown, rule, f"data={readers} reads it")
    is_on_hub = data.source == "hub" and data.repo and not Path(data.repo).is_dir()
    if is_on_hub and not HUB_NAME.fullmatch(data.repo or ""):
        rule = "is neither a folder that exists nor a name of the hub's"
        yield Problem("data.repo", data.repo, rule, "owner/name")
    elif is_on_hub and not COMMIT.fullmatch(data.revision or ""):
        rule = "must be a commit of the dataset, 40 hexadecimal digits, so that it cannot change"
        yield Problem("data.revision", data.revision, rule, "the hub shows it under Files, History")
    if data.new_document is not None:
        try:
            re.compile(data.new_document)
        except re.error as error:
            rule = f"is not a regular expression ({error})"
            yield Problem("data.new_document", data.new_document, rule)


def _check_khop(config: Config) -> Iterator[Problem]:
    data, is_task = config.data, config.data.source == "khop"
    if is_task != (config.tokenizer.kind == "symbols"):
        rule = "tokenizer=symbols and data=khop need each other"
        yield Problem("tokenizer.kind", config.tokenizer.kind, rule, "choose data=khop alone")
    if is_task and data.khop_alphabet < 3:
        rule = "symbols that never repeat need at least 3, or there is one string"
        yield Problem("data.khop_alphabet", data.khop_alphabet, rule, "nearest: 3")
    needed_len = data.khop_alphabet * data.khop_max_hops
    if is_task and config.model.seq_len < needed_len:
        rule = f"must be at least data.khop_alphabet * data.khop_max_hops={needed_len}"
        fix = "from most positions of a shorter sequence so many hops lead nowhere"
        yield Problem("model.seq_len", config.model.seq_len, rule, fix)
    if is_task and data.val_tokens is None:
        yield Problem("data.val_tokens", None, "is needed: data=khop never ends", "16384")
    if is_task and config.model.document_mask:
        rule = "data=khop has no documents"
        yield Problem("model.document_mask", True, rule, "set it to false")


def _check_schedule(schedule: ScheduleConfig) -> Iterator[Problem]:
    if schedule.kind == "wsd" and schedule.warmup_fraction + schedule.decay_fraction > 1:
        rule = f"and schedule.decay_fraction={schedule.decay_fraction:g} overlap"
        fix = f"at most {1 - schedule.decay_fraction:g}"
        yield Problem("schedule.warmup_fraction", schedule.warmup_fraction, rule, fix)


def _nearest_divisor(of: int, to: int) -> int:
    return min((n for n in range(1, of + 1) if of % n == 0), key=lambda n: abs(n - to))
