"""The training loop: step, log, checkpoint, validate, stop on a signal."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from slm.data.examples import Examples
from slm.errors import Interrupted
from slm.run.spec import RunSpec
from slm.training.batches import TrainingBatches, ValidationBatches, to_pairs, val_batch_sequences
from slm.training.checkpoint import CheckpointWriter
from slm.training.diagnostics import recorded_residual_rms, weight_statistics
from slm.training.distributed.workers import Workers
from slm.training.metrics import Metrics
from slm.training.progress import shown_progress
from slm.training.step import TrainingStep
from slm.training.stop_on_signal import StopSignal
from slm.training.validation import Measurement, measure_validation

log = logging.getLogger(__name__)


@dataclass
class TrainingLoop:
    """Trains a run from `first_step` to its last step.

    A checkpoint holds the metrics of its own step, but not the validation after it: a validation that an
    interruption cut off is repeated.
    """

    spec: RunSpec
    examples: Examples
    training_step: TrainingStep
    metrics: Metrics
    checkpoints: CheckpointWriter
    stop: StopSignal
    workers: Workers
    on_trunk_saved: Callable[[Path], None] | None = None
    """Called with the checkpoint before the decay, which the other branches of a trunk start from."""
    last_validation: Measurement | None = None

    def run(self, first_step: int) -> None:
        """Take the steps from `first_step` to the last one.

        Raises:
            Interrupted: after a signal, with the state saved.
            Diverged: if a loss, validation loss or gradient is not finite.
            RunError: if a checkpoint cannot be written.
        """
        spec, config, device = self.spec, self.spec.config.trainer, self.training_step.fabric.device
        share = self.workers.rank, self.workers.world_size
        batches = TrainingBatches(self.examples, spec.config.seed, spec.batch_sequences, *share)
        steps = range(first_step, spec.steps)
        loader = batches.load(steps, config.num_workers, pin_memory=device.type == "cuda")
        is_shown = config.progress and self.workers.is_rank_zero
        with shown_progress(spec, first_step, is_shown=is_shown) as show_progress:
            if first_step:
                if first_step == spec.trunk_steps == self.checkpoints.saved_step:
                    self.store_trunk(first_step)  # a kill may have come before it
                self.validate_if_due(first_step)
            self.metrics.start(first_step)
            for step, batch in zip(steps, loader, strict=True):
                pairs = batches.mask_padding(to_pairs(batch.to(device, non_blocking=True)))
                output = self.training_step.take(step, pairs)
                done = step + 1
                if self.metrics.is_due(done):
                    self.training_step.finite_check.check()
                is_validated = self.is_validation_due(done)
                self.metrics.after_step(done, output, before_validation=is_validated)
                show_progress(done, output)
                if done == spec.trunk_steps:
                    self.store_trunk(done)
                if done % config.checkpoint_every_steps == 0 or done == spec.steps:
                    self.save(done)  # does nothing for a step that is saved already
                self.validate_if_due(done)
                self.stop_if_signalled(done)
        self.checkpoints.wait()

    def store_trunk(self, done: int) -> None:
        """Save a checkpoint and give it to the other branches, if the run shares its trunk."""
        if self.on_trunk_saved is not None:
            path = self.save(done)
            self.checkpoints.wait()
            self.on_trunk_saved(path)

    def save(self, done: int) -> Path:
        """Save a checkpoint after `done` steps, unless one of them was skipped as not finite."""
        step = self.training_step
        step.finite_check.check()
        if self.workers.is_rank_zero:
            self.metrics.sync()
        progress = {"metrics": self.metrics.state(), "validation": None}
        if self.last_validation is not None:
            progress["validation"] = asdict(self.last_validation)
        return self.checkpoints.save(done, step.module.model, step.optimizer, progress)

    def is_validation_due(self, done: int) -> bool:
        """Return whether a validation follows step `done`, and has not been measured before an interruption."""
        every = self.spec.config.trainer.validate_every_steps
        is_due = done == self.spec.steps or (every is not None and done % every == 0)
        return is_due and (self.last_validation is None or self.last_validation.step != done)

    def validate_if_due(self, done: int) -> None:
        if not self.is_validation_due(done):
            return
        if done == self.spec.steps and self.spec.config.trainer.progress:
            log.info("validating on %s tokens", f"{self.examples.val.tokens:,}")
        device = self.training_step.fabric.device
        micro_sequences = self.training_step.micro_sequences
        batch_size = val_batch_sequences(self.spec, device.type, micro_sequences)
        share = self.workers.rank, self.workers.world_size
        module = self.training_step.module
        with recorded_residual_rms(module.model) as diagnostics:
            self.last_validation = measure_validation(
                module,
                ValidationBatches(self.examples.val, batch_size, *share),
                step=done,
                workers=self.workers,
                before_batch=lambda: self.stop_if_signalled(done, validating=True),
            )
        diagnostics |= weight_statistics(self.training_step, self.workers, done)
        self.metrics.log_validation(self.last_validation, diagnostics)
        self.metrics.resume_clock()

    def stop_if_signalled(self, done: int, *, validating: bool = False) -> None:
        """Save and raise Interrupted if a signal has arrived; a run that is done finishes instead."""
        number = self.stop.poll()
        if number is None or (done == self.spec.steps and not validating):
            return
        self.save(done)
        self.checkpoints.wait()
        place, next_part = "after step", "continues from there"
        if validating:
            place, next_part = "in the validation after step", "repeats the validation"
        command = "the same command"
        if self.spec.config.rerun:
            command += " without rerun=true"
        raise Interrupted(
            f"interrupted by {signal.Signals(number).name} {place} {done} of {self.spec.steps}; "
            f"its state is saved, and {command} {next_part}",
            number,
        )

    def restore(self, progress: dict[str, Any]) -> None:
        """Continue from the `progress` in a checkpoint."""
        self.metrics.restore(progress["metrics"])
        validation = progress["validation"]
        self.last_validation = None if validation is None else Measurement(**validation)
