"""Keys of the optimizer, schedule, budget, trainer and tracking of one run."""

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
    ShareOfOne,
    Size,
    section,
)


def _switch(value: object) -> object:
    """Convert booleans to on and off: YAML parses the unquoted words on and off as booleans."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


@section
class OptimizerConfig:
    lr: Positive = 4e-3
    """Peak learning rate of AdamW."""
    beta1: OpenFraction = 0.9
    """AdamW decay rate of the first moment."""
    beta2: OpenFraction = 0.95
    """AdamW decay rate of the second moment."""
    eps: Positive = 1e-8
    """Epsilon of AdamW."""
    weight_decay: NonNegative = 0.1
    """Decoupled weight decay of the matrices and the embedding; norm gains are not decayed."""
    grad_clip: Positive | None = 1.0
    """Maximum global gradient norm; null turns clipping off."""
    z_loss: NonNegative = 0.0
    """Weight of the z-loss in the objective: the mean squared log-partition of the logits. 1e-4 is usual;
    reported losses do not include it."""
    global_batch_tokens: Count = 4096
    """Tokens per optimizer step, summed over devices and micro-batches; a multiple of model.seq_len."""


@section
class ScheduleConfig:
    kind: Literal["wsd", "cosine"] = "wsd"
    """wsd: warmup, constant (stable), linear decay. cosine: warmup, then half a cosine."""
    warmup_fraction: Fraction = 0.02
    """Share of the token budget used for warmup; the warmup is at most tokens_per_param=1 long."""
    warmup_budget_tokens: Size | None = None
    """Token budget that warmup_fraction is a share of; null means the budget of the run or, with
    budget.branches, the shortest budget of the trunk."""
    decay_fraction: Fraction = 0.2
    """Share of the token budget used for the linear decay of wsd."""
    final_lr_fraction: Fraction = 0.0
    """Learning rate at the end of the budget, as a share of the peak."""


@section
class BudgetConfig:
    tokens: Size | None = None
    """Training tokens, rounded to whole global batches."""
    tokens_per_param: Positive | None = None
    """Training tokens divided by N_flop = f/6, where f is the training FLOPs per token of the rung or of the
    explicit shape."""
    flops: Positive | None = None
    """Training FLOPs, counted as in result.json."""
    branches: tuple[Amount, ...] = ()
    """Smaller budgets in the same unit, decayed from the same wsd trunk; each is recorded as a run."""

    @classmethod
    def of(cls, unit: str, amount: float, branches: tuple[float, ...] = ()) -> BudgetConfig:
        """Build a budget from its unit (`tokens`, `tokens_per_param` or `flops`) and its amount."""
        amounts: dict[str, Any] = {unit: amount}
        return cls(branches=branches, **amounts)

    @property
    def given(self) -> dict[str, float]:
        """Return the amounts that are not null, by unit."""
        amounts = {unit: getattr(self, unit) for unit in ("tokens", "tokens_per_param", "flops")}
        return {unit: amount for unit, amount in amounts.items() if amount is not None}

    @property
    def unit(self) -> str:
        """Return the unit of the budget; `load_config` guarantees that there is exactly one."""
        (unit,) = self.given
        return unit

    @property
    def amount(self) -> float:
        (amount,) = self.given.values()
        return amount


@section
class TrainerConfig:
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """Device to train on; auto uses a GPU if there is one."""
    strategy: Literal["single", "ddp", "fsdp"] = "single"
    """Distribution of one run over processes, one device each. ddp: every process holds the whole model. fsdp:
    every process holds a shard of it."""
    devices: Count = 1
    """Processes of the run on each node; must equal the number that torchrun or srun starts there."""
    num_nodes: Count = 1
    """Number of nodes of the run."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """fp32, or bf16 autocast with fp32 weights. Part of a run's identity."""
    deterministic: bool = False
    """Use only deterministic kernels, for a bit-for-bit resume on a GPU; slower. Runs on a CPU resume bit for bit
    without it."""
    threads: Count | None = None
    """CPU threads of the run; null uses every core. On a GPU, at most the cores per process are used."""
    gpu_memory_fraction: ShareOfOne | None = None
    """Share of the GPU's memory that one process of the run may use; null means all of it. The launchers set it
    where several jobs share a GPU."""
    micro_batch_sequences: CountOrAuto | None = None
    """Sequences per forward pass. null: the whole global batch at once. auto: the largest number predicted to
    fit in the free memory."""
    compile: Annotated[Literal["auto", "on", "off"], BeforeValidator(_switch)] = "auto"
    """Compile the blocks with torch.compile; changes rounding. auto: on a CPU, runs whose shortest budget has at least
    2e13 FLOPs or 40,000 passes through blocks (steps x layers x micro-batches), so more often deep shapes; on a GPU,
    runs whose shortest budget is predicted to take two minutes without compilation."""
    activation_checkpointing: bool = False
    """Store only the input of each block and recompute the block in the backward pass: less memory, about a
    third more time."""
    num_workers: Index = 0
    """Dataloader processes; 0 loads in the training process."""
    log_every_steps: Count = 10
    """Steps between rows of metrics.jsonl."""
    validate_every_steps: Count | None = None
    """Steps between validations; null validates only at the end."""
    checkpoint_every_steps: Count = 500
    """Steps between checkpoints; a checkpoint is always written at the end and when a signal stops the run."""
    share_trunk: bool = False
    """Start from the newest checkpoint of the same wsd trunk, and write one where the decay starts."""
    progress: bool = True
    """Show a progress bar."""

    @property
    def processes(self) -> int:
        """Return the number of processes of a run on all nodes, one device each."""
        return self.devices * self.num_nodes


@section
class TrackingConfig:
    wandb: Literal["offline", "auto", "online", "disabled"] = "offline"
    """W&B mirror of the run. auto: online if logged in and the host answers within seconds, else offline. online
    warns when it has to fall back to offline."""
    project: Name = "slm"
    """W&B project."""
    entity: str | None = None
    """W&B user or team; null means the default of the W&B login."""
