"""Families, the ladder of sizes, explicit shapes, and how learning rates follow a shape."""

from __future__ import annotations

import dataclasses
from typing import Literal

from slm.config.schema.types import (
    Count,
    FractionBelowOne,
    Index,
    Name,
    ParametrizationKind,
    Positive,
    section,
)


@section
class FamilyConfig:
    name: Name = "custom"
    """Name of the architecture family, as it appears in records and figures."""
    aspect_ratio: Positive | None = None
    """d_model / n_layers that the family holds at every size; null for explicit shapes."""
    draw: Index = 0
    """Another draw of initial weights at the same seed and data, so that two families of one shape differ by chance alone; part of a run's identity when above 0."""


@section
class LadderConfig:
    size_counts: Literal[
        "balanced_params", "params_non_embedding", "params_total", "flops_per_token"
    ] = "balanced_params"
    """What `size` is. balanced_params: non-embedding parameters of the ideal balanced shape, whose FLOPs per token all families meet; flops_per_token: these FLOPs themselves; params_*: a count that every shape meets, so that FLOPs differ."""
    reference_aspect_ratio: Positive = 11.0
    """Aspect ratio of the ideal balanced shape."""
    d_head: Count = 8
    """Width of one attention head, equal in all families."""
    gqa_ratio: Count = 1
    """Query heads per key/value head, equal in all families; 1 is multi-head attention."""
    ff_ratio: Positive = 8 / 3
    """Common d_ff / d_model of a SwiGLU; the solver moves d_ff within 10% of it to match FLOPs."""
    d_ff_multiple: Count = 2
    """d_ff is a multiple of this."""
    aspect_ratios: dict[str, Positive | None] = dataclasses.field(default_factory=dict)
    """Aspect ratio of each family that every rung must have a shape for; null takes one out."""


@section
class ModelConfig:
    preset: Name | None = None
    """Name of the explicit shape; a family with an aspect ratio then gives its counterpart at equal FLOPs per token."""
    n_layers: Count | None = None
    """Transformer blocks; null lets `family` and `size` decide all dimensions."""
    d_model: Count | None = None
    """Width of the residual stream; n_heads * d_head."""
    n_heads: Count | None = None
    """Query heads."""
    n_kv_heads: Count | None = None
    """Key/value heads, a divisor of n_heads; null means n_heads (multi-head attention), 1 is multi-query."""
    d_head: Count | None = None
    """Width of one head, even because rotary embeddings turn pairs; null means d_model / n_heads."""
    d_ff: Count | None = None
    """Inner width of the SwiGLU; null means 8/3 d_model rounded to a multiple of 8. A GELU MLP has two matrices for three and gets 3/2 of it, so that both cost the same."""
    mlp: Literal["swiglu", "gelu"] = "swiglu"
    """Kind of MLP: gated by SiLU with three matrices, or GELU with two."""
    layer_sharing: Count = 1
    """Times each block runs in a row with the same weights; 1 shares nothing, 2 is MobileLLM-LS."""
    qk_norm: bool = False
    """RMSNorm of queries and keys over each head, before the rotary turn."""
    vocab_size: Count | None = None
    """Rows of the embedding table; null means the tokenizer's vocabulary."""
    seq_len: Count = 128
    """Training context in tokens."""
    tied: bool = True
    """Share one table between the input embedding and the output head."""
    rope_theta: Positive = 10_000.0
    """Base of the rotary frequencies."""
    norm_eps: Positive = 1e-5
    """Epsilon of RMSNorm."""
    attention: Literal["sdpa", "flash", "matmul", "reference"] = "sdpa"
    """Attention backend; flash needs the extra `gpu`, matmul is for CPUs and fastest there in bf16. Part of a run's identity because rounding differs."""
    dropout: FractionBelowOne = 0.0
    """Share of the embedding's and of each residual branch's outputs set to 0 in training, the rest scaled up. Part of a run's identity when above 0."""
    document_mask: bool = False
    """Keep attention within each document of a packed sequence."""


@section
class ParametrizationConfig:
    kind: ParametrizationKind = "completep"
    """How initialisation and learning rates follow the shape: not, its width, or width and depth; table in slm/model/parametrization.py."""
    base_width: Count = 64
    """d_model at which mup equals standard, so that optimizer.lr means the same there."""
    base_depth: Count = 4
    """Blocks passed at which completep equals mup."""
