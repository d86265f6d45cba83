"""A decoder-only transformer.

    tokens (B, T)
      └─ embedding ─▶ x (B, T, D)
           ├─ n_layers of  x = x + m Attention(RMSNorm(x))     grouped queries, RoPE
           │               x = x + m MLP(RMSNorm(x))           each block runs layer_sharing times
           └─ RMSNorm ─▶ head (the embedding table if tied) ─▶ logits (B, T, V), or the loss

    Attention:  x (B, T, D) ─ qkv ─▶ (B, T, (H + 2G) K) ─ split, RoPE ─▶ q (B, H, T, K); k, v (B, G, T, K)
                  ─ attend ─▶ (B, H, T, K) ─ output ─▶ (B, T, D)
    SwiGLU:     x (B, T, D) ─ gate_up ─▶ gate, up (B, T, F) ─ silu(gate) * up ─ down ─▶ (B, T, D)

Shapes: B batch, T tokens, D d_model, H query heads, G key/value heads, K d_head, F d_ff, V vocabulary.
There are no biases. Dropout applies to the embedding and to each branch.
`slm.model.parametrization` sets the initialisation and the multiplier m. Checkpoints hold query, key,
value, gate and up as separate tensors; `slm.model.logical_names` converts them.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import overload

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from slm.architecture.shapes import ModelShape
from slm.model.attention import attend, attend_to_cache, require_flash
from slm.model.documents import Documents, document_layout
from slm.model.kv_cache import KeyValueCache, NewTokens
from slm.model.loss import ChunkLoss, HeadLoss, chunk_loss, head_loss
from slm.model.norm import RMSNorm


class Transformer(nn.Module):
    """Decoder-only transformer with tied or untied head.

    With `activation_checkpointing`, training saves only the input of each block and recomputes the
    block in the backward pass. The tables have `padded_vocab_size` rows, V rounded up to a multiple of
    `pad_vocab_to`; the added rows are zeros, and their logits are neither returned nor part of the loss.
    """

    cos_sin: Tensor
    """RoPE table (2, seq_len, K), not part of the state_dict."""

    def __init__(
        self,
        shape: ModelShape,
        *,
        rope_theta: float = 10_000.0,
        norm_eps: float = 1e-5,
        attention: str = "sdpa",
        branch_multiplier: float = 1.0,
        logit_multiplier: float = 1.0,
        dropout: float = 0.0,
        activation_checkpointing: bool = False,
        pad_vocab_to: int = 1,
    ):
        super().__init__()
        if attention == "flash":
            require_flash()
        self.shape = shape
        self.attention_backend = attention
        self.rope_theta = rope_theta
        self.norm_eps = norm_eps
        self.branch_multiplier = branch_multiplier
        self.logit_multiplier = logit_multiplier
        self.activation_checkpointing = activation_checkpointing
        self.padded_vocab_size = math.ceil(shape.vocab_size / pad_vocab_to) * pad_vocab_to
        self.chunk_loss: ChunkLoss = chunk_loss  # or compile_chunk_loss(), for GPUs
        self.embedding = nn.Embedding(self.padded_vocab_size, shape.d_model)
        self.blocks = nn.ModuleList(
            Block(shape, norm_eps, attention, branch_multiplier, dropout)
            for _ in range(shape.n_layers)
        )
        self.dropout = nn.Dropout(dropout)
        self.norm = RMSNorm(shape.d_model, norm_eps)
        self.head = nn.Linear(shape.d_model, self.padded_vocab_size, bias=False)
        if shape.tied:
            self.head.weight = self.embedding.weight
        with torch.no_grad():
            for table in (self.embedding.weight, self.head.weight):
                table[shape.vocab_size :] = 0
        cos_sin = precompute_rope(shape.seq_len, shape.d_head, rope_theta)
        self.register_buffer("cos_sin", cos_sin, persistent=False)

    @overload
    def forward(
        self, tokens: Tensor, documents: Tensor | None = None, cache: KeyValueCache | None = None
    ) -> Tensor: ...
    @overload
    def forward(
        self,
        tokens: Tensor,
        documents: Tensor | None = None,
        *,
        targets: Tensor,
        z_loss: float = 0.0,
    ) -> HeadLoss: ...
    def forward(
        self,
        tokens: Tensor,
        documents: Tensor | None = None,
        cache: KeyValueCache | None = None,
        targets: Tensor | None = None,
        z_loss: float = 0.0,
    ) -> Tensor | HeadLoss:
        """Return the logits (B, T, V) of tokens (B, T), or their loss if targets (B, T) are given.

        `documents` (B, T) are document ids; attention stays within a document. With a `cache` the
        tokens continue the cached sequence and are added to the cache. `z_loss` is passed to
        `head_loss`, which computes the loss without storing all logits.

        Raises:
            ValueError: if the sequence exceeds seq_len, or if both documents and a cache are given.
        """
        if cache is not None:
            if documents is not None:
                raise ValueError(
                    "a cache holds one document per row; pass either documents or a cache"
                )
            return self._logits(self._extend(tokens, cache))
        self._check_length(tokens.shape[1])
        cos_sin = self.cos_sin[:, : tokens.shape[1]]
        x = self.dropout(self.embedding(tokens))
        layout = None if documents is None else self._layout(documents, x)
        for block in self.blocks:
            for _ in range(self.shape.layer_sharing):
                if self.activation_checkpointing and self.training:
                    x = checkpoint(
                        block,
                        x,
                        cos_sin,
                        layout,
                        use_reentrant=False,
                        preserve_rng_state=self.dropout.p > 0,
                    )
                else:
                    x = block(x, cos_sin, layout)
        if targets is not None:
            return head_loss(
                self.norm(x, self.logit_multiplier),
                self.head.weight,
                targets,
                z_loss,
                vocab_size=self.shape.vocab_size,
                per_chunk=self.chunk_loss,
            )
        return self.head(self.norm(x, self.logit_multiplier))[..., : self.shape.vocab_size]

    def next_logits(self, tokens: Tensor, cache: KeyValueCache) -> Tensor:
        """Add tokens (B, T) to the cache; return the logits (B, V) of the token that follows them.

        Raises:
            ValueError: if the sequence exceeds seq_len or the capacity of the cache.
        """
        return self._logits(self._extend(tokens, cache)[:, -1])

    def generate(
        self,
        tokens: Tensor,
        new_tokens: int,
        *,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        stop: Collection[int] = (),
    ) -> Tensor:
        """Return tokens (B, T) followed by up to `new_tokens` generated tokens per row; see `slm.model.generate`."""
        from slm.model.generate import generate  # which imports this module for its types

        return generate(
            self,
            tokens,
            new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            stop=stop,
        )

    def _extend(self, tokens: Tensor, cache: KeyValueCache) -> Tensor:
        """Run the blocks on tokens (B, T) that continue the cached sequence; return hidden states (B, T, D)."""
        batch, count = tokens.shape
        self._check_length(cache.length + count)
        x = self.embedding(tokens).flatten(0, 1)
        new = cache.begin(batch, count, self.cos_sin, self._compute_dtype(x))
        for layer, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            for repeat in range(self.shape.layer_sharing):
                x = block.extend(x, new, cache, layer * self.shape.layer_sharing + repeat)
        cache.end(count)
        return x.unflatten(0, (batch, count))

    def _logits(self, x: Tensor) -> Tensor:
        """Return the logits (..., V) of hidden states (..., D)."""
        return self.head(self.norm.infer(x, self.logit_multiplier))[..., : self.shape.vocab_size]

    def _check_length(self, length: int) -> None:
        if length > self.shape.seq_len:
            raise ValueError(f"{length} tokens exceed the model's seq_len={self.shape.seq_len}")

    def _layout(self, ids: Tensor, x: Tensor) -> Documents:
        dtype = self._compute_dtype(x)
        return document_layout(ids, self.attention_backend, dtype, self.shape.d_head)

    def _compute_dtype(self, x: Tensor) -> torch.dtype:
        device = x.device.type
        is_autocast = torch.is_autocast_enabled(device)
        return torch.get_autocast_dtype(device) if is_autocast else x.dtype


class Block(nn.Module):
    """Pre-norm residual block: attention, then MLP."""

    def __init__(
        self, shape: ModelShape, norm_eps: float, attention: str, multiplier: float, dropout: float
    ):
        super().__init__()
        self.multiplier = multiplier
        self.attention_norm = RMSNorm(shape.d_model, norm_eps)
        self.attention = Attention(shape, norm_eps, attention)
        self.mlp_norm = RMSNorm(shape.d_model, norm_eps)
        self.mlp = SwiGLU(shape) if shape.mlp == "swiglu" else GeluMLP(shape)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, cos_sin: Tensor, documents: Documents | None) -> Tensor:
        attended = self.attention(self.attention_norm(x), cos_sin, documents)
        x = torch.add(x, self.dropout(attended), alpha=self.multiplier)
        return torch.add(x, self.dropout(self.mlp(self.mlp_norm(x))), alpha=self.multiplier)

    def extend(self, x: Tensor, new: NewTokens, cache: KeyValueCache, index: int) -> Tensor:
        """Compute the block, pass `index`, for new tokens x (B T, D) of cached sequences."""
        attended = self.attention.extend(self.attention_norm.infer(x), new, cache, index)
        x = torch.add(x, attended, alpha=self.multiplier)
        return torch.add(x, self.mlp(self.mlp_norm.infer(x)), alpha=self.multiplier)


class Attention(nn.Module):
    """Causal grouped-query attention: H / G query heads share one key/value head (2305.13245)."""

    def __init__(self, shape: ModelShape, norm_eps: float, backend: str):
        super().__init__()
        self.backend = backend
        self.d_head = shape.d_head
        self.n_heads = [shape.n_heads, shape.n_kv_heads, shape.n_kv_heads]  # of q, k and v
        self.widths = [n * shape.d_head for n in self.n_heads]
        self.qkv = nn.Linear(shape.d_model, sum(self.widths), bias=False)
        self.output = nn.Linear(shape.n_heads * shape.d_head, shape.d_model, bias=False)
        # Per-head normalisation with one gain for all heads (2302.05442 section 2, here with RMSNorm).
        self.query_norm = RMSNorm(shape.d_head, norm_eps) if shape.qk_norm else nn.Identity()
        self.key_norm = RMSNorm(shape.d_head, norm_eps) if shape.qk_norm else nn.Identity()

    def forward(self, x: Tensor, cos_sin: Tensor, documents: Documents | None) -> Tensor:
        q, k, v = (
            rearrange(part, "b t (h k) -> b h t k", k=self.d_head)
            for part in self.qkv(x).split(self.widths, dim=-1)
        )
        v = v.contiguous()  # as a view, it would keep the memory of q and k until the backward pass
        q, k = apply_rope(self.query_norm(q), cos_sin), apply_rope(self.key_norm(k), cos_sin)
        attended = attend(q, k, v, self.backend, documents)
        return self.output(rearrange(attended, "b h t k -> b t (h k)"))

    def extend(self, x: Tensor, new: NewTokens, cache: KeyValueCache, index: int) -> Tensor:
        """Compute attention of new tokens x (B T, D) to themselves and to the cached tokens.

        The same as `forward`, with few operations: for one token, their overhead is most of the time.
        """
        heads = self.qkv(x).view(-1, new.cos.shape[1], sum(self.n_heads), self.d_head)
        n_rotated = self.n_heads[0] + self.n_heads[1]
        qk, v = heads.split([n_rotated, self.n_heads[2]], dim=2)
        if isinstance(self.query_norm, RMSNorm) and isinstance(self.key_norm, RMSNorm):
            q, k = qk.split(self.n_heads[:2], dim=2)
            qk = torch.cat([self.query_norm.infer(q), self.key_norm.infer(k)], dim=2)
        qk = torch.addcmul(qk * new.cos, qk.roll(self.d_head // 2, -1), new.sin)
        q, k = qk.split(self.n_heads[:2], dim=2)
        attended = attend_to_cache(q, *cache.append(index, k, v), new.mask)
        return self.output(attended.reshape(len(x), -1))


class SwiGLU(nn.Module):
    """The MLP down(silu(gate(x)) * up(x)) (2002.05202, eq. 6)."""

    def __init__(self, shape: ModelShape):
        super().__init__()
        self.gate_up = nn.Linear(shape.d_model, 2 * shape.d_ff, bias=False)
        self.down = nn.Linear(shape.d_ff, shape.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class GeluMLP(nn.Module):
    """The MLP down(gelu(up(x))) of GPT-2."""

    def __init__(self, shape: ModelShape):
        super().__init__()
        self.up = nn.Linear(shape.d_model, shape.d_ff, bias=False)
        self.down = nn.Linear(shape.d_ff, shape.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


def precompute_rope(seq_len: int, d_head: int, theta: float) -> Tensor:
    """Return the RoPE table: cos and sin of position * theta^(-2i/K), shape (2, seq_len, K).

    Source: 2104.09864, eq. 15. Dimension i is paired with i + K/2, as in Llama checkpoints.
    """
    frequencies = theta ** -(torch.arange(0, d_head, 2, dtype=torch.float64) / d_head)
    angles = torch.outer(torch.arange(seq_len, dtype=torch.float64), frequencies).repeat(1, 2)
    return torch.stack([angles.cos(), angles.sin()]).float()


def apply_rope(x: Tensor, cos_sin: Tensor) -> Tensor:
    """Rotate x (B, H, T, K) by the RoPE table cos_sin (2, T, K)."""
    cos, sin = cos_sin.to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin
