"""Causal grouped-query attention behind one function, with interchangeable backends.

sdpa        torch's fused scaled_dot_product_attention; the default
flash       flash-attn 2 or newer, on CUDA in bf16 or fp16; written against its documented interface
            and held equal to the others by a test marked `gpu`; neither has been run yet
matmul      batched matrix products in blocks, for CPUs; fastest there in bf16 and for small shapes
reference   the definition, written out; any float dtype; for tests and for counting FLOPs
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
    """q (B, H, T, K), k and v (B, G, S, K) with G dividing H and S >= T -> (B, H, T, K).

    Query head h reads key/value head h // (H / G). Scores are scaled by 1 / sqrt(K). The T queries
    are the last of the S positions; each sees the keys up to its own. With `documents` (B, T), T = S,
    it sees those of its own document alone.
    """
    if backend == "sdpa":
        return _sdpa(q, k, v, documents)
    if backend == "flash":
        return _flash(q, k, v, documents)
    if backend == "matmul":
        return matmul_attention(q, k, v, documents)
    if backend == "reference":
        return _reference(q, k, v, documents)
    raise ValueError(f"attention backend {backend!r} is not one of: sdpa, flash, matmul, reference")


def document_ids(tokens: Tensor, separator: int) -> Tensor:
    """Number the documents of each row of tokens (B, T); a separator begins a document."""
    return (tokens == separator).cumsum(dim=1)


def require_flash() -> ModuleType:
    """The module `flash_attn`.

    Raises:
        ConfigError: naming the extra that brings it.
    """
    try:
        import flash_attn
    except ImportError:
        rule = "flash-attn is not installed; it needs CUDA"
        fix = "pip install 'slm[gpu]', or model.attention=sdpa"
        raise ConfigError([Problem("model.attention", "flash", rule, fix)]) from None
    return flash_attn


def _sdpa(q: Tensor, k: Tensor, v: Tensor, documents: Tensor | None) -> Tensor:
    queries, keys = q.shape[2], k.shape[2]
    causal = documents is None and queries == keys
    # One query at the end sees all keys; otherwise torch aligns its causal mask at the first key.
    mask = None if causal or (documents is None and queries == 1) else _visible(q, k, documents)
    grouped = k.shape[1] != q.shape[1]
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped
    )


def _reference(q: Tensor, k: Tensor, v: Tensor, documents: Tensor | None) -> Tensor:
    groups = k.shape[1]
    q = rearrange(q, "b (g r) t k -> b g r t k", g=groups)
    scores = torch.einsum("b g r t k, b g s k -> b g r t s", q, k) / math.sqrt(q.shape[-1])
    visible = _visible(q, k, documents).unsqueeze(2)
    weights = scores.masked_fill(~visible, -math.inf).softmax(dim=-1)
    mixed = torch.einsum("b g r t s, b g s k -> b g r t k", weights, v)
    return rearrange(mixed, "b g r t k -> b (g r) t k")


def _visible(q: Tensor, k: Tensor, documents: Tensor | None) -> Tensor:
    """Keys that each query sees: (1, 1, T, S), or (B, 1, T, S) with documents."""
    queries, keys = q.shape[-2], k.shape[-2]
    every = torch.ones(queries, keys, dtype=torch.bool, device=q.device)
    past = every.tril(keys - queries)[None, None]
    if documents is None:
        return past
    return past & (documents[:, None, :, None] == documents[:, None, None, :])


def _flash(q: Tensor, k: Tensor, v: Tensor, documents: Tensor | None) -> Tensor:
    flash_attn = require_flash()
    batch = q.shape[0]
    q, k, v = (rearrange(x, "b h t k -> b t h k") for x in (q, k, v))
    if documents is None:
        mixed = flash_attn.flash_attn_func(q, k, v, causal=True)
        return rearrange(mixed, "b t h k -> b h t k")
    # All documents of the batch as one packed sequence, with the position where each begins.
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    ends = torch.tensor([documents.numel()], device=documents.device)
    bounds = torch.cat([begins.flatten().nonzero().flatten(), ends]).int()
    longest = int(bounds.diff().max())
    packed = (rearrange(x, "b t h k -> (b t) h k") for x in (q, k, v))
    mixed = flash_attn.flash_attn_varlen_func(
        *packed, bounds, bounds, longest, longest, causal=True
    )
    return rearrange(mixed, "(b t) h k -> b h t k", b=batch)
