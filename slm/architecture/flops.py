"""FLOPs per token of a shape, by component and convention.

One multiply-add is two FLOPs. Matrix products alone are counted: embedding lookups, norms,
rotary turns, softmax and the optimizer are left out. A backward pass costs twice its forward.
The head is counted whether tied or not. Convention of every record and budget:
`causal_with_head`, in which a query attends to S/2 keys on average.
"""

from __future__ import annotations

from dataclasses import dataclass

from slm.architecture.shapes import MLP_MATRICES, ModelShape

CONVENTION = "training_causal_with_head"
TRAINING_FACTOR = 3  # forward plus a backward of twice its cost (Kaplan et al. 2020, section 2.1)


@dataclass(frozen=True)
class ForwardFlops:
    """Forward FLOPs per token, by component."""

    attention_projections: int
    attention_scores: int
    mlp: int
    head: int

    @property
    def total(self) -> int:
        return self.without_head + self.head

    @property
    def without_head(self) -> int:
        return self.attention_projections + self.attention_scores + self.mlp


def forward_flops_per_token(shape: ModelShape, *, causal: bool = True) -> ForwardFlops:
    """Forward FLOPs per token at full context; a shared block costs as often as it runs.

    `causal=False` counts all S keys for each query, as dense attention and torch's counter do;
    `causal=True` counts S/2, the work that a causal kernel needs.
    """
    d, heads = shape.d_model, shape.n_heads * shape.d_head
    projections = 2 * d * (shape.n_heads + 2 * shape.n_kv_heads) * shape.d_head + 2 * heads * d
    keys_times_two = shape.seq_len * (1 if causal else 2)  # twice the keys a query attends to
    return ForwardFlops(
        attention_projections=shape.depth * projections,
        attention_scores=shape.depth * 2 * keys_times_two * heads,  # q.k and weights.v
        mlp=shape.depth * 2 * MLP_MATRICES[shape.mlp] * d * shape.d_ff,
        head=2 * d * shape.vocab_size,
    )


def training_flops_per_token(shape: ModelShape, *, causal: bool = True) -> int:
    """Forward and backward FLOPs per token; with `causal=True` the f of every budget."""
    return TRAINING_FACTOR * forward_flops_per_token(shape, causal=causal).total


def flop_equivalent_params(flops_per_token: float) -> float:
    """N_flop = f / 6: the parameters that 6ND would need to cost as much."""
    return flops_per_token / 6
