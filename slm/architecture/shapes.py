"""The shape of a decoder-only transformer and its parameter counts, by group.

Counts follow method conventions that the names carry: `params_total` counts a tied table once and
an untied pair twice; `params_non_embedding` leaves out the input table and the head.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class ModelShape:
    """Integer dimensions of a model; n_heads * d_head == d_model."""

    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_ff: int
    vocab_size: int
    seq_len: int
    tied: bool = True

    @property
    def aspect_ratio(self) -> float:
        return self.d_model / self.n_layers

    @property
    def label(self) -> str:
        return f"L{self.n_layers}-d{self.d_model}"

    def as_dict(self) -> dict[str, int | bool]:
        return asdict(self)


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
        """Input table plus, when untied, the head."""
        return self.embedding + self.head

    @property
    def params_non_embedding(self) -> int:
        return self.params_total - self.params_embedding


def count_parameters(shape: ModelShape) -> ParameterCounts:
    """Parameters of a bias-free block with grouped-query attention and a gated MLP."""
    d, layers = shape.d_model, shape.n_layers
    query_and_output = 2 * d * shape.n_heads * shape.d_head
    key_and_value = 2 * d * shape.n_kv_heads * shape.d_head
    table = shape.vocab_size * d
    return ParameterCounts(
        embedding=table,
        head=0 if shape.tied else table,
        attention=layers * (query_and_output + key_and_value),
        mlp=layers * 3 * d * shape.d_ff,
        norm=layers * 2 * d + d,
    )
