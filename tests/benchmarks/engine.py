"""The parts of slm's training engine that the benchmarks call, in one place.

A bare training step, whole runs, the automatic micro-batch, the chunks of the head loss, and the methods that
make up the training loop. No other module of the benchmarks imports `slm.training`, except for the peak of a
device and the peak memory.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal
from unittest.mock import patch

from torch import Tensor

import slm.model.loss
from slm.data.examples import Examples
from slm.model.transformer import Transformer
from slm.run.micro_batch import MicroBatch, choose_micro_batch
from slm.run.spec import RunSpec
from slm.tracking.run_dir import TOKENS, TOKENS_PER_SECOND, RunDirectory
from slm.training import step as training_step
from slm.training.step import TrainingStep

TAKE_STEP = (TrainingStep, "take")
"""Class and method of the training step; the second argument of the method is the number of the step."""


def build_step(spec: RunSpec, device: str) -> TrainingStep:
    """Build the training step on `cuda` or `cpu`; its weights follow from the spec alone."""
    accelerator: Literal["gpu", "cpu"] = "gpu" if device == "cuda" else "cpu"
    trainer = replace(spec.config.trainer, accelerator=accelerator)
    return training_step.build_step(replace(spec, config=replace(spec.config, trainer=trainer)))


def model_of(step: TrainingStep) -> Transformer:
    return step.module.model


def train_run(spec: RunSpec) -> RunDirectory:
    """Train a whole run, or continue it, in this process."""
    from slm.training.runner import train

    run = RunDirectory.of(spec)
    with run.claim(spec):
        train(spec, run)
    return run


def train_in_ranks(specs: Sequence[RunSpec]) -> None:
    """Train the runs one after the other as one of the processes that torchrun started."""
    from slm.training.distributed.rank import find_placement
    from slm.training.distributed.workers import joined_workers
    from slm.training.execute import train_all

    with joined_workers(find_placement(os.environ), print) as workers:
        for spec in specs:
            train_all(spec.config, workers)


def rate_of(run: RunDirectory) -> float:
    """Return the tokens/s of a run without its first step, which includes the startup."""
    rows = [row for row in run.read_metrics() if TOKENS_PER_SECOND in row]
    pairs = list(itertools.pairwise(rows))
    tokens = sum(row[TOKENS] - before[TOKENS] for before, row in pairs)
    seconds = sum((row[TOKENS] - before[TOKENS]) / row[TOKENS_PER_SECOND] for before, row in pairs)
    return tokens / seconds


def fit_micro_batch(spec: RunSpec, device: str) -> tuple[RunSpec, MicroBatch]:
    """Return the spec with the micro-batch that `auto` chooses for the free memory, and its plan."""
    from slm.training.device.memory import free_bytes

    accelerator = "gpu" if device == "cuda" else "cpu"
    chosen = choose_micro_batch(spec, accelerator, free_bytes(accelerator))
    trainer = replace(spec.config.trainer, micro_batch_sequences=chosen.sequences)
    return replace(spec, config=replace(spec.config, trainer=trainer)), chosen


def loss_chunk_tokens(vocab_size: int, tokens: int, device: str) -> int:
    """Return the tokens per chunk of the head loss of `tokens` tokens."""
    return slm.model.loss.chunk_tokens(vocab_size, tokens, on_gpu=device == "cuda")


@contextmanager
def loss_chunks_of(tokens: int) -> Iterator[None]:
    """Compute the head loss in chunks of `tokens` tokens."""
    with patch("slm.model.loss.chunk_tokens", lambda *arguments, **named: tokens):
        yield


def fail_before_step(step: int, error: Callable[[], Exception]) -> None:
    """Raise `error()` before training step `step`, in this process and for the rest of its life."""
    owner, name = TAKE_STEP
    original = getattr(owner, name)

    def take(self: Any, number: int, *arguments: Any, **named: Any) -> Any:
        if number == step:
            raise error()
        return original(self, number, *arguments, **named)

    setattr(owner, name, take)


def load_pairs(
    examples: Examples, batch_sequences: int, steps: int, num_workers: int
) -> Iterator[Tensor]:
    """Return an iterator over global batches, pairs (rows, 2, seq_len), as the training loop loads them."""
    from slm.training.batches import TrainingBatches, to_pairs

    batches = TrainingBatches(examples, 0, batch_sequences)
    return map(to_pairs, batches.load(range(steps), num_workers, pin_memory=False))


def loop_parts() -> list[tuple[Any, str, str]]:
    """Return owner, method and name of the parts of the training loop; a leading space marks a sub-part."""
    from slm.tracking.wandb import Mirror
    from slm.training.batches import TrainingBatches
    from slm.training.loop import TrainingLoop
    from slm.training.metrics import Metrics

    return [
        (TrainingBatches, "__getitem__", "batch"),
        (Metrics, "after_step", "metrics"),
        (Mirror, "log", "  W&B, within metrics"),
        (TrainingLoop, "save", "checkpoints"),
        (TrainingLoop, "validate_if_due", "validation"),
        (TrainingLoop, "stop_if_signalled", "signals"),
    ]
