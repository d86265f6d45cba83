"""Skip the first step whose loss or gradient is not finite, and every step after it.

On a GPU the host does not wait to learn whether a step is finite: the flag stays on the device, where the
fused optimizer reads it, and so does the evidence, until `check` reads both.
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


class NonFiniteCheck:
    """Check of the steps of one optimizer; `names` are those of its tensors, in the order of the norms.

    With `is_immediate` (on CPU, where it costs nothing), `admit` calls `check`.
    """

    def __init__(self, names: Iterable[str], seed: int, device: torch.device):
        self.is_immediate = device.type == "cpu"
        self._names = tuple(names)
        self._seed = seed
        self._has_failed = torch.zeros((), dtype=torch.bool, device=device)
        # Step, loss and the norm of each tensor in the first skipped step.
        self._evidence = torch.zeros(2 + len(self._names), dtype=torch.float64, device=device)

    def admit(self, step: int, loss: Tensor, norms: Tensor, optimizer: Optimizer) -> None:
        """Let the optimizer take the step if the loss () and the gradient norms (tensors,) are finite."""
        is_bad = ~(loss + norms.sum()).isfinite()
        if self.is_immediate and not is_bad:
            return
        values = torch.cat([loss.new_full((1,), step), loss.view(1), norms]).double()
        is_first = is_bad & ~self._has_failed
        self._evidence.copy_(torch.where(is_first, values, self._evidence))
        self._has_failed.logical_or_(is_bad)
        # Fused optimizers skip a step whose `found_inf` is 1, as they do for gradient scalers.
        optimizer.found_inf = self._has_failed.float()  # type: ignore[attr-defined]
        if self.is_immediate:
            self.check()

    def check(self) -> None:
        """Wait for the device and raise Diverged, with the evidence, if a step was skipped."""
        if not self._has_failed:
            return
        step, loss, *norms = self._evidence.tolist()
        groups = _norm_by_group(zip(self._names, norms, strict=True))
        total = math.hypot(*groups.values())
        message = (
            f"step {int(step)}: loss {loss:g}, gradient norm {total:g}; the step was not taken"
        )
        evidence: dict[str, Any] = {
            "step": int(step),
            "batch_id": f"seed={self._seed} step={int(step)}",  # batches are a function of these
            "loss": _to_json(loss),
            "grad_norm": _to_json(total),
            "grad_norm_by_group": {group: _to_json(norm) for group, norm in groups.items()},
        }
        raise Diverged(message, evidence)


def _norm_by_group(norms: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Return the norms of blocks.0.attention, blocks.0.mlp, embedding etc. from those of their tensors."""
    groups: dict[str, list[float]] = defaultdict(list)
    for name, norm in norms:
        parts = name.split(".")
        groups[".".join(parts[:3] if parts[0] == "blocks" else parts[:1])].append(norm)
    return {group: math.hypot(*members) for group, members in groups.items()}


def _to_json(value: float) -> float | str:
    """JSON has no number for infinity and NaN."""
    return value if math.isfinite(value) else f"{value:g}"
