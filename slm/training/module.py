"""The training step: a global batch in micro-batches, one clipped AdamW step, a decayed rate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from slm.model.attention import document_ids
from slm.model.loss import IGNORED
from slm.model.parametrization import Parametrization
from slm.model.transformer import Transformer
from slm.run.lr_schedule import step_lr_multiplier
from slm.run.spec import RunSpec
from slm.training.device.rng import seed_step
from slm.training.distributed.parallelize import Whole, spread
from slm.training.distributed.workers import ALONE, Team
from slm.training.nonfinite import FiniteSteps
from slm.training.optimizer import LR_MULTIPLIER, build_optimizer


class LanguageModule(LightningModule):
    """Optimization is manual: Lightning hands over blocks of batches, each an optimizer step.

    Batches are the rows that this process of the team has of global batches. `stop_asked` is looked
    at between steps and ends a block early.
    """

    finite_steps: FiniteSteps

    def __init__(
        self,
        model: Transformer,
        parametrization: Parametrization,
        spec: RunSpec,
        team: Team = ALONE,
        micro_sequences: int | None = None,
    ):
        """Micro-batches are of `micro_sequences`; of None they are of all rows."""
        super().__init__()
        self.automatic_optimization = False
        self.model = model
        self.parallel = Whole(model)
        self.stop_asked: Callable[[], bool] = lambda: False
        self._eot_id = spec.eot_id
        self._parametrization = parametrization
        self._spec = spec
        self._team = team
        self._micro_sequences = micro_sequences or spec.batch_sequences

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model(tokens)

    def spread(self, device: torch.device) -> None:
        """Put the model on the devices of the team; this process's is `device`."""
        self.parallel = spread(self.model, self._spec.config.trainer.strategy, device)

    def configure_optimizers(self) -> Optimizer:
        return build_optimizer(self.model, self._spec.config.optimizer, self._parametrization)

    def on_train_start(self) -> None:
        name_of = {parameter: name for name, parameter in self.model.named_parameters()}
        names = [name_of[parameter] for parameter in _parameters(self._optimizer)]
        self.finite_steps = FiniteSteps(names, self._spec.config.seed, self.device)

    def training_step(self, block: Tensor, index: int) -> dict[str, Any]:
        """block (steps, rows, 2, seq_len); what comes back is of its last step.

        Raises:
            Diverged: on CPU, if the loss or a gradient is not finite; elsewhere the step is not
                taken either, and `finite_steps.check` tells of it.
        """
        outputs: dict[str, Any] = {}
        for step, batch in enumerate(block, start=self.trainer.global_step):
            outputs = self.take_step(step, batch)
            torch.clear_autocast_cache()  # of the weights before the step
            if self.stop_asked():
                break
        return outputs

    def take_step(self, step: int, batch: Tensor) -> dict[str, Any]:
        """batch (rows, 2, seq_len); loss and norm are those of the global batch, over its targets."""
        optimizer, config, team = self._optimizer, self._spec.config, self._team
        if config.model.dropout:
            seed_step(config.seed, step, team.rank, batch.device)
        n_targets = team.sum((batch[:, 1] != IGNORED).sum()).clamp(min=1)
        # Gradients are averaged over the team, and are to be those of its sum.
        share = n_targets if team.world_size == 1 else n_targets / team.world_size
        nats = torch.zeros((), dtype=torch.float64, device=batch.device)
        micro_batches = batch.split(self._micro_sequences)
        for number, micro in enumerate(micro_batches, start=1):
            inputs, targets = micro.unbind(1)
            documents, z_loss = self.documents(inputs), config.optimizer.z_loss
            with self.parallel.passes(is_last=number == len(micro_batches)):
                sums = self.parallel.call(inputs, documents, targets=targets, z_loss=z_loss)
                self.manual_backward(sums.objective / share)
            nats += sums.nats
        norms = self._clip_gradients(optimizer)
        loss = self._total(nats, norms) / n_targets
        self.finite_steps.admit(step, loss, norms, optimizer)
        lr = self._lr(step)
        for group in optimizer.param_groups:
            group["lr"] = lr * group[LR_MULTIPLIER]
        self._counted_optimizer.step()
        optimizer.zero_grad()
        return {"loss": loss, "grad_norm": torch.linalg.vector_norm(norms), "lr": lr}

    def documents(self, tokens: Tensor) -> Tensor | None:
        """Which document each of tokens (B, T) belongs to, if attention is to keep within them."""
        if not self._spec.config.model.document_mask:
            return None
        assert self._eot_id is not None, "load_config sees to it"
        return document_ids(tokens, self._eot_id)

    @property
    def _optimizer(self) -> Optimizer:
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, Optimizer)
        return optimizer

    @property
    def _counted_optimizer(self) -> LightningOptimizer:
        """The same, its steps counted as the trainer's; what is set on it does not reach the other."""
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        return optimizer

    def _clip_gradients(self, optimizer: Optimizer) -> Tensor:
        """Scale all gradients so that their global norm keeps the limit; the norm each had before."""
        gradients = [p.grad for p in _parameters(optimizer) if p.grad is not None]
        parts = self.parallel.parts(gradients)
        norms = self.parallel.norms(parts)
        clip = self._spec.config.optimizer.grad_clip
        if clip is not None:
            scale = clip / (torch.linalg.vector_norm(norms) + 1e-6)
            torch._foreach_mul_(parts, scale.clamp(max=1.0))
        return norms

    def _total(self, nats: Tensor, norms: Tensor) -> Tensor:
        """The nats of the team. Where a norm is not finite for one, this is not for any of them."""
        if self._team.world_size == 1:
            return nats
        total, of_norms = self._team.sum(torch.stack([nats, norms.sum().double()]))
        return total + 0 * of_norms

    def _lr(self, step: int) -> float:
        spec = self._spec
        share = step_lr_multiplier(
            step, spec.steps, spec.batch_tokens, spec.warmup_tokens, spec.config.schedule
        )
        return spec.config.optimizer.lr * share


def _parameters(optimizer: Optimizer) -> list[Parameter]:
    """All of them, group by group; to walk through the module for them takes longer than to clip."""
    return [p for group in optimizer.param_groups for p in group["params"]]
