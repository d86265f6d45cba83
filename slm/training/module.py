"""The language model as a LightningModule: forward pass and loss, optimizer, learning rate schedule."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from slm.model.documents import document_ids
from slm.model.loss import IGNORED
from slm.model.parametrization import Parametrization
from slm.model.transformer import Transformer
from slm.run.lr_schedule import step_lr_multiplier
from slm.run.spec import RunSpec
from slm.training.batches import to_pairs
from slm.training.optimizer import build_optimizer


class LanguageModule(LightningModule):
    """A run's transformer with everything that a training step needs of the config.

    `slm.training.loop` trains it; so does a `lightning.Trainer` (docs/lightning.md).
    """

    def __init__(self, model: Transformer, spec: RunSpec):
        super().__init__()
        self.model = model
        self._spec = spec

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Any:
        """Return the logits (B, T, V) of tokens (B, T), or the HeadLoss of targets (B, T)."""
        documents, z_loss = self._documents(tokens), self._spec.config.optimizer.z_loss
        with self._autocast(tokens.device):
            if targets is None:
                return self.model(tokens, documents)
            return self.model(tokens, documents, targets=targets, z_loss=z_loss)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Return the objective per target; batch: windows (B, T + 1) or pairs (B, 2, T) of tokens."""
        inputs, targets = to_pairs(batch).unbind(1)
        sums, n_targets = self(inputs, targets), (targets != IGNORED).sum().clamp(min=1)
        self.log("train/loss", sums.nats / n_targets)
        return sums.objective / n_targets

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = self.build_optimizer()
        schedule = {"scheduler": self.build_schedule(optimizer), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def configure_gradient_clipping(self, optimizer: Optimizer, *_: Any, **__: Any) -> None:
        """Clip to `optimizer.grad_clip`, whatever the Trainer's own setting is."""
        clip = self._spec.config.optimizer.grad_clip
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters(), clip)

    def build_optimizer(self) -> AdamW:
        config = self._spec.config
        parametrization = Parametrization.of(config.parametrization, self._spec.shape)
        return build_optimizer(self.model, config.optimizer, parametrization)

    def build_schedule(self, optimizer: Optimizer, first_step: int = 0) -> LambdaLR:
        """Return the schedule, at the learning rate of `first_step`."""
        spec = self._spec
        multiplier = partial(
            step_lr_multiplier,
            steps=spec.steps,
            batch_tokens=spec.batch_tokens,
            warmup_tokens=spec.warmup_tokens,
            schedule=spec.config.schedule,
        )
        return LambdaLR(optimizer, multiplier, last_epoch=first_step - 1)

    def _documents(self, tokens: Tensor) -> Tensor | None:
        """Return the document id of each token (B, T), if attention stays within documents."""
        if not self._spec.config.model.document_mask:
            return None
        assert self._spec.eot_id is not None, "checked by load_config"
        return document_ids(tokens, self._spec.eot_id)

    def _autocast(self, device: torch.device) -> AbstractContextManager[None]:
        if self._spec.config.trainer.precision == "fp32":
            return nullcontext()
        # Without a cache a shared weight is cast at each use, and autograd adds its gradients in fp32.
        return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)
