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
from typing import overload

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from slm.architecture.shapes import ModelShape
from slm.model.attention import attend, require_flash
from slm.model.documents import Documents, document_layout
from slm.model.generate import KeyValueCache, Slot
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
        start = 0 if cache is None else cache.length
        end = start + tokens.shape[1]
        if end > self.shape.seq_len:
            raise ValueError(f"{end} tokens exceed the model's seq_len={self.shape.seq_len}")
        if cache is not None and documents is not None:
            raise ValueError("a cache holds one document per row; pass either documents or a cache")
        cos_sin = self.cos_sin[:, start:end]
        x = self.dropout(self.embedding(tokens))
        layout = None if documents is None else self._layout(documents, x)
        for layer, block in enumerate(self.blocks):
            for repeat in range(self.shape.layer_sharing):
                index = layer * self.shape.layer_sharing + repeat
                slot = None if cache is None else cache.slot(index)
                if self.activation_checkpointing and self.training:
                    x = checkpoint(
                        block,
                        x,
                        cos_sin,
                        layout,
                        slot,
                        use_reentrant=False,
                        preserve_rng_state=self.dropout.p > 0,
                    )
                else:
                    x = block(x, cos_sin, layout, slot)
        if cache is not None:
            cache.length += tokens.shape[1]
        hidden = self.norm(x, self.logit_multiplier)
        if targets is not None:
            return head_loss(
                hidden,
                self.head.weight,
                targets,
                z_loss,
                vocab_size=self.shape.vocab_size,
                per_chunk=self.chunk_loss,
            )
        return self.head(hidden)[..., : self.shape.vocab_size]

    def _layout(self, ids: Tensor, x: Tensor) -> Documents:
        device = x.device.type
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else x.dtype
        return document_layout(ids, self.attention_backend, dtype, self.shape.d_head)


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

    def forward(
        self, x: Tensor, cos_sin: Tensor, documents: Documents | None, slot: Slot | None
    ) -> Tensor:
        attended = self.attention(self.attention_norm(x), cos_sin, documents, slot)
        x = torch.add(x, self.dropout(attended), alpha=self.multiplier)
        return torch.add(x, self.dropout(self.mlp(self.mlp_norm(x))), alpha=self.multiplier)


class Attention(nn.Module):
    """Causal grouped-query attention: H / G query heads share one key/value head (2305.13245)."""

    def __init__(self, shape: ModelShape, norm_eps: float, backend: str):
        super().__init__()
        self.backend = backend
        self.d_head = shape.d_head
        heads = (shape.n_heads, shape.n_kv_heads, shape.n_kv_heads)
        self.widths = [n * shape.d_head for n in heads]  # of q, k and v
        self.qkv = nn.Linear(shape.d_model, sum(self.widths), bias=False)
        self.output = nn.Linear(shape.n_heads * shape.d_head, shape.d_model, bias=False)
        # Per-head normalisation with one gain for all heads (2302.05442 section 2, here with RMSNorm).
        self.query_norm = RMSNorm(shape.d_head, norm_eps) if shape.qk_norm else nn.Identity()
        self.key_norm = RMSNorm(shape.d_head, norm_eps) if shape.qk_norm else nn.Identity()

    def forward(
        self, x: Tensor, cos_sin: Tensor, documents: Documents | None, slot: Slot | None
    ) -> Tensor:
        q, k, v = (
            rearrange(part, "b t (h k) -> b h t k", k=self.d_head)
            for part in self.qkv(x).split(self.widths, dim=-1)
        )
        v = v.contiguous()  # as a view, it would keep the memory of q and k until the backward pass
        q, k = apply_rope(self.query_norm(q), cos_sin), apply_rope(self.key_norm(k), cos_sin)
        if slot is not None:
            k, v = slot.append(k, v)
        attended = attend(q, k, v, self.backend, documents)
        return self.output(rearrange(attended, "b h t k -> b t (h k)"))


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
