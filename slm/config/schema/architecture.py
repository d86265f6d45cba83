"""Keys of the families, the ladder of sizes, explicit shapes and the parametrization."""

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
    Ratio,
    section,
)


@section
class FamilyConfig:
    name: Name = "custom"
    """Name of the architecture family in result files, tables and figures."""
    aspect_ratio: Ratio | None = None
    """d_model / n_layers of the family at every size; null for explicit shapes."""
    draw: Index = 0
    """Index of the draw of the initial weights at the same seed and data. Two families with the same shape
    and different draws differ only by chance. Part of a run's identity when above 0."""


@section
class LadderConfig:
    size_counts: Literal[
        "balanced_params", "params_non_embedding", "params_total", "flops_per_token"
    ] = "balanced_params"
    """What `size` counts. balanced_params: non-embedding parameters of the ideal balanced shape; every
    family matches the FLOPs per token of that shape. flops_per_token: training FLOPs per token, matched by
    every family. params_non_embedding, params_total: parameters, matched by every family, so that FLOPs
    differ between families."""
    reference_aspect_ratio: Ratio = 11.0
    """Aspect ratio of the ideal balanced shape."""
    d_head: Count = 8
    """Width of one attention head, the same in all families."""
    gqa_ratio: Count = 1
    """Query heads per key/value head, the same in all families; 1 is multi-head attention."""
    ff_ratio: Ratio = 8 / 3
    """Target d_ff / d_model of a SwiGLU; the shape solver may change d_ff by up to 10% to match FLOPs."""
    d_ff_multiple: Count = 2
    """d_ff must be a multiple of this."""
    aspect_ratios: dict[str, Ratio | None] = dataclasses.field(default_factory=dict)
    """Aspect ratio of each family; every rung must have a matched shape for each of them. null removes a
    family from this requirement."""


@section
class ModelConfig:
    preset: Name | None = None
    """Name of the explicit shape. With a family that has an aspect ratio, the run takes the shape of that
    family at the same FLOPs per token."""
    n_layers: Count | None = None
    """Number of transformer blocks; null computes all dimensions from `family` and `size`."""
    d_model: Count | None = None
    """Width of the residual stream, equal to n_heads * d_head."""
    n_heads: Count | None = None
    """Number of query heads."""
    n_kv_heads: Count | None = None
    """Number of key/value heads, a divisor of n_heads; null means n_heads (multi-head attention), 1 is
    multi-query attention."""
    d_head: Count | None = None
    """Width of one head; must be even, because RoPE rotates pairs of dimensions. null means d_model /
    n_heads."""
    d_ff: Count | None = None
    """Inner width of the SwiGLU; null means 8/3 d_model, rounded to a multiple of 8. A GELU MLP gets 3/2 of
    this width, because it has two matrices and not three: both cost the same."""
    mlp: Literal["swiglu", "gelu"] = "swiglu"
    """Kind of MLP: swiglu (SiLU-gated, three matrices) or gelu (two matrices)."""
    layer_sharing: Count = 1
    """Number of times that each block runs in a row with the same weights; 1 is no sharing, 2 is
    MobileLLM-LS."""
    qk_norm: bool = False
    """Apply RMSNorm to the queries and keys of each head, before RoPE."""
    vocab_size: Count | None = None
    """Rows of the embedding table; null means the size of the tokenizer's vocabulary."""
    seq_len: Count = 128
    """Length of a training sequence in tokens."""
    tied: bool = True
    """Use one weight matrix for the input embedding and the output head."""
    rope_theta: Positive = 10_000.0
    """Base of the RoPE frequencies."""
    norm_eps: Positive = 1e-5
    """Epsilon of RMSNorm."""
    attention: Literal["sdpa", "flash", "matmul", "reference"] = "sdpa"
    """Attention backend. flash needs the extra `flash`; matmul is for CPUs, where it is the fastest in bf16.
    Part of a run's identity, because rounding differs."""
    dropout: FractionBelowOne = 0.0
    """Dropout probability, applied in training to the outputs of the embedding and of each residual branch.
    Part of a run's identity when above 0."""
    document_mask: bool = False
    """Mask attention between different documents of a packed sequence."""


@section
class ParametrizationConfig:
    kind: ParametrizationKind = "completep"
    """How learning rates, initial weights and residual branches scale with the shape. standard: learning rates do not
    scale. mup: those of matrices in blocks are divided by d_model / base_width. completep: as mup, and residual branches
    are divided by depth / base_depth, with initial weights that do not depend on depth. Table:
    slm/model/parametrization.py."""
    base_width: Count = 64
    """d_model at which mup equals standard; optimizer.lr is the learning rate at this width."""
    base_depth: Count = 4
    """Depth at which completep equals mup: blocks that a token passes, shared blocks counted each time."""
