"""RMSNorm (1910.07467) that gives the type which the matrix products after it take."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.RMSNorm):
    def __init__(self, size: int, eps: float):
        super().__init__(size, eps=eps)
        self._eps = eps

    def forward(self, x: Tensor, multiplier: float = 1.0) -> Tensor:
        """x (..., size) -> multiplier times its norm, computed in fp32.

        Under autocast the result is in its type: query, key and value, or gate and up, then need no
        copy each, and their gradients are added up in that type.
        """
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        gain = self.weight if multiplier == 1 else self.weight * multiplier
        if device == "cpu":
            return _RMSNorm.apply(x, gain, self._eps, dtype)[0]
        return F.rms_norm(x, self.normalized_shape, gain, self._eps).to(dtype)


class _RMSNorm(torch.autograd.Function):
    """torch's on CPU is made of a dozen operations, and takes 1.5 times as long."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, gain: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        exact = x.to(torch.promote_types(x.dtype, torch.float32))
        length = torch.linalg.vector_norm(exact, dim=-1, keepdim=True)
        scale = length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        return (exact * scale).mul_(gain).to(dtype), scale

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, gain, *_ = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(x, gain, output[1])

    @staticmethod
    def backward(ctx: Any, by_normed: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        x, gain, scale = ctx.saved_tensors
        unit = x * scale
        by_normed = by_normed.to(scale.dtype)
        by_gain = (by_normed * unit).flatten(0, -2).sum(0)
        by_unit = by_normed * gain
        # The part along x changes its length alone, which is normalised away.
        along = (by_unit * unit).mean(dim=-1, keepdim=True)
        by_x = by_unit.addcmul_(unit, along, value=-1).mul_(scale).to(x.dtype)
        return by_x, by_gain.to(gain.dtype), None, None
