"""FLOPs per token of a shape, by component and convention.

One multiply-add is two FLOPs. Only matrix products are counted: embedding lookups, norms, RoPE,
softmax and the optimizer are left out. A backward pass costs twice its forward pass. The head is
counted whether tied or not. Results and token budgets use the convention
`training_causal_with_head`, in which a query attends to S/2 keys on average.
"""

from __future__ import annotations

from dataclasses import dataclass

from slm.architecture.shapes import MLP_MATRICES, ModelShape

CONVENTION = "training_causal_with_head"
TRAINING_FACTOR = 3  # forward (1) plus backward (2); Kaplan et al. 2020, section 2.1


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
    """Count forward FLOPs per token at full context; a shared block counts once per pass.

    `causal=True` counts S/2 keys per query, the work of a causal kernel. `causal=False` counts all
    S keys, as dense attention and torch's FLOP counter do.
    """
    d, q_width = shape.d_model, shape.n_heads * shape.d_head
    projections = 2 * d * (shape.n_heads + 2 * shape.n_kv_heads) * shape.d_head + 2 * q_width * d
    twice_keys = shape.seq_len * (1 if causal else 2)  # doubled, so that S/2 stays an integer
    return ForwardFlops(
        attention_projections=shape.depth * projections,
        attention_scores=shape.depth * 2 * twice_keys * q_width,  # q @ k and weights @ v
        mlp=shape.depth * 2 * MLP_MATRICES[shape.mlp] * d * shape.d_ff,
        head=2 * d * shape.vocab_size,
    )


def training_flops_per_token(shape: ModelShape, *, causal: bool = True) -> int:
    """Count forward and backward FLOPs per token; `causal=True` gives the f used in budgets."""
    return TRAINING_FACTOR * forward_flops_per_token(shape, causal=causal).total


def flop_equivalent_params(flops_per_token: float) -> float:
    """Return N_flop = f / 6: the parameter count at which the rule C = 6ND gives the same FLOPs."""
    return flops_per_token / 6
