"""Measures the model on the fixed validation set: after chosen steps, and after the last.

Not Lightning's own validation loop, whose progress is part of checkpoints: here a checkpoint belongs
to a step, a step is validated or it is not, and a kill in the middle only means measuring it again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader

from slm.model.loss import IGNORED, token_nats
from slm.training.distributed.workers import ALONE, Team
from slm.training.module import LanguageModule


@dataclass(frozen=True)
class Measured:
    """Sums over the whole validation set after `step`: in float64, divided by nobody yet."""

    step: int
    nats: float
    targets: int
    errors: dict[str, float] = field(default_factory=dict)
    """Share of wrong answers by group, of a task that has groups."""


class Validation(Callback):
    """`interrupt` is asked between batches; it raises where the run is to stop.

    The loader has this process's share of the set, in as many batches as that of any other.
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        groups: tuple[str, ...],
        every_steps: int | None,
        interrupt: Callable[[Trainer], None],
        on_measured: Callable[[Measured], None],
        *,
        team: Team = ALONE,
    ):
        self.last: Measured | None = None
        self._loader = loader
        self._groups = groups
        self._every_steps = every_steps
        self._interrupt = interrupt
        self._on_measured = on_measured
        self._team = team

    def state_dict(self) -> dict[str, Any]:
        return {"last": None if self.last is None else asdict(self.last)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.last = None if state["last"] is None else Measured(**state["last"])

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """What an interruption came between."""
        if trainer.global_step and self._is_due(trainer.global_step, trainer):
            self.measure(trainer, module)

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, step: int
    ) -> None:
        if self._is_due(trainer.global_step, trainer):
            self.measure(trainer, module)

    def _is_due(self, step: int, trainer: Trainer) -> bool:
        is_chosen = self._every_steps is not None and step % self._every_steps == 0
        return is_chosen or step == trainer.max_steps

    def measure(self, trainer: Trainer, module: LightningModule) -> None:
        """Unless it was done already for this step."""
        assert isinstance(module, LanguageModule)
        if self.last is not None and self.last.step == trainer.global_step:
            return
        nats, targets = torch.zeros((), dtype=torch.float64), 0
        wrong = torch.zeros(len(self._groups), dtype=torch.int64)
        asked = torch.zeros_like(wrong)
        module.eval()
        # Compiling these shapes too would take longer than it saves.
        eager = torch.compiler.set_stance("force_eager")
        with eager, torch.no_grad(), trainer.precision_plugin.forward_context():
            for pairs, group in self._loader:
                self._interrupt(trainer)
                inputs, expected = pairs.to(module.device, non_blocking=True).unbind(1)
                documents, scored = module.documents(inputs), expected != IGNORED
                targets += int(scored.sum())
                if not self._groups:
                    nats += module.model(inputs, documents, targets=expected).nats.cpu()
                else:
                    logits = module.model(inputs, documents)
                    nats += token_nats(logits, expected).double().sum().cpu()
                    missed = (logits.argmax(dim=-1) != expected) & scored
                    wrong.index_add_(0, group, missed.sum(1).cpu())
                    asked.index_add_(0, group, scored.sum(1).cpu())
        module.train()
        module.parallel.release()
        sums = self._team.sum(torch.cat([nats.view(1), torch.tensor([targets]), wrong, asked]))
        n_groups = len(self._groups)
        nats, targets, *counts = sums.tolist()
        counted = zip(self._groups, counts[:n_groups], counts[n_groups:], strict=True)
        errors = {group: missed / total for group, missed, total in counted if total}
        self.last = Measured(trainer.global_step, nats, int(targets), errors)
        self._on_measured(self.last)
