"""RMSNorm (1910.07467) that returns the dtype of the following matmul."""

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
        """Return multiplier * RMSNorm(x), computed in fp32; x has shape (..., size).

        Under autocast the result has the autocast dtype. The following projections then share it
        without a copy each, and autograd adds their gradients in that dtype.
        """
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        if device == "cpu":
            gain = self.weight if multiplier == 1 else self.weight * multiplier
            return _RMSNorm.apply(x, gain, self._eps, dtype)[0]
        return self.infer(x, multiplier).to(dtype)

    def infer(self, x: Tensor, multiplier: float = 1.0) -> Tensor:
        """Return multiplier * RMSNorm(x) in the dtype of x, without the slower backward pass of `forward` on CPUs."""
        gain = self.weight if multiplier == 1 else self.weight * multiplier
        return F.rms_norm(x, self.normalized_shape, gain, self._eps)


class _RMSNorm(torch.autograd.Function):
    """RMSNorm on CPU with a hand-written backward pass.

    torch's CPU implementation runs a dozen operations and takes 1.5 times as long.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, gain: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        x_fp32 = x.to(torch.promote_types(x.dtype, torch.float32))
        length = torch.linalg.vector_norm(x_fp32, dim=-1, keepdim=True)
        scale = length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        # Dynamo of torch 2.11 drops the gradient if an in-place operation or a no-op `to` makes the result.
        normed = x_fp32 * scale * gain
        return normed if normed.dtype == dtype else normed.to(dtype), scale

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, gain, *_ = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(x, gain, output[1])

    @staticmethod
    def backward(ctx: Any, grad_normed: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        x, gain, scale = ctx.saved_tensors
        unit = x * scale
        grad_normed = grad_normed.to(scale.dtype)
        grad_gain = (grad_normed * unit).flatten(0, -2).sum(0)
        grad_unit = grad_normed * gain
        # Remove the component along x: it changes only the length, which the norm divides out.
        along_x = (grad_unit * unit).mean(dim=-1, keepdim=True)
        grad_x = grad_unit.addcmul_(unit, along_x, value=-1).mul_(scale).to(x.dtype)
        return grad_x, grad_gain.to(gain.dtype), None, None
