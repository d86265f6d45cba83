"""Optimizer, schedule, budget, machine and tracking of one run."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from slm.config.schema.types import (
    Amount,
    Count,
    CountOrAuto,
    Fraction,
    Index,
    Name,
    NonNegative,
    OpenFraction,
    Positive,
    Size,
    section,
)


def _switch(value: object) -> object:
    """YAML reads the bare words on and off as booleans."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


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
    warmup_budget_tokens: Size | None = None
    """The budget that warmup_fraction is a share of; null is the run's own. Branches of one trunk take that of the shortest."""
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
    branches: tuple[Amount, ...] = ()
    """Smaller budgets, in the same unit, that are decayed from the same wsd trunk on the way, each recorded as a run."""

    @classmethod
    def of(cls, unit: str, amount: float, branches: tuple[float, ...] = ()) -> BudgetConfig:
        amounts: dict[str, Any] = {unit: amount}
        return cls(branches=branches, **amounts)

    @property
    def given(self) -> dict[str, float]:
        """What is set, by its unit."""
        amounts = {unit: getattr(self, unit) for unit in ("tokens", "tokens_per_param", "flops")}
        return {unit: amount for unit, amount in amounts.items() if amount is not None}

    @property
    def unit(self) -> str:
        """That of the one budget which `load_config` lets through."""
        (unit,) = self.given
        return unit

    @property
    def amount(self) -> float:
        (amount,) = self.given.values()
        return amount


@section
class TrainerConfig:
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """Where to train; auto takes a GPU when there is one."""
    strategy: Literal["single", "ddp", "fsdp"] = "single"
    """How one run uses several processes: ddp copies the model to each, fsdp cuts it into shards; a device each."""
    devices: Count = 1
    """Processes of the run on each node, as many as torchrun or srun starts there."""
    num_nodes: Count = 1
    """Nodes of the run."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic: fp32, or bf16 autocast over fp32 weights. Part of a run's identity."""
    threads: Count | None = None
    """CPU threads of the run; null takes every core."""
    micro_batch_sequences: CountOrAuto | None = None
    """Sequences per forward pass; null takes the whole global batch at once, auto the most that are predicted to fit the memory that is free."""
    compile: Annotated[Literal["auto", "on", "off"], BeforeValidator(_switch)] = "auto"
    """Compile blocks with torch.compile: auto does where it pays, for runs of minutes on CPU and of more than 1000 steps on a GPU. Changes rounding."""
    activation_checkpointing: bool = False
    """Keep the input of each block alone and run blocks again in the backward pass: less memory, about a third more time."""
    num_workers: Index = 0
    """Loader processes; 0 reads in the training process."""
    log_every_steps: Count = 10
    """Steps between rows of metrics.jsonl."""
    validate_every_steps: Count | None = None
    """Steps between validations on the way; null validates at the end only."""
    checkpoint_every_steps: Count = 500
    """Steps between checkpoints; the end and an interruption are always saved."""
    share_trunk: bool = False
    """Begin at the newest checkpoint that a run of the same wsd trunk left, and leave one where the decay begins."""
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
