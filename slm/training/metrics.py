"""Rows of metrics.jsonl and of its W&B mirror, and the training time across restarts."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Any

import torch

from slm.run.spec import RunSpec
from slm.tracking import run_dir
from slm.tracking.wandb import Mirror
from slm.training.device.accelerator import peak_memory_bytes
from slm.training.step import StepOutput
from slm.training.validation import Measurement, val_losses


@dataclass
class Metrics:
    """Writes a row every `log_every_steps` steps and after each validation."""

    spec: RunSpec
    stream: IO[str]
    mirror: Mirror
    peak_flops: float | None
    val_bytes: int | None
    taken_over_steps: int = 0
    """First steps that another run of the trunk has taken."""
    training_seconds: float = 0.0
    last_train_loss: float | None = None

    def tokens_per_second(self, tokens: int) -> float:
        """Return tokens per second of the training loop, including earlier starts, without validation."""
        return tokens / self.training_seconds if self.training_seconds else 0.0

    def mfu(self, tokens_per_second: float) -> float | None:
        """Return the share of the devices' dense peak, causal attention counted; None if it is unknown."""
        if self.peak_flops is None:
            return None
        return tokens_per_second * self.spec.flops_per_token / self.peak_flops

    def state(self) -> dict[str, Any]:
        keys = ("training_seconds", "last_train_loss", "taken_over_steps")
        return {key: getattr(self, key) for key in keys}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from the state in a checkpoint; steps taken over from a trunk stay as they are."""
        self.training_seconds = state["training_seconds"]
        self.last_train_loss = state["last_train_loss"]
        self.taken_over_steps = self.taken_over_steps or state["taken_over_steps"]

    def sync(self) -> None:
        """Write the rows to disk: a checkpoint must not be newer than they are."""
        os.fsync(self.stream.fileno())

    def start(self, step: int) -> None:
        """Start the clock before step `step`."""
        self._last_row = (step, self.training_seconds)
        self.resume_clock()

    def resume_clock(self) -> None:
        """Leave out the time since the last step, which was a validation."""
        self._step_start_seconds = time.perf_counter()

    def is_due(self, done: int) -> bool:
        every = self.spec.config.trainer.log_every_steps
        return done == 1 or done % every == 0 or done == self.spec.steps

    def after_step(self, done: int, output: StepOutput, *, before_validation: bool = False) -> None:
        """Add the time of the step and, if a row is due, write it."""
        is_due = self.is_due(done)
        if (is_due or before_validation) and output.loss.is_cuda:
            # Else the clock would stop before the kernels do, and the validation would wait for them.
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.training_seconds += now - self._step_start_seconds
        self._step_start_seconds = now
        if is_due:
            self._write_step(done, output)

    def _write_step(self, done: int, output: StepOutput) -> None:
        steps, seconds = done - self._last_row[0], self.training_seconds - self._last_row[1]
        self._last_row = (done, self.training_seconds)
        rate = steps * self.spec.batch_tokens / seconds
        self.last_train_loss = float(output.loss)
        row = {
            run_dir.TRAIN_LOSS: self.last_train_loss,
            run_dir.LR: output.lr,
            run_dir.GRAD_NORM: float(output.grad_norm),
            run_dir.TOKENS_PER_SECOND: rate,
            run_dir.PEAK_MEMORY: peak_memory_bytes("gpu" if output.loss.is_cuda else "cpu"),
        }
        mfu = self.mfu(rate)
        self._write(done, row if mfu is None else {**row, run_dir.MFU: mfu})

    def log_validation(self, measured: Measurement, diagnostics: Mapping[str, float]) -> None:
        loss, bits_per_byte = val_losses(measured, self.val_bytes)
        row = {run_dir.VAL_LOSS: loss}
        if bits_per_byte is not None:
            row[run_dir.VAL_BITS_PER_BYTE] = bits_per_byte
        row |= {run_dir.VAL_ERROR + group: share for group, share in measured.errors.items()}
        self._write(measured.step, {**row, **diagnostics})

    def _write(self, step: int, row: dict[str, float]) -> None:
        tokens = step * self.spec.batch_tokens
        progress = {
            run_dir.STEP: step,
            run_dir.TOKENS: tokens,
            run_dir.FLOPS: tokens * self.spec.flops_per_token,
        }
        self.stream.write(json.dumps({**progress, **row}) + "\n")
        self.mirror.log({**progress, **row})
