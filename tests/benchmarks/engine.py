"""The parts of slm's training engine that the benchmarks call, in one place.

A bare training step, whole runs, the automatic micro-batch, the chunks of the head loss, and the methods that
make up the training loop. No other module of the benchmarks imports `slm.training`, except for the peak of a
device and the peak memory.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

import slm.model.loss
from slm.model.transformer import Transformer
from slm.run.micro_batch import MicroBatch, choose_micro_batch
from slm.run.spec import RunSpec
from slm.tracking.run_dir import TOKENS, TOKENS_PER_SECOND, RunDirectory
from slm.training.module import LanguageModule

TAKE_STEP = (LanguageModule, "take_step")
"""Class and method of the training step; the second argument of the method is the number of the step."""


@dataclass(frozen=True)
class StepOutputs:
    loss: Tensor
    grad_norm: Tensor


class BareStep:
    """The training step of a spec without the training loop."""

    def __init__(self, module: LanguageModule, trainer: Any):
        self.model: Transformer = module.model
        self._module = module
        self._trainer = trainer  # the module only keeps a weak reference
        self._precision = trainer.strategy.precision_plugin

    def take(self, step: int, pairs: Tensor) -> StepOutputs:
        """Take step number `step` on pairs (rows, 2, seq_len), int64, on the device."""
        with self._precision.train_step_context():
            outputs = self._module.take_step(step, pairs)
        return StepOutputs(outputs["loss"], outputs["grad_norm"])


def build_step(spec: RunSpec, device: str) -> BareStep:
    """Build the training step on `cuda` or `cpu`; its weights follow from the spec alone."""
    from lightning.pytorch import Trainer
    from lightning.pytorch.trainer.states import TrainerFn

    from slm.training.runner import LIGHTNING_PRECISION, build_module

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    module = build_module(spec)
    precision: Any = LIGHTNING_PRECISION[spec.config.trainer.precision]
    trainer = Trainer(
        accelerator=device,
        devices=1,
        precision=precision,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    # As `trainer.fit` before its loops: attach the trainer, move to the device, create the optimizer.
    module.trainer, trainer.state.fn = trainer, TrainerFn.FITTING
    trainer.strategy.connect(module)
    trainer.strategy.setup_environment()
    trainer.strategy.setup(trainer)
    module.train()
    module.on_train_start()
    return BareStep(module, trainer)


def train_run(spec: RunSpec) -> RunDirectory:
    """Train a whole run, or continue it, in this process."""
    from slm.training.runner import train

    run = RunDirectory.of(spec)
    with run.claim(spec):
        train(spec, run)
    return run


def train_in_ranks(specs: Sequence[RunSpec]) -> None:
    """Train the runs one after the other as one of the processes that torchrun started."""
    from slm.training.distributed.rank import find_place
    from slm.training.distributed.workers import assembled
    from slm.training.execute import train_all

    with assembled(find_place(os.environ), print) as workers:
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


def loss_chunk_tokens(vocab_size: int, device: str) -> int:
    """Return the tokens per chunk of the head loss."""
    return slm.model.loss.chunk_tokens(vocab_size)


@contextmanager
def loss_chunks_of(tokens: int) -> Iterator[None]:
    """Compute the head loss in chunks of `tokens` tokens."""
    original = slm.model.loss.chunk_tokens
    slm.model.loss.chunk_tokens = lambda *arguments, **named: tokens
    try:
        yield
    finally:
        slm.model.loss.chunk_tokens = original


def fail_before_step(step: int, error: Callable[[], Exception]) -> None:
    """Raise `error()` before training step `step`, in this process and for the rest of its life."""
    owner, name = TAKE_STEP
    original = getattr(owner, name)

    def take(self: Any, number: int, *arguments: Any, **named: Any) -> Any:
        if number == step:
            raise error()
        return original(self, number, *arguments, **named)

    setattr(owner, name, take)


def loop_parts() -> list[tuple[Any, str, str]]:
    """Return class, method and name of the parts of the training loop; a leading space marks a sub-part."""
    from lightning.pytorch import Callback

    import slm.training.runner  # noqa: F401  defines the callbacks
    from slm.data.datamodule import Blocks
    from slm.tracking.wandb import Mirror

    callbacks = [
        (callback, "on_train_batch_end", f"callback: {callback.__name__}")
        for callback in Callback.__subclasses__()
        if callback.__module__.startswith("slm.") and "on_train_batch_end" in vars(callback)
    ]
    data = (Blocks, "__getitem__", "data: the batch")
    return [data, (Mirror, "log", "  W&B, within Metrics"), *callbacks]
