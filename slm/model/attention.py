"""Causal grouped-query attention: one function, several backends.

sdpa        torch's fused scaled_dot_product_attention; the default
flash       flash-attn 2 or newer, on CUDA in bf16 or fp16; written from its documentation, with a test
            marked `gpu` against `reference`; neither has been run yet
matmul      batched matrix products in blocks, for CPUs; fastest there in bf16 and for small shapes
reference   the definition in einsum notation; any float dtype; for tests and for counting FLOPs
"""

from __future__ import annotations

import math
from types import ModuleType

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from slm.errors import ConfigError, Problem
from slm.model.attention_matmul import matmul_attention


def attend(
    q: Tensor, k: Tensor, v: Tensor, backend: str = "sdpa", documents: Tensor | None = None
) -> Tensor:
    """Return the attention output (B, H, T, K) of q (B, H, T, K) and k, v (B, G, S, K).

    G divides H, and query head h uses key/value head h // (H / G). Scores are scaled by 1 / sqrt(K).
    The T queries are the last of the S positions; each attends to the keys up to its own position.
    With `documents` (B, T) and T = S, it attends only to keys with the same document id.

    Raises:
        ValueError: if the backend does not exist.
    """
    if backend == "sdpa":
        return _sdpa(q, k, v, documents)
    if backend == "flash":
        return _flash(q, k, v, documents)
    if backend == "matmul":
        return matmul_attention(q, k, v, documents)
    if backend == "reference":
        return _reference(q, k, v, documents)
    raise ValueError(f"unknown attention backend {backend!r}; use sdpa, flash, matmul or reference")


def document_ids(tokens: Tensor, separator: int) -> Tensor:
    """Return the document id of each token, shape (B, T); each separator starts a new document."""
    return (tokens == separator).cumsum(dim=1)


def require_flash() -> ModuleType:
    """Import and return the module `flash_attn`.

    Raises:
        ConfigError: if it is not installed; the message names the extra that installs it.
    """
    try:
        import flash_attn
    except ImportError:
        rule = "flash-attn is not installed (it requires CUDA)"
        fix = "run pip install 'slm[flash]', or set model.attention=sdpa"
        raise ConfigError([Problem("model.attention", "flash", rule, fix)]) from None
    return flash_attn


def _sdpa(q: Tensor, k: Tensor, v: Tensor, documents: Tensor | None) -> Tensor:
    queries, keys = q.shape[2], k.shape[2]
    causal = documents is None and queries == keys
    # A single query attends to all keys and needs no mask. With 1 < T < S, is_causal would be wrong:
    # torch aligns its causal mask at the first key, not at the last.
    needs_no_mask = causal or (documents is None and queries == 1)
    mask = None if needs_no_mask else _attention_mask(q, k, documents)
    grouped = k.shape[1] != q.shape[1]
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped
    )


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


def _flash(q: Tensor, k: Tensor, v: Tensor, documents: Tensor | None) -> Tensor:
    flash_attn = require_flash()
    batch = q.shape[0]
    q, k, v = (rearrange(x, "b h t k -> b t h k") for x in (q, k, v))
    if documents is None:
        output = flash_attn.flash_attn_func(q, k, v, causal=True)
        return rearrange(output, "b t h k -> b h t k")
    # Concatenate all documents of the batch; cu_seqlens are the start positions and the total length.
    is_start = torch.ones_like(documents, dtype=torch.bool)
    is_start[:, 1:] = documents[:, 1:] != documents[:, :-1]
    total = torch.tensor([documents.numel()], device=documents.device)
    cu_seqlens = torch.cat([is_start.flatten().nonzero().flatten(), total]).int()
    longest = int(cu_seqlens.diff().max())
    packed = (rearrange(x, "b t h k -> (b t) h k") for x in (q, k, v))
    output = flash_attn.flash_attn_varlen_func(
        *packed, cu_seqlens, cu_seqlens, longest, longest, causal=True
    )
    return rearrange(output, "(b t) h k -> b h t k", b=batch)
