"""Rows of metrics.jsonl and their W&B mirror; the training time that survives restarts."""

from __future__ import annotations

import json
import math
import time
from typing import IO, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from slm.run.spec import RunSpec
from slm.tracking import run_dir
from slm.tracking.wandb import Mirror
from slm.training.callbacks.validation import Measured
from slm.training.module import LanguageModule


class Metrics(Callback):
    """Writes a row every `log_every_steps` steps and after each validation.

    `begun_at_steps` is where a run begins whose first steps another one took.
    """

    def __init__(
        self,
        spec: RunSpec,
        stream: IO[str],
        mirror: Mirror,
        peak_flops: float | None,
        val_bytes: int | None,
        *,
        begun_at_steps: int | None = None,
    ):
        self._spec = spec
        self._stream = stream
        self._mirror = mirror
        self._peak_flops = peak_flops
        self._val_bytes = val_bytes
        self._begun_at_steps = begun_at_steps
        self._every_steps = spec.config.trainer.log_every_steps
        self.taken_over_steps = begun_at_steps or 0
        self.training_seconds = 0.0
        self.last_train_loss: float | None = None
        self._step_start_seconds = 0.0
        self._logged = (0, 0.0)  # step and training seconds of the last row

    def tokens_per_second(self, tokens: int) -> float:
        """Over the training loop's time, restarts included, validation left out."""
        return tokens / self.training_seconds if self.training_seconds else 0.0

    def mfu(self, tokens_per_second: float) -> float | None:
        """Share of the device's dense peak; None where that peak is not known."""
        if self._peak_flops is None:
            return None
        return tokens_per_second * self._spec.flops_per_token / self._peak_flops

    def state_dict(self) -> dict[str, Any]:
        return {
            "training_seconds": self.training_seconds,
            "last_train_loss": self.last_train_loss,
            "taken_over_steps": self.taken_over_steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.training_seconds = state["training_seconds"]
        self.last_train_loss = state["last_train_loss"]
        if self._begun_at_steps is None:  # else the state is that of the run it was taken from
            self.taken_over_steps = state["taken_over_steps"]

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._logged = (trainer.global_step, self.training_seconds)
        self._step_start_seconds = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, step: int
    ) -> None:
        done = trainer.global_step
        is_logged = done == 1 or done % self._every_steps == 0 or done == trainer.max_steps
        if is_logged:
            assert isinstance(module, LanguageModule)
            module.finite_steps.check()
            if module.device.type == "cuda":
                torch.cuda.synchronize()  # or the clock would time the launch of kernels
        now = time.perf_counter()
        self.training_seconds += now - self._step_start_seconds
        self._step_start_seconds = now
        if is_logged:
            self._log_step(done, outputs)

    def _log_step(self, done: int, outputs: dict[str, Any]) -> None:
        steps, seconds = done - self._logged[0], self.training_seconds - self._logged[1]
        self._logged = (done, self.training_seconds)
        rate = steps * self._spec.batch_tokens / seconds
        self.last_train_loss = float(outputs["loss"])
        row = {
            run_dir.TRAIN_LOSS: self.last_train_loss,
            run_dir.LR: outputs["lr"],
            run_dir.GRAD_NORM: float(outputs["grad_norm"]),
            run_dir.TOKENS_PER_SECOND: rate,
        }
        mfu = self.mfu(rate)
        self._write(done, row if mfu is None else {**row, run_dir.MFU: mfu})

    def log_validation(self, measured: Measured) -> None:
        loss, bits_per_byte = val_losses(measured, self._val_bytes)
        row = {run_dir.VAL_LOSS: loss}
        if bits_per_byte is not None:
            row[run_dir.VAL_BITS_PER_BYTE] = bits_per_byte
        row |= {run_dir.VAL_ERROR + group: share for group, share in measured.errors.items()}
        self._write(measured.step, row)
        self._step_start_seconds = time.perf_counter()

    def _write(self, step: int, row: dict[str, float]) -> None:
        tokens = step * self._spec.batch_tokens
        progress = {
            run_dir.STEP: step,
            run_dir.TOKENS: tokens,
            run_dir.FLOPS: tokens * self._spec.flops_per_token,
        }
        self._stream.write(json.dumps({**progress, **row}) + "\n")
        self._mirror.log({**progress, **row})


def val_losses(measured: Measured, val_bytes: int | None) -> tuple[float, float | None]:
    """Nats per token and, where there is text, bits per byte."""
    bits = measured.nats / math.log(2)
    return measured.nats / measured.targets, bits / val_bytes if val_bytes else None
