"""Parametrizations: initialisation, multipliers, learning rate, weight decay and Adam eps by shape.

m = d_model / base_width is the width multiplier and r = depth / base_depth the depth multiplier; depth
counts every block that a token passes through. By default base_width = 64 and base_depth = 4.

| tensor group                | initial variance                             | lr  | decay | Adam eps  |
|-----------------------------|----------------------------------------------|-----|-------|-----------|
| embedding, head             | 1/d_model; mup, completep: 1/base_width      | 1   | 1     | 1/m       |
| query, key, value, gate, up | 1/fan_in                                     | 1/m | m     | 1/(m r)   |
| attention output, down      | 1/(fan_in 2 depth); completep: 2 base_depth  | 1/m | m     | 1/(m r)   |
| gains in blocks             | constant 1                                   | 1   | 0     | 1/(m r)   |
| gain before the head        | constant 1                                   | 1   | 0     | 1/m       |

| forward multiplier          | standard | mup | completep |
|-----------------------------|----------|-----|-----------|
| residual branch             | 1        | 1   | 1/r       |
| logits                      | 1        | 1/m | 1/m       |

The columns lr, decay and Adam eps are multipliers of the configured values. In them standard uses
m = r = 1, and mup uses r = 1.

standard: the last matrix of each branch is initialised smaller by 1/sqrt(2 depth), so that the
residual stream has the same initial size at every depth (GPT-2; Radford et al. 2019, section 2.3). A
head of variance 1/d_model gives logits of unit variance. Updates still grow with width and depth, so
the best learning rate decreases with both.

mup (2203.03466, table 8, Adam): updates of the residual stream do not grow with width. The decay of
hidden matrices is multiplied by m because AdamW multiplies it by the learning rate, which is divided
by m. d_head is constant within a comparison, so the attention scale stays 1/sqrt(d_head).

completep (2505.01618, table 1 and eq. 40, alpha = 1): updates do not grow with depth either, because
each of the 2 depth branches is multiplied by 1/r; therefore the initial variance of its last matrix
does not depend on depth. At alpha = 1 the learning rate has no depth factor. Adam's eps decreases as
the gradients do.

Query, key and value are rows of one parameter, `qkv`, and gate and up of `gate_up`; they have the same
rule. Initialisation draws them one after the other, so that it does not depend on how they are stored.

A tied table is one tensor: it is initialised, updated and decayed once, by the rules of the embedding,
which are also those of the head; only the logits are multiplied by 1/m. At d_model = base_width and
depth = base_depth all three parametrizations are the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from slm.architecture.shapes import ModelShape
from slm.config.schema import ParametrizationConfig
from slm.model.logical_names import TABLES, to_logical
from slm.model.transformer import Transformer

BRANCH_OUTPUTS = ("attention.output.weight", "mlp.down.weight")


@dataclass(frozen=True)
class TensorRule:
    """Initialisation of one tensor, and its multipliers of the configured lr, decay and eps."""

    initial_std: float | None
    """Standard deviation of the initial normal distribution; None: initialise to the constant 1."""
    lr: float
    decay: float
    eps: float


@dataclass(frozen=True)
class Parametrization:
    """The tables of this module's docstring, evaluated for one shape."""

    width_multiplier: float
    depth_multiplier: float
    branch_depth: float
    """The depth used in the initial variance of a branch's last matrix."""

    @classmethod
    def of(cls, config: ParametrizationConfig, shape: ModelShape) -> Parametrization:
        width = 1.0 if config.kind == "standard" else shape.d_model / config.base_width
        if config.kind == "completep":
            return cls(width, shape.depth / config.base_depth, config.base_depth)
        return cls(width, 1.0, shape.depth)

    @property
    def branch_multiplier(self) -> float:
        return 1 / self.depth_multiplier

    @property
    def logit_multiplier(self) -> float:
        return 1 / self.width_multiplier

    def rule(self, name: str, parameter: Tensor) -> TensorRule:
        """Return the rule of a parameter or logical tensor; `name` is its name in the transformer."""
        width, depth = self.width_multiplier, self.depth_multiplier
        if name in TABLES:
            return TensorRule(math.sqrt(width / parameter.shape[1]), lr=1, decay=1, eps=1 / width)
        eps = 1 / (width * depth) if name.startswith("blocks.") else 1 / width
        if parameter.ndim < 2:  # all vectors are gains of norms
            return TensorRule(None, lr=1, decay=0, eps=eps)
        branch = 2 * self.branch_depth if name.endswith(BRANCH_OUTPUTS) else 1
        std = 1 / math.sqrt(parameter.shape[1] * branch)
        return TensorRule(std, lr=1 / width, decay=width, eps=eps)


@torch.no_grad()
def initialize(model: Transformer, parametrization: Parametrization, seed: int) -> None:
    """Initialise every parameter of the transformer; the logical tensors depend on `seed` only."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in to_logical(dict(model.named_parameters()), model.shape).items():
        std = parametrization.rule(name, tensor).initial_std
        if std is None:
            tensor.fill_(1)
        else:
            tensor.normal_(std=std, generator=generator)
