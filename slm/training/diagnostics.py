"""Diagnostics logged with a validation: weight norms and updates by tensor group, residual stream by depth.

They only read the training state: a run with them is equal to a run without them, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from slm.model.transformer import Transformer
from slm.tracking import run_dir
from slm.training.distributed.fabric import local_part
from slm.training.distributed.workers import Workers
from slm.training.step import TrainingStep


@contextmanager
def recorded_residual_rms(model: Transformer) -> Iterator[dict[str, float]]:
    """Yield a dict that is filled on exit: RMS of the residual stream in the first forward pass of the block.

    The mean is over tokens and channels. Layer 00 is the output of the embedding, layer n that of the n-th
    application of a block.
    """
    rms: list[Tensor] = []
    rows: dict[str, float] = {}

    def record(_: nn.Module, __: Any, output: Tensor) -> None:
        if len(rms) <= model.shape.depth:
            rms.append((_sum_of_squares(output) / output.numel()).sqrt())

    hooks = [part.register_forward_hook(record) for part in (model.embedding, *model.blocks)]
    try:
        yield rows
    finally:
        for hook in hooks:
            hook.remove()
    values = torch.stack(rms).tolist()
    rows |= {f"{run_dir.RESIDUAL_RMS}{layer:02d}": value for layer, value in enumerate(values)}


@torch.no_grad()
def weight_statistics(
    training_step: TrainingStep, workers: Workers, steps: int
) -> dict[str, float]:
    """Return the L2 norm of the weights after `steps` steps, and that of the last update relative to it.

    The norms are over all tensors of a group: embedding, attention, mlp, norm and, if untied, head. No copy of
    the weights before the step is needed: AdamW computes
        after = (1 - lr decay) before - lr direction,
    and its state gives the direction, so after - before = -lr (decay after + direction) / (1 - lr decay).
    """
    optimizer, squares = training_step.optimizer, dict[str, Tensor]()
    name_of = {tensor: name for name, tensor in training_step.module.model.named_parameters()}
    for group in optimizer.param_groups:
        # The schedule has advanced since the step, so group["lr"] is that of the next one.
        lr = group["initial_lr"] * training_step.lr_multiplier(steps - 1)
        decay = group["weight_decay"]
        for parameter in group["params"]:
            weight = local_part(parameter)
            direction = _adam_direction(optimizer.state[parameter], group, steps)
            update = direction.add_(weight, alpha=decay).mul_(lr / (1 - lr * decay))
            found = torch.stack([_sum_of_squares(weight), _sum_of_squares(update)])
            name = tensor_group(name_of[parameter])
            squares[name] = squares[name] + found if name in squares else found
    totals = torch.stack(list(squares.values()))
    if training_step.is_sharded:
        totals = workers.all_reduce_sum(totals)
    rows = {}
    for name, (norm, update_norm) in zip(squares, totals.sqrt().tolist(), strict=True):
        rows[run_dir.WEIGHT_NORM + name] = norm
        if norm:
            rows[run_dir.UPDATE_RATIO + name] = update_norm / norm
    return rows


def tensor_group(name: str) -> str:
    """Return embedding, attention, mlp, norm or head, for a parameter such as blocks.0.mlp.down.weight."""
    *parents, module, _ = name.split(".")
    if module.endswith("norm"):
        return "norm"
    return parents[-1] if parents else module


def _adam_direction(state: dict[str, Tensor], group: dict[str, Any], steps: int) -> Tensor:
    """Return what the learning rate of AdamW multiplied in the last of its `steps` (1711.05101, algorithm 2)."""
    beta1, beta2 = group["betas"]
    mean, square = local_part(state["exp_avg"]), local_part(state["exp_avg_sq"])
    root = (square / (1 - beta2**steps)).sqrt_().add_(group["eps"])
    return mean.div(1 - beta1**steps).div_(root)


def _sum_of_squares(x: Tensor) -> Tensor:
    """Return the sum of squares, in float64, without a float64 copy of x."""
    return torch.linalg.vector_norm(x, dim=-1).double().square().sum()
