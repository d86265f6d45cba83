"""The training step: a global batch in micro-batches, one clipped AdamW step, a decayed rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim import Optimizer

from slm.errors import Diverged
from slm.model.attention import document_ids
from slm.model.loss import IGNORED, token_nats
from slm.model.parametrization import Parametrization
from slm.model.transformer import Transformer
from slm.run_spec import RunSpec
from slm.training.optimizer import LR_MULTIPLIER, build_optimizer
from slm.training.schedule import lr_multiplier


class LanguageModule(LightningModule):
    """Optimization is manual, so that one batch of the loader is one optimizer step.

    After each validation `val_nats` and `val_targets` hold sums over the whole stream, in float64,
    `val_errors` the share of wrong answers in each of `groups`, and `validated_step` the step they
    belong to.
    """

    def __init__(
        self,
        model: Transformer,
        parametrization: Parametrization,
        spec: RunSpec,
        groups: Sequence[str] = (),
    ):
        super().__init__()
        self.automatic_optimization = False
        self.model = model
        self.val_nats = 0.0
        self.val_targets = 0
        self.val_errors: dict[str, float] = {}
        self.validated_step: int | None = None
        self._groups = tuple(groups)
        self._eot_id = spec.eot_id
        self._parametrization = parametrization
        self._spec = spec
        self._micro_sequences = spec.config.trainer.micro_batch_sequences or spec.batch_sequences

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model(tokens)

    def configure_optimizers(self) -> Optimizer:
        return build_optimizer(self.model, self._spec.config.optimizer, self._parametrization)

    def training_step(self, batch: Tensor, step: int) -> dict[str, Any]:
        """batch (batch_sequences, 2, seq_len); the loss is a mean over the global batch's targets.

        Raises:
            Diverged: if the loss or the gradient norm is not finite; the step is not taken.
        """
        optimizer = self.optimizers()
        assert isinstance(optimizer, Optimizer)
        n_targets = (batch[:, 1] != IGNORED).sum().clamp(min=1)
        z_loss = self._spec.config.optimizer.z_loss
        nats = torch.zeros((), device=batch.device)
        for micro in batch.split(self._micro_sequences):
            inputs, targets = micro.unbind(1)
            sums = self.model(inputs, self._documents(inputs), targets=targets, z_loss=z_loss)
            self.manual_backward(sums.objective / n_targets)
            nats += sums.nats
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

    def _documents(self, tokens: Tensor) -> Tensor | None:
        if not self._spec.config.model.document_mask:
            return None
        assert self._eot_id is not None, "load_config sees to it"
        return document_ids(tokens, self._eot_id)

    def _lr(self, step: int) -> float:
        """The schedule at the middle of the step's tokens: neither end of it wastes a step at 0."""
        spec = self._spec
        tokens = (step + 0.5) * spec.batch_tokens
        share = lr_multiplier(tokens, spec.tokens, spec.warmup_tokens, spec.config.schedule)
        return spec.config.optimizer.lr * share

    def on_validation_epoch_start(self) -> None:
        self._nats = torch.zeros((), dtype=torch.float64)
        self.val_targets = 0
        self._wrong = torch.zeros(len(self._groups), dtype=torch.int64)
        self._asked = torch.zeros_like(self._wrong)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        """batch: pairs (B, 2, seq_len) of inputs and targets, and the group (B,) of each."""
        pairs, group = batch
        inputs, targets = pairs.unbind(1)
        documents, scored = self._documents(inputs), targets != IGNORED
        self.val_targets += int(scored.sum())
        if not self._groups:
            self._nats += self.model(inputs, documents, targets=targets).nats.cpu()
        else:
            logits = self.model(inputs, documents)
            self._nats += token_nats(logits, targets).double().sum().cpu()
            wrong = (logits.argmax(dim=-1) != targets) & scored
            self._wrong.index_add_(0, group.cpu(), wrong.sum(1).cpu())
            self._asked.index_add_(0, group.cpu(), scored.sum(1).cpu())

    def on_validation_epoch_end(self) -> None:
        self.val_nats = float(self._nats)
        counted = zip(self._groups, self._wrong.tolist(), self._asked.tolist(), strict=True)
        self.val_errors = {group: wrong / asked for group, wrong, asked in counted if asked}
        self.validated_step = self.trainer.global_step
