"""The shape of a decoder-only transformer and its parameter counts by group.

`params_total` counts a tied embedding table once, and an untied embedding and head separately.
`params_non_embedding` excludes the embedding and the head.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

MLP_MATRICES = {"swiglu": 3, "gelu": 2}  # swiglu: gate, up, down; gelu: up, down


@dataclass(frozen=True)
class ModelShape:
    """Dimensions of a model; n_heads * d_head == d_model.

    Attributes:
        n_layers: number of blocks with separate weights.
        d_model: width of the residual stream.
        n_heads: number of query heads.
        n_kv_heads: number of key/value heads.
        d_head: width of one head.
        d_ff: inner width of the MLP.
        vocab_size: size of the vocabulary.
        seq_len: longest sequence in tokens.
        tied: whether the embedding table is also the output head.
        mlp: swiglu or gelu.
        qk_norm: whether queries and keys are normalised.
        layer_sharing: number of times r that each block runs in a row; tokens pass r * n_layers blocks.
    """

    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_ff: int
    vocab_size: int
    seq_len: int
    tied: bool = True
    mlp: str = "swiglu"
    qk_norm: bool = False
    layer_sharing: int = 1

    @property
    def depth(self) -> int:
        return self.n_layers * self.layer_sharing

    @property
    def aspect_ratio(self) -> float:
        """d_model / depth."""
        return self.d_model / self.depth

    @property
    def ff_ratio(self) -> float:
        """d_ff / d_model of the SwiGLU MLP with the same FLOPs."""
        return self.d_ff / self.d_model * MLP_MATRICES[self.mlp] / MLP_MATRICES["swiglu"]

    @property
    def label(self) -> str:
        return shape_label(self.n_layers, self.d_model, self.layer_sharing)

    def as_dict(self) -> dict[str, int | bool | str]:
        return asdict(self)


def shape_label(n_layers: int, d_model: int, layer_sharing: int = 1) -> str:
    """Return a label such as L12-d128, or L6x2-d128 if each block runs twice."""
    sharing = f"x{layer_sharing}" if layer_sharing > 1 else ""
    return f"L{n_layers}{sharing}-d{d_model}"


def shape_key(shape: Mapping[str, Any]) -> str:
    """Return a text that is equal for shapes with equal fields of `ModelShape`, apart from seq_len."""
    values = {
        field.name: shape.get(field.name, None if field.default is MISSING else field.default)
        for field in fields(ModelShape)
        if field.name != "seq_len"
    }
    return json.dumps(values, sort_keys=True)


@dataclass(frozen=True)
class ParameterCounts:
    """Parameters by group; the groups sum to `params_total`."""

    embedding: int
    head: int
    attention: int
    mlp: int
    norm: int

    @property
    def params_total(self) -> int:
        return self.embedding + self.head + self.attention + self.mlp + self.norm

    @property
    def params_embedding(self) -> int:
        """The embedding table plus, if untied, the head."""
        return self.embedding + self.head

    @property
    def params_non_embedding(self) -> int:
        return self.params_total - self.params_embedding


def count_parameters(shape: ModelShape) -> ParameterCounts:
    """Count the parameters of a shape without biases; a shared block counts once."""
    d, layers = shape.d_model, shape.n_layers
    query_and_output = 2 * d * shape.n_heads * shape.d_head
    key_and_value = 2 * d * shape.n_kv_heads * shape.d_head
    table = shape.vocab_size * d
    qk_gains = 2 * shape.d_head if shape.qk_norm else 0
    return ParameterCounts(
        embedding=table,
        head=0 if shape.tied else table,
        attention=layers * (query_and_output + key_and_value),
        mlp=layers * MLP_MATRICES[shape.mlp] * d * shape.d_ff,
        norm=layers * (2 * d + qk_gains) + d,
    )
