"""Causal grouped-query attention: one function, several backends.

sdpa        torch's fused scaled_dot_product_attention; the default
flash       flash-attn 2 or newer, on CUDA in bf16 or fp16; written from its documentation, with a test
            marked `gpu` against `reference`; neither has been run yet
matmul      batched matrix products in blocks, for CPUs; fastest there in bf16 and for small shapes
reference   the definition in einsum notation; any float dtype; for tests and for counting FLOPs
"""

from __future__ import annotations

import inspect
import math
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from slm.errors import ConfigError, Problem
from slm.model.attention_matmul import matmul_attention
from slm.model.documents import Documents, document_layout

HALF_DTYPES = (torch.bfloat16, torch.float16)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    backend: str = "sdpa",
    documents: Documents | Tensor | None = None,
) -> Tensor:
    """Return the attention output (B, H, T, K) of q (B, H, T, K) and k, v (B, G, S, K).

    G divides H, and query head h uses key/value head h // (H / G). Scores are scaled by 1 / sqrt(K).
    The T queries are the last of the S positions; each attends to the keys up to its own position.
    With `documents` and T = S, it attends only to keys with the same document id. They are ids (B, T),
    or the layout of the ids for this backend if several layers use it.

    Raises:
        ValueError: if the backend does not exist.
    """
    if isinstance(documents, Tensor):
        documents = document_layout(documents, backend, q.dtype, q.shape[-1])
    if backend == "sdpa":
        return _sdpa(q, k, v, documents)
    if backend == "flash":
        return _flash(q, k, v, documents)
    ids = None if documents is None else documents.ids
    if backend == "matmul":
        return matmul_attention(q, k, v, ids)
    if backend == "reference":
        return _reference(q, k, v, ids)
    raise ValueError(f"unknown attention backend {backend!r}; use sdpa, flash, matmul or reference")


def attend_to_cache(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Return the attention output (B, T, H, K) of q (B, T, H, K) and cached k, v (B, G, S, K).

    `mask` (B or 1, 1, T, S) is added to the scores. Without one, T is 1 or S: a single token attends to all keys,
    and a whole sequence causally.
    """
    batch, queries, heads, d_head = q.shape
    groups = k.shape[1]
    if queries > 1:
        q = q.transpose(1, 2)
        grouped = groups != heads
        if grouped and q.is_cuda and (mask is not None or q.dtype not in HALF_DTYPES):
            k, v, grouped = _expand_groups(k, q), _expand_groups(v, q), False
        causal = mask is None
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped
        ).transpose(1, 2)
    # The query heads that share keys are rows of one product: 5 times as fast on CPUs in bf16.
    rows = q.view(batch, groups, heads // groups, d_head)
    return F.scaled_dot_product_attention(rows, k, v, attn_mask=mask).view(q.shape)


def require_flash() -> ModuleType:
    """Import and return the module `flash_attn`.

    Raises:
        ConfigError: if it is not installed; the message names the extra that installs it.
    """
    try:
        import flash_attn
    except ImportError:
        rule = "flash-attn is not installed (it requires CUDA)"
        fix = "run pip install -e '.[flash]' in the repository, or set model.attention=sdpa"
        raise ConfigError([Problem("model.attention", "flash", rule, fix)]) from None
    return flash_attn


def _sdpa(q: Tensor, k: Tensor, v: Tensor, documents: Documents | None) -> Tensor:
    if documents is not None and documents.cu_seqlens is not None:
        return _varlen(q, k, v, documents.cu_seqlens)
    queries, keys = q.shape[2], k.shape[2]
    causal = documents is None and queries == keys
    mask = None if documents is None else documents.mask
    # A single query attends to all keys and needs no mask. With 1 < T < S, is_causal would be wrong:
    # torch aligns its causal mask at the first key, not at the last.
    if documents is None and not causal and queries > 1:
        mask = _attention_mask(q, k, None)
    grouped = k.shape[1] != q.shape[1]
    if grouped and q.is_cuda and (mask is not None or q.dtype not in HALF_DTYPES):
        # Of CUDA's fused kernels only those without a mask, in 16 bits, have grouped queries.
        k, v, grouped = _expand_groups(k, q), _expand_groups(v, q), False
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped
    )


def _expand_groups(x: Tensor, q: Tensor) -> Tensor:
    """Repeat each key or value head of x (B, G, S, K) for its H / G query heads."""
    return x.repeat_interleave(q.shape[1] // x.shape[1], dim=1)


def _varlen(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Compute torch's FlashAttention over documents; the longest may have all T tokens."""
    from torch.nn.attention.varlen import varlen_attn

    batch, _, longest, _ = q.shape
    # torch 2.10 has is_causal instead of window_size; enable_gqa is newer than both.
    options: dict[str, Any] = {"is_causal": True}
    if _varlen_accepts("window_size"):
        options = {"window_size": (-1, 0)}
    if k.shape[1] != q.shape[1]:
        if _varlen_accepts("enable_gqa"):
            options["enable_gqa"] = True
        else:
            k, v = _expand_groups(k, q), _expand_groups(v, q)
    q, k, v = (rearrange(x, "b h t k -> (b t) h k") for x in (q, k, v))
    output = varlen_attn(q, k, v, cu_seqlens, cu_seqlens, longest, longest, **options)
    assert isinstance(output, Tensor)  # a pair only with return_aux
    return rearrange(output, "(b t) h k -> b h t k", b=batch)


@torch.compiler.assume_constant_result
def _varlen_accepts(parameter: str) -> bool:
    from torch.nn.attention.varlen import varlen_attn

    return parameter in inspect.signature(varlen_attn).parameters


def _reference(q: Tensor, k: Tensor, v: Tensor, documents: Tensor | None) -> Tensor:
    groups = k.shape[1]
    q = rearrange(q, "b (g r) t k -> b g r t k", g=groups)
    scores = torch.einsum("b g r t k, b g s k -> b g r t s", q, k) / math.sqrt(q.shape[-1])
    mask = _attention_mask(q, k, documents).unsqueeze(2)
    weights = scores.masked_fill(~mask, -math.inf).softmax(dim=-1)
    output = torch.einsum("b g r t s, b g s k -> b g r t k", weights, v)
    return rearrange(output, "b g r t k -> b (g r) t k")


def _attention_mask(q: Tensor, k: Tensor, documents: Tensor | None) -> Tensor:
    """Return True where a query may attend to a key: (1, 1, T, S), or (B, 1, T, S) with documents."""
    queries, keys = q.shape[-2], k.shape[-2]
    ones = torch.ones(queries, keys, dtype=torch.bool, device=q.device)
    causal = ones.tril(keys - queries)[None, None]
    if documents is None:
        return causal
    return causal & (documents[:, None, :, None] == documents[:, None, None, :])


def _flash(q: Tensor, k: Tensor, v: Tensor, documents: Documents | None) -> Tensor:
    flash_attn = require_flash()
    batch, _, longest, _ = q.shape
    if documents is None or documents.cu_seqlens is None:  # a single token per row needs no layout
        q, k, v = (rearrange(x, "b h t k -> b t h k") for x in (q, k, v))
        output = flash_attn.flash_attn_func(q, k, v, causal=True)
        return rearrange(output, "b t h k -> b h t k")
    lengths = documents.cu_seqlens
    packed = (rearrange(x, "b h t k -> (b t) h k") for x in (q, k, v))
    output = flash_attn.flash_attn_varlen_func(
        *packed, lengths, lengths, longest, longest, causal=True
    )
    return rearrange(output, "(b t) h k -> b h t k", b=batch)
