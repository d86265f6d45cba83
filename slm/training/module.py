"""The training step: a global batch in micro-batches, one clipped AdamW step, a decayed rate."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim import Optimizer

from slm.model.attention import document_ids
from slm.model.loss import IGNORED
from slm.model.parametrization import Parametrization
from slm.model.transformer import Transformer
from slm.run_spec import RunSpec
from slm.schedule import step_lr_multiplier
from slm.training.divergence import FiniteSteps
from slm.training.optimizer import LR_MULTIPLIER, build_optimizer
from slm.training.parallel import Whole, spread
from slm.training.randomness import step_seed
from slm.training.team import ALONE, Team


class LanguageModule(LightningModule):
    """Optimization is manual, so that one batch of the loader is one optimizer step.

    A batch is the rows that this process of the team has of a global batch.
    """

    finite_steps: FiniteSteps

    def __init__(
        self,
        model: Transformer,
        parametrization: Parametrization,
        spec: RunSpec,
        team: Team = ALONE,
    ):
        super().__init__()
        self.automatic_optimization = False
        self.model = model
        self.parallel = Whole(model)
        self._team = team
        self._eot_id = spec.eot_id
        self._parametrization = parametrization
        self._spec = spec
        self._micro_sequences = spec.config.trainer.micro_batch_sequences or spec.batch_sequences

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model(tokens)

    def spread(self, device: torch.device) -> None:
        """Put the model on the devices of the team."""
        self.parallel = spread(self.model, self._spec.config.trainer.strategy, device)

    def configure_optimizers(self) -> Optimizer:
        return build_optimizer(self.model, self._spec.config.optimizer, self._parametrization)

    def on_fit_start(self) -> None:
        names = [name for name, _ in self.model.named_parameters()]
        self.finite_steps = FiniteSteps(names, self._spec.config.seed, self.device)

    def training_step(self, batch: Tensor, step: int) -> dict[str, Any]:
        """batch (rows, 2, seq_len); loss and norm are those of the whole global batch.

        Raises:
            Diverged: on CPU, if the loss or a gradient is not finite; elsewhere the step is not
                taken either, and `finite_steps.check` tells of it.
        """
        optimizer = self.optimizers()
        assert isinstance(optimizer, Optimizer)
        team, z_loss = self._team, self._spec.config.optimizer.z_loss
        torch.manual_seed(step_seed(self._spec.config.seed, step, team.rank))
        n_targets = team.sum((batch[:, 1] != IGNORED).sum()).clamp(min=1)
        # Gradients are averaged over the processes, and are to be those of a sum.
        share = n_targets if team.world_size == 1 else n_targets / team.world_size
        nats = torch.zeros((), dtype=torch.float64, device=batch.device)
        micro_batches = batch.split(self._micro_sequences)
        for number, micro in enumerate(micro_batches, start=1):
            inputs, targets = micro.unbind(1)
            with self.parallel.passes(is_last=number == len(micro_batches)):
                sums = self.parallel.call(
                    inputs, self.documents(inputs), targets=targets, z_loss=z_loss
                )
                self.manual_backward(sums.objective / share)
            nats += sums.nats
        loss, norms = team.sum(nats) / n_targets, self._clip_gradients()
        self.finite_steps.admit(step, loss, norms, optimizer)
        lr = self._lr(step)
        for group in optimizer.param_groups:
            group["lr"] = lr * group[LR_MULTIPLIER]
        optimizer.step()
        optimizer.zero_grad()
        return {"loss": loss, "grad_norm": torch.linalg.vector_norm(norms), "lr": lr}

    def documents(self, tokens: Tensor) -> Tensor | None:
        """Which document each of tokens (B, T) belongs to, if attention is to keep within them."""
        if not self._spec.config.model.document_mask:
            return None
        assert self._eot_id is not None, "load_config sees to it"
        return document_ids(tokens, self._eot_id)

    def _clip_gradients(self) -> Tensor:
        """Scale all gradients so that their global norm keeps the limit; the norm each had before."""
        norms = self.parallel.gradient_norms()
        clip = self._spec.config.optimizer.grad_clip
        if clip is not None:
            scale = clip / (torch.linalg.vector_norm(norms) + 1e-6)
            torch._foreach_mul_(self.parallel.gradients(), scale.clamp(max=1.0))
        return norms

    def _lr(self, step: int) -> float:
        spec = self._spec
        share = step_lr_multiplier(
            step, spec.steps, spec.batch_tokens, spec.warmup_tokens, spec.config.schedule
        )
        return spec.config.optimizer.lr * share
