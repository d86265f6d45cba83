"""Choice of the micro-batch size: the configured one, or the largest that fits into memory. Torch-free.

Each rank splits its sequences of a global batch into micro-batches of equal size and accumulates their
gradients. The size changes memory, speed and rounding; it is recorded, but is not part of a run's identity.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from slm.architecture.memory import (
    Execution,
    MemoryPlan,
    divisors,
    format_bytes,
    largest_micro_batch,
    plan_memory,
)
from slm.config.schema import Config
from slm.errors import ConfigError, Problem
from slm.run.spec import RunSpec

# Fraction of the free memory that a plan leaves unused. The CUDA allocator loses some memory to
# fragmentation, and libraries allocate buffers. On CPUs, malloc held up to 1.5 times the tensors' size.
MARGINS = {"gpu": 0.1, "cpu": 1 / 3}
PLANNED_GPU_BYTES = 80e9  # assumed where no device is present


@dataclass(frozen=True)
class MicroBatch:
    """Size of a micro-batch on one rank, with the memory that it is predicted to need."""

    sequences: int
    rank_sequences: int
    """Sequences of a global batch that one rank computes."""
    plan: MemoryPlan

    @property
    def count(self) -> int:
        """Micro-batches per optimizer step and rank."""
        return math.ceil(self.rank_sequences / self.sequences)

    @property
    def summary(self) -> str:
        """For example "4 micro-batches of 8 sequences"."""
        batches = f"{self.count} micro-batches" if self.count > 1 else "1 micro-batch"
        return f"{batches} of {self.sequences} sequence{'s' if self.sequences > 1 else ''}"

    def as_dict(self) -> dict[str, Any]:
        return {
            "micro_batch_sequences": self.sequences,
            "micro_batches": self.count,
            "plan": self.plan.as_dict(),
        }


def micro_batch_of(spec: RunSpec, accelerator: str, sequences: int | None = None) -> MicroBatch:
    """Plan a micro-batch of `sequences`, by default the configured number (auto: the largest for 80 GB)."""
    execution, rank_sequences = execution_of(spec.config, accelerator), count_rank_sequences(spec)
    if sequences is None:
        sequences = requested_sequences(spec)
    if sequences is None:
        fraction = spec.config.trainer.gpu_memory_fraction or 1.0
        usable_bytes = usable_memory(PLANNED_GPU_BYTES * fraction, accelerator)
        largest = largest_micro_batch(spec.shape, execution, rank_sequences, usable_bytes)
        sequences = largest or 1
    plan = plan_memory(spec.shape, execution, sequences, math.ceil(rank_sequences / sequences))
    return MicroBatch(sequences, rank_sequences, plan)


def choose_micro_batch(
    spec: RunSpec, accelerator: str, free_bytes: float, before: int | None = None
) -> MicroBatch:
    """Return the micro-batch of `before` (the size before an interruption) if it fits, else the largest.

    Raises:
        ConfigError: if not even one sequence fits.
    """
    usable_bytes = usable_memory(free_bytes, accelerator)
    execution, rank_sequences = execution_of(spec.config, accelerator), count_rank_sequences(spec)
    sizes: list[int | None] = [before] if before in divisors(rank_sequences) else []
    sizes.append(largest_micro_batch(spec.shape, execution, rank_sequences, usable_bytes))
    for size in sizes:
        if size is not None:
            planned = micro_batch_of(spec, accelerator, size)
            if planned.plan.total_bytes <= usable_bytes:
                return planned
    smallest = micro_batch_of(spec, accelerator, 1)
    rule = (
        f"one sequence of {spec.shape.seq_len:,} tokens is predicted to need "
        f"{format_bytes(smallest.plan.total_bytes)}, but {format_usable_memory(free_bytes, accelerator)}"
    )
    fix = suggest_less_memory(spec, accelerator, smallest)
    raise ConfigError([Problem("trainer.micro_batch_sequences", "auto", rule, fix)])


def requested_sequences(spec: RunSpec) -> int | None:
    """Return the configured micro-batch size: all sequences of the rank for null, None for auto."""
    requested = spec.config.trainer.micro_batch_sequences
    if requested == "auto":
        return None
    return min(requested or spec.batch_sequences, count_rank_sequences(spec))


def count_rank_sequences(spec: RunSpec) -> int:
    """Count the sequences of a global batch on the rank that has most of them."""
    return math.ceil(spec.batch_sequences / spec.config.trainer.processes)


def suggest_less_memory(spec: RunSpec, accelerator: str, current: MicroBatch) -> str:
    """List changes that need less memory than `current`, each with its predicted memory."""
    changes = []
    smaller_sizes = (n for n in divisors(current.rank_sequences) if n < current.sequences)
    smaller = max(smaller_sizes, default=None)
    if smaller is not None:
        changes.append((f"trainer.micro_batch_sequences={smaller}", spec, smaller))
    if not spec.config.trainer.activation_checkpointing:
        trainer = replace(spec.config.trainer, activation_checkpointing=True)
        changed_spec = replace(spec, config=replace(spec.config, trainer=trainer))
        changes.append(("trainer.activation_checkpointing=true", changed_spec, current.sequences))
    suggestions = [
        f"{change} needs {format_bytes(micro_batch_of(changed, accelerator, n).plan.total_bytes)}"
        for change, changed, n in changes
    ]
    if accelerator == "gpu" and spec.config.trainer.strategy != "fsdp":
        suggestions.append("trainer=fsdp shards the model over several GPUs")
    return "; ".join([*suggestions, "or choose a smaller shape"])


def execution_of(config: Config, accelerator: str) -> Execution:
    """Return the settings that the memory of a training step depends on."""
    return Execution(
        precision=config.trainer.precision,
        attention=config.model.attention,
        document_mask=config.model.document_mask,
        dropout=config.model.dropout,
        activation_checkpointing=config.trainer.activation_checkpointing,
        on_gpu=accelerator == "gpu",
        strategy=config.trainer.strategy,
        processes=config.trainer.processes,
    )


def planned_accelerator(config: Config) -> str:
    """Return `cpu` if the config requires it, else `gpu`, since the planning machine may have no GPU."""
    return "cpu" if config.trainer.accelerator == "cpu" else "gpu"


def usable_memory(free_bytes: float, accelerator: str) -> float:
    return free_bytes * (1 - MARGINS[accelerator])


def format_usable_memory(free_bytes: float, accelerator: str) -> str:
    usable = format_bytes(usable_memory(free_bytes, accelerator))
    return f"{usable} of {format_bytes(free_bytes)} free memory is usable"
