"""Causal attention as plain batched matrix products, a block of queries at a time.

For CPUs: torch's fused attention is several times slower there in bf16, and in fp32 where sequences
or heads are small. A block of queries meets no key beyond its last query, so scores above the diagonal
are computed within blocks alone. The H / G query heads that read one key/value head are rows of one
product. The weights of attention are kept for the backward pass: T^2 / 2 of them for each query head,
which fused attention would make again.

It is an operator of its own, so that torch.compile calls it and compiles what stands around it.
Shapes: B batch, H query heads, G key/value heads, T queries, S keys, K d_head; n queries in a block.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

# Measured on two CPU cores, sequences of 128 to 2048, heads of 8 to 64: smaller blocks skip more of
# the future, larger ones make better products.
MIN_BLOCK_QUERIES, MAX_BLOCKS = 64, 16


def matmul_attention(q: Tensor, k: Tensor, v: Tensor, documents: Tensor | None) -> Tensor:
    """As `slm.model.attention.attend`; scores and weights are rounded to the type of the inputs."""
    keep = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    mixed, _ = _attend(q, k, v, documents, keep)
    return mixed


@torch.library.custom_op("slm::matmul_attention", mutates_args=())
def _attend(
    q: Tensor, k: Tensor, v: Tensor, documents: Tensor | None, keep: bool
) -> tuple[Tensor, list[Tensor]]:
    """What is mixed (B, H, T, K) and, with `keep`, the weights of each block."""
    mixed, kept = _empty_like_projection(q), []
    with torch.autocast(q.device.type, enabled=False):
        keys, values = _scaled_keys(k), v.flatten(0, 1)
        for start, end, seen in _blocks(q, k):
            scores = _rows(q, k, start, end) @ keys[:, :seen].mT
            _hide(scores.view(*q.shape[:2], end - start, seen), documents, start)
            weights = scores.softmax(dim=-1)
            block = mixed[:, :, start:end]
            block.copy_((weights @ values[:, :seen]).view_as(block))
            if keep:
                kept.append(weights)
    return mixed, kept


@_attend.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, documents: Tensor | None, keep: bool
) -> tuple[Tensor, list[Tensor]]:
    batch, groups = k.shape[:2]
    shared = q.shape[1] // groups
    kept = [
        q.new_empty(batch * groups, shared * (end - start), seen)
        for start, end, seen in _blocks(q, k)
    ]
    return _empty_like_projection(q), kept if keep else []


@torch.library.custom_op("slm::matmul_attention_backward", mutates_args=())
def _attend_backward(
    by_mixed: Tensor, q: Tensor, k: Tensor, v: Tensor, kept: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    by_q = _empty_like_projection(q)
    with torch.autocast(q.device.type, enabled=False):
        keys, values = _scaled_keys(k), v.flatten(0, 1)
        exact = torch.promote_types(q.dtype, torch.float32)
        by_keys, by_values = (torch.zeros_like(x, dtype=exact) for x in (keys, values))
        for weights, (start, end, seen) in zip(kept, _blocks(q, k), strict=True):
            by_rows = _rows(by_mixed, k, start, end)
            by_values[:, :seen] += weights.mT @ by_rows
            by_weights = by_rows @ values[:, :seen].mT
            by_scores = torch._softmax_backward_data(by_weights, weights, -1, weights.dtype)
            block = by_q[:, :, start:end]
            block.copy_((by_scores @ keys[:, :seen]).view_as(block))
            by_keys[:, :seen] += by_scores.mT @ _rows(q, k, start, end)
        by_k = (by_keys * _scale(k)).to(k.dtype).view(k.shape)
    return by_q, by_k, by_values.to(v.dtype).view(v.shape)


@_attend_backward.register_fake
def _(
    by_mixed: Tensor, q: Tensor, k: Tensor, v: Tensor, kept: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_like_projection(q), k.new_empty(k.shape), v.new_empty(v.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, list[Tensor]]) -> None:
    q, k, v, *_ = inputs
    ctx.set_materialize_grads(False)  # else torch makes zeros as gradients of the weights
    ctx.save_for_backward(q, k, v, *output[1])


def _differentiate(ctx: Any, by_mixed: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    if by_mixed is None:
        return (None,) * 5
    q, k, v, *kept = ctx.saved_tensors
    return *_attend_backward(by_mixed, q, k, v, kept), None, None


_attend.register_autograd(_differentiate, setup_context=_save)


def _blocks(q: Tensor, k: Tensor) -> Iterator[tuple[int, int, int]]:
    """First query, end, and number of keys seen, of each block."""
    queries, keys = q.shape[2], k.shape[2]
    size = max(MIN_BLOCK_QUERIES, math.ceil(queries / MAX_BLOCKS))
    for start in range(0, queries, size):
        end = min(start + size, queries)
        yield start, end, keys - queries + end


def _rows(x: Tensor, k: Tensor, start: int, end: int) -> Tensor:
    """Of x (B, H, T, K) the block's part, (B G, H / G n, K)."""
    batch, groups, _, d_head = k.shape
    return x[:, :, start:end].reshape(batch * groups, -1, d_head)


def _scaled_keys(k: Tensor) -> Tensor:
    """(B G, S, K): scaling them costs less than scaling queries or scores."""
    return k.flatten(0, 1) * _scale(k)


def _scale(k: Tensor) -> float:
    return 1 / math.sqrt(k.shape[-1])


def _hide(scores: Tensor, documents: Tensor | None, start: int) -> None:
    """Set scores (B, H, n, seen) of the future and of other documents to -inf."""
    queries, seen = scores.shape[-2:]
    future = torch.ones(queries, queries, dtype=torch.bool, device=scores.device).triu(1)
    scores[..., seen - queries :].masked_fill_(future, -math.inf)
    if documents is not None:
        own, all_seen = documents[:, None, start : start + queries, None], documents[:, None, None]
        scores.masked_fill_(own != all_seen[..., :seen], -math.inf)


def _empty_like_projection(q: Tensor) -> Tensor:
    """(B, H, T, K) in the memory order (B, T, H, K), in which projections read and write."""
    batch, heads, queries, d_head = q.shape
    return q.new_empty(batch, queries, heads, d_head).transpose(1, 2)
