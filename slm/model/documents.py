"""Documents of a packed batch: their ids, and the layout that attention needs, computed once per batch.

Shapes: B sequences, T tokens, N the largest number of documents that a layout can hold. All shapes depend
only on B and T, so that nothing is copied to the host and nothing is recompiled.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from slm.architecture.varlen import MIN_VARLEN_CAPABILITY, has_varlen_shape, max_documents


class Documents(NamedTuple):
    """Layout of the documents of a batch; at most one of the last two is not None."""

    ids: Tensor
    """Document ids (B, T)."""
    mask: Tensor | None = None
    """Additive attention mask (B, 1, T, T): 0 for the earlier keys of the same document, else -inf."""
    cu_seqlens: Tensor | None = None
    """Start of each document in the B T tokens, and B T after the last one: int32, (N + 1,)."""


def document_ids(tokens: Tensor, separator: int) -> Tensor:
    """Return the document id of each token, shape (B, T); each separator starts a new document."""
    return (tokens == separator).cumsum(dim=1)


def document_layout(ids: Tensor, backend: str, dtype: torch.dtype, d_head: int) -> Documents:
    """Compute what the attention `backend` needs for document ids (B, T) and queries of `dtype`.

    matmul and reference mask their own blocks of scores; flash, and sdpa on GPUs in 16 bits, use
    kernels for sequences of several lengths; sdpa elsewhere uses an additive mask.
    """
    if backend not in ("sdpa", "flash"):
        return Documents(ids)
    if ids.shape[1] > 1 and (backend == "flash" or _has_varlen_kernel(ids, dtype, d_head)):
        return Documents(ids, cu_seqlens=cumulative_lengths(ids))
    allowed = (ids[:, :, None] == ids[:, None, :]).tril()
    mask = torch.zeros_like(allowed, dtype=dtype).masked_fill_(~allowed, -math.inf)
    return Documents(ids, mask=mask.unsqueeze(1))


def cumulative_lengths(ids: Tensor) -> Tensor:
    """Return the start positions of the documents and, up to the end, the number of tokens.

    Raises:
        RuntimeError: if the batch has more than `max_documents`; on CUDA the device reports it, and the
            process cannot use the device afterwards.
    """
    limit = max_documents(*ids.shape)
    is_start = torch.ones_like(ids, dtype=torch.bool)
    is_start[:, 1:] = ids[:, 1:] != ids[:, :-1]
    number = is_start.flatten().cumsum(0)  # of documents up to each token
    error = (
        f"a micro-batch of {ids.shape[0]} x {ids.shape[1]} tokens has more than {limit} documents; "
        "set model.attention=matmul or model.document_mask=false"
    )
    torch._assert_async(number[-1] <= limit, error)
    # The n-th document starts at the first token that has n documents up to it.
    nth = torch.arange(1, limit + 2, device=ids.device)
    return torch.searchsorted(number, nth, out_int32=True)


def _has_varlen_kernel(ids: Tensor, dtype: torch.dtype, d_head: int) -> bool:
    return (
        ids.is_cuda
        and dtype in (torch.bfloat16, torch.float16)
        and has_varlen_shape(d_head)
        and _capability(ids.device.index or 0) >= MIN_VARLEN_CAPABILITY
    )


@torch.compiler.assume_constant_result
def _capability(index: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)
