"""How many sequences a process computes at once: what the config asks for, or the most that fit. Torch-free.

A global batch is cut into micro-batches of equal size, whose gradients are added up; their size changes
memory, speed and rounding, so it is recorded and is not part of a run's identity.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from slm.architecture.memory import (
    Execution,
    MemoryPlan,
    divisors,
    in_units,
    largest_micro_batch,
    plan_memory,
)
from slm.config.schema import Config
from slm.errors import ConfigError, Problem
from slm.run.spec import RunSpec

# Shares of the free memory that plans leave alone. CUDA's allocator loses a little between tensors, and
# libraries have buffers of their own. On a CPU malloc kept up to half as much again as the tensors.
MARGINS = {"gpu": 0.1, "cpu": 1 / 3}
PLANNED_GPU_BYTES = 80e9  # where there is no device yet to ask


@dataclass(frozen=True)
class MicroBatch:
    sequences: int
    rows: int
    """Sequences that a process has of a global batch."""
    plan: MemoryPlan

    @property
    def count(self) -> int:
        """Of them in a step."""
        return math.ceil(self.rows / self.sequences)

    @property
    def in_words(self) -> str:
        several = f"{self.count} micro-batches" if self.count > 1 else "1 micro-batch"
        return f"{several} of {self.sequences} sequence{'s' if self.sequences > 1 else ''}"

    def as_dict(self) -> dict[str, Any]:
        return {
            "micro_batch_sequences": self.sequences,
            "micro_batches": self.count,
            "plan": self.plan.as_dict(),
        }


def micro_batch_of(spec: RunSpec, accelerator: str, sequences: int | None = None) -> MicroBatch:
    """One of `sequences`, or of what the config asks for; the largest for 80 GB where that is auto."""
    how, rows = execution_of(spec.config, accelerator), rows_of_process(spec)
    if sequences is None:
        sequences = asked_sequences(spec)
    if sequences is None:
        usable_bytes = usable(PLANNED_GPU_BYTES, accelerator)
        sequences = largest_micro_batch(spec.shape, how, rows, usable_bytes) or 1
    plan = plan_memory(spec.shape, how, sequences, math.ceil(rows / sequences))
    return MicroBatch(sequences, rows, plan)


def choose_micro_batch(
    spec: RunSpec, accelerator: str, free_bytes: float, before: int | None = None
) -> MicroBatch:
    """The largest that fits; or the size that an interrupted run had `before`, if it does.

    Raises:
        ConfigError: if one sequence does not fit.
    """
    usable_bytes = usable(free_bytes, accelerator)
    how, rows = execution_of(spec.config, accelerator), rows_of_process(spec)
    sizes: list[int | None] = [before] if before in divisors(rows) else []
    sizes.append(largest_micro_batch(spec.shape, how, rows, usable_bytes))
    for size in sizes:
        if size is not None:
            found = micro_batch_of(spec, accelerator, size)
            if found.plan.total_bytes <= usable_bytes:
                return found
    one = micro_batch_of(spec, accelerator, 1)
    rule = (
        f"one sequence of {spec.shape.seq_len} tokens is predicted to need "
        f"{in_units(one.plan.total_bytes)}, and {in_words(free_bytes, accelerator)}"
    )
    fix = remedy(spec, accelerator, one)
    raise ConfigError([Problem("trainer.micro_batch_sequences", "auto", rule, fix)])


def asked_sequences(spec: RunSpec) -> int | None:
    """What the config fixes, of null a process's whole share; None for auto."""
    asked = spec.config.trainer.micro_batch_sequences
    if asked == "auto":
        return None
    return min(asked or spec.batch_sequences, rows_of_process(spec))


def rows_of_process(spec: RunSpec) -> int:
    """Sequences of a global batch that a process has, the one that has most."""
    trainer = spec.config.trainer
    return math.ceil(spec.batch_sequences / (trainer.devices * trainer.num_nodes))


def remedy(spec: RunSpec, accelerator: str, now: MicroBatch) -> str:
    """What to change for less memory, with what it is predicted to need."""
    changes = []
    smaller = max((n for n in divisors(now.rows) if n < now.sequences), default=None)
    if smaller is not None:
        changes.append((f"trainer.micro_batch_sequences={smaller}", spec, smaller))
    if not spec.config.trainer.activation_checkpointing:
        trainer = replace(spec.config.trainer, activation_checkpointing=True)
        saving = replace(spec, config=replace(spec.config, trainer=trainer))
        changes.append(("trainer.activation_checkpointing=true", saving, now.sequences))
    said = [
        f"{change} needs {in_units(micro_batch_of(changed, accelerator, n).plan.total_bytes)}"
        for change, changed, n in changes
    ]
    if accelerator == "gpu" and spec.config.trainer.strategy != "fsdp":
        said.append("trainer=fsdp cuts the model over several GPUs")
    return "; ".join([*said, "or a smaller shape"])


def execution_of(config: Config, accelerator: str) -> Execution:
    return Execution(
        precision=config.trainer.precision,
        attention=config.model.attention,
        document_mask=config.model.document_mask,
        dropout=config.model.dropout,
        activation_checkpointing=config.trainer.activation_checkpointing,
        on_gpu=accelerator == "gpu",
        strategy=config.trainer.strategy,
        processes=config.trainer.devices * config.trainer.num_nodes,
    )


def planned_accelerator(config: Config) -> str:
    """`gpu` unless the config rules it out: plans are made on other machines than runs."""
    return "cpu" if config.trainer.accelerator == "cpu" else "gpu"


def usable(free_bytes: float, accelerator: str) -> float:
    return free_bytes * (1 - MARGINS[accelerator])


def in_words(free_bytes: float, accelerator: str) -> str:
    usable_bytes = in_units(usable(free_bytes, accelerator))
    return f"{usable_bytes} of the {in_units(free_bytes)} that are free may be planned for"
