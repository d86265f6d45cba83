"""How initialisation, multipliers, learning rates, decay and epsilon follow the shape.

m = d_model / base_width is the width multiplier, r = depth / base_depth the depth multiplier, where
depth counts every block a token passes through; base_depth = 4 and base_width = 64 by default.

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

Multipliers of lr, decay and eps in the first table: standard has m = r = 1, mup has r = 1.

standard: the last matrix of each branch starts 1/sqrt(2 depth) smaller, so that the residual stream
starts at one size at any depth (GPT-2; Radford et al. 2019, section 2.3); a table of variance
1/d_model gives logits of unit variance. Updates still grow with width and depth, so the best learning
rate falls with both.

mup (2203.03466, table 8, Adam): updates of the stream do not grow with width. Hidden decay is scaled
by m because AdamW multiplies it by the learning rate; their product stays. d_head is constant within
a comparison, so the attention scale needs no change.

completep (2505.01618, table 1 and eq. 40, alpha = 1): nor do they grow with depth, because each of
the 2 depth branches carries 1/r; in exchange its last matrix starts at a variance free of depth. The
learning rate needs no factor of depth at alpha = 1. Adam's eps shrinks with the gradients.

A tied table is one tensor: it is drawn, stepped and decayed once, as the embedding, whose rules the
head shares; only the logits carry 1/m. At d_model = base_width and depth = base_depth all three agree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from slm.architecture.shapes import ModelShape
from slm.config.schema import ParametrizationConfig

BRANCH_OUTPUTS = ("attention.output.weight", "mlp.down.weight")
TABLES = {"embedding.weight", "head.weight"}


@dataclass(frozen=True)
class TensorRule:
    """Of one tensor: how it starts, and the multipliers of what the optimizer is configured with."""

    initial_std: float | None
    """None: starts at the constant 1."""
    lr: float
    decay: float
    eps: float


@dataclass(frozen=True)
class Parametrization:
    """The tables above for one shape."""

    width_multiplier: float
    depth_multiplier: float
    branch_depth: float
    """Depth in the initial variance of a branch's last matrix."""

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
        """The rule of a parameter of the transformer, by its name there."""
        width, depth = self.width_multiplier, self.depth_multiplier
        if name in TABLES:
            return TensorRule(math.sqrt(width / parameter.shape[1]), lr=1, decay=1, eps=1 / width)
        eps = 1 / (width * depth) if name.startswith("blocks.") else 1 / width
        if parameter.ndim < 2:  # gains are the only vectors
            return TensorRule(None, lr=1, decay=0, eps=eps)
        branch = 2 * self.branch_depth if name.endswith(BRANCH_OUTPUTS) else 1
        std = 1 / math.sqrt(parameter.shape[1] * branch)
        return TensorRule(std, lr=1 / width, decay=width, eps=eps)


def initialize(model: nn.Module, parametrization: Parametrization, seed: int) -> None:
    """Set every parameter of the transformer from `seed` alone, whatever ran before."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        std = parametrization.rule(name, parameter).initial_std
        if std is None:
            nn.init.ones_(parameter)
        else:
            nn.init.normal_(parameter, std=std, generator=generator)
