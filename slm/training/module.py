"""The training step: a global batch in micro-batches, one clipped AdamW step, a decayed rate."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim import Optimizer

from slm.errors import Diverged
from slm.model.attention import document_ids
from slm.model.loss import IGNORED, squared_log_partition, token_nats
from slm.model.parametrization import Parametrization
from slm.model.transformer import Transformer
from slm.run_spec import RunSpec
from slm.training.optimizer import LR_MULTIPLIER, build_optimizer
from slm.training.schedule import lr_multiplier


class LanguageModule(LightningModule):
    """Optimization is manual, so that one batch of the loader is one optimizer step.

    After each validation `val_nats` and `val_targets` hold sums over the whole stream, in float64,
    and `validated_step` the step they belong to.
    """

    def __init__(self, model: Transformer, parametrization: Parametrization, spec: RunSpec):
        super().__init__()
        self.automatic_optimization = False
        self.model = model
        self.val_nats = 0.0
        self.val_targets = 0
        self.validated_step: int | None = None
        self._parametrization = parametrization
        self._spec = spec
        self._micro_sequences = spec.config.trainer.micro_batch_sequences or spec.batch_sequences

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model(tokens)

    def configure_optimizers(self) -> Optimizer:
        return build_optimizer(self.model, self._spec.config.optimizer, self._parametrization)

    def training_step(self, batch: Tensor, step: int) -> dict[str, Any]:
        """batch (batch_sequences, seq_len + 1); the loss is a mean over the global batch's tokens.

        Raises:
            Diverged: if the loss or the gradient norm is not finite; the step is not taken.
        """
        optimizer = self.optimizers()
        assert isinstance(optimizer, Optimizer)
        n_targets, z_loss = batch[:, 1:].numel(), self._spec.config.optimizer.z_loss
        nats = torch.zeros((), device=batch.device)
        for micro in batch.split(self._micro_sequences):
            logits, targets = self._logits(micro[:, :-1]), micro[:, 1:]
            micro_nats = token_nats(logits, targets).sum()
            objective = micro_nats
            if z_loss:
                objective = objective + z_loss * squared_log_partition(logits).sum()
            self.manual_backward(objective / n_targets)
            nats += micro_nats.detach()
        clip = self._spec.config.optimizer.grad_clip
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), clip or math.inf)
        loss = nats / n_targets
        if not torch.isfinite(loss + norm):
            raise Diverged(
                f"step {step}: loss {loss:g}, gradient norm {norm:g}; the step was not taken"
            )
        lr = self._lr(step)
        for group in optimizer.param_groups:
            group["lr"] = lr * group[LR_MULTIPLIER]
        optimizer.step()
        optimizer.zero_grad()
        return {"loss": loss, "grad_norm": norm, "lr": lr}

    def _logits(self, tokens: Tensor) -> Tensor:
        masked = self._spec.config.model.document_mask
        return self.model(tokens, document_ids(tokens, self._spec.eot_id) if masked else None)

    def _lr(self, step: int) -> float:
        """The schedule at the middle of the step's tokens: neither end of it wastes a step at 0."""
        spec = self._spec
        tokens = (step + 0.5) * spec.batch_tokens
        share = lr_multiplier(tokens, spec.tokens, spec.warmup_tokens, spec.config.schedule)
        return spec.config.optimizer.lr * share

    def on_validation_epoch_start(self) -> None:
        self._nats = torch.zeros((), dtype=torch.float64)
        self.val_targets = 0

    def validation_step(self, pairs: Tensor, batch_index: int) -> None:
        """pairs (B, 2, seq_len): inputs and targets."""
        inputs, targets = pairs.unbind(1)
        self._nats += token_nats(self._logits(inputs), targets).double().sum().cpu()
        self.val_targets += int((targets != IGNORED).sum())

    def on_validation_epoch_end(self) -> None:
        self.val_nats = float(self._nats)
        self.validated_step = self.trainer.global_step
