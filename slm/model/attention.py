"""Causal grouped-query attention behind one function, with interchangeable backends.

sdpa        torch's fused scaled_dot_product_attention; the default
reference   the definition, written out; any float dtype; for tests and for counting FLOPs
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor


def attend(q: Tensor, k: Tensor, v: Tensor, backend: str) -> Tensor:
    """q (B, H, T, K), k and v (B, G, T, K) with G dividing H -> (B, H, T, K).

    Query head h reads key/value head h // (H / G). Scores are scaled by 1 / sqrt(K).
    """
    if backend == "sdpa":
        grouped = k.shape[1] != q.shape[1]
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
    if backend == "reference":
        return _reference(q, k, v)
    raise ValueError(f"attention backend {backend!r} is not one of: sdpa, reference")


def _reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    grouped = rearrange(q, "b (g r) t k -> b g r t k", g=k.shape[1])
    scores = torch.einsum("b g r t k, b g s k -> b g r t s", grouped, k) / math.sqrt(q.shape[-1])
    future = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).triu(1)
    weights = scores.masked_fill(future, -math.inf).softmax(dim=-1)
    mixed = torch.einsum("b g r t s, b g s k -> b g r t k", weights, v)
    return rearrange(mixed, "b g r t k -> b (g r) t k")
