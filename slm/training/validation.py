"""Loss on the fixed validation set, as sums over all ranks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from slm.errors import Diverged
from slm.model.loss import IGNORED, token_nats
from slm.training.batches import ValidationBatches
from slm.training.distributed.fabric import reshard
from slm.training.distributed.workers import Workers
from slm.training.module import LanguageModule


@dataclass(frozen=True)
class Measurement:
    """Sums over the whole validation set after `step`."""

    step: int
    nats: float
    targets: int
    errors: dict[str, float] = field(default_factory=dict)
    """Error rate by group, for tasks that have groups."""


@torch.no_grad()
def measure_validation(
    module: LanguageModule,
    batches: ValidationBatches,
    *,
    step: int,
    workers: Workers,
    before_batch: Callable[[], None],
) -> Measurement:
    """Measure the module on this rank's batches and sum over ranks; `before_batch` may raise to stop.

    All sums stay on the device until the end, so that no batch waits for the host.

    Raises:
        Diverged: if the loss is not finite; it is raised on all ranks.
    """
    device, groups = next(module.parameters()).device, batches.groups
    nats = torch.zeros(1, dtype=torch.float64, device=device)
    counts = torch.zeros(1 + 2 * len(groups), dtype=torch.float64, device=device)
    wrong, scored_by_group = counts[1:].view(2, -1)
    module.eval()
    # Compiling these shapes as well would take longer than it saves.
    with torch.compiler.set_stance("force_eager"):
        for pairs, group in batches:
            before_batch()
            inputs, targets = _to_device(pairs, device).unbind(1)
            scored = targets != IGNORED
            counts[0] += scored.sum()
            if not groups:
                nats += module(inputs, targets).nats
                continue
            logits = module(inputs)
            nats += token_nats(logits, targets).double().sum()
            missed = (logits.argmax(dim=-1) != targets) & scored
            index = _to_device(group, device)
            wrong.index_add_(0, index, missed.sum(1).double())
            scored_by_group.index_add_(0, index, scored.sum(1).double())
    module.train()
    reshard(module)
    total_nats, n_targets, *by_group = workers.all_reduce_sum(torch.cat([nats, counts])).tolist()
    n_groups = len(groups)
    counted = zip(groups, by_group[:n_groups], by_group[n_groups:], strict=True)
    errors = {group: missed / total for group, missed, total in counted if total}
    if not math.isfinite(total_nats):
        raise _diverged(step, total_nats)
    return Measurement(step, total_nats, int(n_targets), errors)


def _diverged(step: int, nats: float) -> Diverged:
    evidence = {"step": step, "batch_id": "validation", "loss": f"{nats:g}"}
    return Diverged(f"validation after step {step}: loss {nats:g}", evidence)


def _to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy without waiting, which CUDA does only from pinned memory."""
    pinned = tensor.pin_memory() if device.type == "cuda" else tensor
    return pinned.to(device, non_blocking=True)


def val_losses(measured: Measurement, val_bytes: int | None) -> tuple[float, float | None]:
    """Return nats per token and, for text, bits per byte."""
    bits = measured.nats / math.log(2)
    return measured.nats / measured.targets, bits / val_bytes if val_bytes else None
