"""Memory layout of the weights for decoding on a CPU.

A decoding step at batch 1 multiplies every weight matrix by one vector: its time is that of reading the weights. torch's
matrix-vector products read them at half the speed of the memory or less, unless they are stored for it:

- fp32: a weight (N, K) is read faster if its columns are contiguous and N >= K: measured on two cores, 21 against
  11 GB/s for (3072, 576). Values, shapes and names stay as they are.
- bf16: oneDNN reorders a weight for its kernels on every call. Reordered once, (3072, 576) took 260 instead of 410
  microseconds on the same cores, and the head (32000, 576) 1.3 instead of 2.7 ms. The reordered weight is opaque.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@torch.no_grad()
def prepare_for_decoding(model: nn.Module, dtype: torch.dtype = torch.float32) -> None:
    """Convert a model on the CPU to `dtype` and store its matrices for decoding; one is held twice at a time.

    For inference only: torch's optimizers are slower on such parameters, and in bf16 the linear layers have no
    parameter any more.
    """
    model.to(dtype)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if not isinstance(child, nn.Linear):
                continue
            if dtype == torch.bfloat16 and has_packed_products():
                setattr(parent, name, PackedLinear(child.weight))
            elif len(child.weight) >= child.in_features:
                # A table that is tied to the embedding stays tied: the parameter is the same object.
                child.weight.data = child.weight.t().contiguous().t()
    _return_freed_memory()


def _return_freed_memory() -> None:
    """Return the memory of the former weights to the system; glibc keeps it otherwise, other C libraries do not."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


class PackedLinear(nn.Module):
    """Linear layer without bias whose weight (N, K) in bf16 was reordered by oneDNN; for inference on CPUs."""

    def __init__(self, weight: Tensor):
        super().__init__()
        self._packed = _operators()._reorder_linear_weight(weight.detach(), 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return x (..., K) times the transposed weight, (..., N)."""
        return _operators()._linear_pointwise(x, self._packed, None, "none", [], "")


@cache
def has_packed_products() -> bool:
    """Return whether this torch has oneDNN's products with reordered weights, which are not part of its public API."""
    weight, x = torch.eye(32, dtype=torch.bfloat16), torch.ones(1, 32, dtype=torch.bfloat16)
    try:
        return torch.equal(PackedLinear(weight)(x), F.linear(x, weight))
    except (AttributeError, RuntimeError, NotImplementedError, TypeError):
        return False


def _operators() -> Any:
    return torch.ops.mkldnn
