"""Causal attention as batched matrix products over blocks of queries.

For CPUs: torch's fused attention is several times slower there in bf16, and in fp32 for short
sequences or small heads. Each block of queries is multiplied with the keys up to its last query, so
future keys are computed only within a block. The H / G query heads that share a key/value head are
rows of one product. Attention weights are saved for the backward pass (T^2 / 2 per query head);
fused attention recomputes them.

The function is a custom operator, so that torch.compile calls it without tracing into it.
Shapes: B batch, H query heads, G key/value heads, T queries, S keys, K d_head; n queries in a block.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from slm.architecture.query_blocks import block_queries


def matmul_attention(q: Tensor, k: Tensor, v: Tensor, documents: Tensor | None) -> Tensor:
    """Compute `slm.model.attention.attend`, with scores and weights in the dtype of the inputs."""
    save_weights = torch.is_grad_enabled() and (
        q.requires_grad or k.requires_grad or v.requires_grad
    )
    output, _ = _attend(q, k, v, documents, save_weights)
    return output


@torch.library.custom_op("slm::matmul_attention", mutates_args=())
def _attend(
    q: Tensor, k: Tensor, v: Tensor, documents: Tensor | None, save_weights: bool
) -> tuple[Tensor, list[Tensor]]:
    """Return the attention output (B, H, T, K) and, with `save_weights`, the weights per block."""
    output, saved = _empty_like_query(q), []
    with torch.autocast(q.device.type, enabled=False):
        keys, values = _scaled_keys(k), v.flatten(0, 1)
        for start, end, n_keys in _blocks(q, k):
            scores = _rows(q, k, start, end) @ keys[:, :n_keys].mT
            _mask_scores(scores.view(*q.shape[:2], end - start, n_keys), documents, start)
            weights = scores.softmax(dim=-1)
            block = output[:, :, start:end]
            block.copy_((weights @ values[:, :n_keys]).view_as(block))
            if save_weights:
                saved.append(weights)
    return output, saved


@_attend.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, documents: Tensor | None, save_weights: bool
) -> tuple[Tensor, list[Tensor]]:
    batch, groups = k.shape[:2]
    heads_per_group = q.shape[1] // groups
    saved = [
        q.new_empty(batch * groups, heads_per_group * (end - start), n_keys)
        for start, end, n_keys in _blocks(q, k)
    ]
    return _empty_like_query(q), saved if save_weights else []


@torch.library.custom_op("slm::matmul_attention_backward", mutates_args=())
def _attend_backward(
    grad_output: Tensor, q: Tensor, k: Tensor, v: Tensor, saved: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    grad_q = _empty_like_query(q)
    with torch.autocast(q.device.type, enabled=False):
        keys, values = _scaled_keys(k), v.flatten(0, 1)
        accumulation_dtype = torch.promote_types(q.dtype, torch.float32)
        grad_keys, grad_values = (
            torch.zeros_like(x, dtype=accumulation_dtype) for x in (keys, values)
        )
        for weights, (start, end, n_keys) in zip(saved, _blocks(q, k), strict=True):
            grad_rows = _rows(grad_output, k, start, end)
            grad_values[:, :n_keys] += weights.mT @ grad_rows
            grad_weights = grad_rows @ values[:, :n_keys].mT
            grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
            block = grad_q[:, :, start:end]
            block.copy_((grad_scores @ keys[:, :n_keys]).view_as(block))
            grad_keys[:, :n_keys] += grad_scores.mT @ _rows(q, k, start, end)
        grad_k = (grad_keys * _scale(k)).to(k.dtype).view(k.shape)
    return grad_q, grad_k, grad_values.to(v.dtype).view(v.shape)


@_attend_backward.register_fake
def _(
    grad_output: Tensor, q: Tensor, k: Tensor, v: Tensor, saved: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_like_query(q), k.new_empty(k.shape), v.new_empty(v.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, list[Tensor]]) -> None:
    q, k, v, *_ = inputs
    ctx.set_materialize_grads(False)  # or torch allocates zero gradients for the weights
    ctx.save_for_backward(q, k, v, *output[1])


def _backward(ctx: Any, grad_output: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    if grad_output is None:
        return (None,) * 5
    q, k, v, *saved = ctx.saved_tensors
    return *_attend_backward(grad_output, q, k, v, saved), None, None


_attend.register_autograd(_backward, setup_context=_save)


def _blocks(q: Tensor, k: Tensor) -> Iterator[tuple[int, int, int]]:
    """Yield (first query, end query, number of keys up to the end) of each block."""
    queries, keys = q.shape[2], k.shape[2]
    size = block_queries(queries)
    for start in range(0, queries, size):
        end = min(start + size, queries)
        yield start, end, keys - queries + end


def _rows(x: Tensor, k: Tensor, start: int, end: int) -> Tensor:
    """Return queries start to end of x (B, H, T, K), grouped by key/value head: (B G, H / G n, K)."""
    batch, groups, _, d_head = k.shape
    return x[:, :, start:end].reshape(batch * groups, -1, d_head)


def _scaled_keys(k: Tensor) -> Tensor:
    """Return the keys (B G, S, K) times 1 / sqrt(K); cheaper than scaling queries or scores."""
    return k.flatten(0, 1) * _scale(k)


def _scale(k: Tensor) -> float:
    return 1 / math.sqrt(k.shape[-1])


def _mask_scores(scores: Tensor, documents: Tensor | None, start: int) -> None:
    """Set scores (B, H, n, n_keys) of future keys and of other documents to -inf, in place."""
    queries, n_keys = scores.shape[-2:]
    future = torch.ones(queries, queries, dtype=torch.bool, device=scores.device).triu(1)
    scores[..., n_keys - queries :].masked_fill_(future, -math.inf)
    if documents is not None:
        of_queries = documents[:, None, start : start + queries, None]
        of_keys = documents[:, None, None, :n_keys]
        scores.masked_fill_(of_queries != of_keys, -math.inf)


def _empty_like_query(q: Tensor) -> Tensor:
    """Allocate (B, H, T, K) with the memory layout (B, T, H, K) that the projections use."""
    batch, heads, queries, d_head = q.shape
    return q.new_empty(batch, queries, heads, d_head).transpose(1, 2)
