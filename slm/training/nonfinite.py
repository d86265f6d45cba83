"""The first step whose loss or gradient is not finite, and all after it, are not taken.

On a GPU nobody waits to learn whether a step is finite: the flag stays on the device, where the fused
optimizer reads it, and so does the evidence, until somebody asks.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from slm.errors import Diverged


class FiniteSteps:
    """Watches the steps of one optimizer. `names` are those of its tensors, in the order of norms.

    `at_once` is whether `check` follows each step: on CPU it costs nothing.
    """

    def __init__(self, names: Iterable[str], seed: int, device: torch.device):
        self.at_once = device.type == "cpu"
        self._names = tuple(names)
        self._seed = seed
        self._refused = torch.zeros((), dtype=torch.bool, device=device)
        # Step, loss and a norm per tensor of the first refused step.
        self._evidence = torch.zeros(2 + len(self._names), dtype=torch.float64, device=device)

    def admit(self, step: int, loss: Tensor, norms: Tensor, optimizer: Optimizer) -> None:
        """Let the optimizer take the step if loss (,) and gradient norms (tensors,) are finite."""
        bad = ~(loss + norms.sum()).isfinite()
        if self.at_once and not bad:
            return
        seen = torch.cat([loss.new_full((1,), step), loss.view(1), norms]).double()
        self._evidence = torch.where(bad & ~self._refused, seen, self._evidence)
        self._refused = self._refused | bad
        # Fused optimizers pass over a step whose `found_inf` is 1, as they do for gradient scalers.
        optimizer.found_inf = self._refused.float()  # type: ignore[attr-defined]
        if self.at_once:
            self.check()

    def check(self) -> None:
        """Wait for the device.

        Raises:
            Diverged: if a step was refused, with the evidence.
        """
        if not self._refused:
            return
        step, loss, *norms = self._evidence.tolist()
        groups = _by_group(zip(self._names, norms, strict=True))
        total = math.hypot(*groups.values())
        message = (
            f"step {int(step)}: loss {loss:g}, gradient norm {total:g}; the step was not taken"
        )
        evidence: dict[str, Any] = {
            "step": int(step),
            "batch_id": f"seed={self._seed} step={int(step)}",  # batches are a function of these
            "loss": _number(loss),
            "grad_norm": _number(total),
            "grad_norm_by_group": {group: _number(norm) for group, norm in groups.items()},
        }
        raise Diverged(message, evidence)


def _by_group(norms: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Norms of blocks.0.attention, blocks.0.mlp, embedding and so on from those of their tensors."""
    groups: dict[str, list[float]] = defaultdict(list)
    for name, norm in norms:
        parts = name.split(".")
        groups[".".join(parts[:3] if parts[0] == "blocks" else parts[:1])].append(norm)
    return {group: math.hypot(*members) for group, members in groups.items()}


def _number(value: float) -> float | str:
    """JSON has no number for what is not finite."""
    return value if math.isfinite(value) else f"{value:g}"
