"""How initialisation, learning rates and decay follow the shape.

D is d_model, L n_layers, m = D / base_width the width multiplier; at D = base_width both agree.

| tensor group                | initial std, standard  | mup                    | lr, mup | decay, mup |
|-----------------------------|------------------------|------------------------|---------|------------|
| embedding, head             | 1 / sqrt(D)            | 1 / sqrt(base_width)   | 1       | 1          |
| query, key, value, gate, up | 1 / sqrt(fan_in)       | the same               | 1 / m   | m          |
| attention output, down      | 1 / sqrt(fan_in * 2 L) | the same               | 1 / m   | m          |
| norm gains                  | 1 (constant)           | the same               | 1       | 0          |
| logits                      | multiplied by 1        | multiplied by 1 / m    |         |            |

standard: learning rate and decay are those of the config everywhere, gains are not decayed. A table
drawn with 1 / sqrt(D) gives logits of unit variance. The last matrix of each branch is scaled by
1 / sqrt(2 L), so that the residual stream starts at the same size at any depth (GPT-2; Radford et al.
2019, section 2.3). The optimal learning rate falls with width and moves with depth.

mup (2203.03466, table 8, Adam): the optimal learning rate stays put over width. A tied table is
shared as it stands: input and head have the same std and learning rate there, and only the logits
carry the factor 1 / m. AdamW multiplies decay by the learning rate, so hidden decay is scaled by m to
keep their product. Depth is not covered.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from slm.architecture.shapes import ModelShape
from slm.schema import ParametrizationConfig

RESIDUAL_OUTPUTS = ("attention.output.weight", "mlp.down.weight")


@dataclass(frozen=True)
class Parametrization:
    """The rules above for one shape; under `standard`, `width_multiplier` is 1."""

    n_layers: int
    width_multiplier: float

    @classmethod
    def of(cls, config: ParametrizationConfig, shape: ModelShape) -> Parametrization:
        multiplier = shape.d_model / config.base_width if config.kind == "mup" else 1.0
        return cls(shape.n_layers, multiplier)

    @property
    def logit_multiplier(self) -> float:
        return 1 / self.width_multiplier

    def initial_std(self, name: str, parameter: Tensor) -> float:
        fan_in = parameter.shape[1]  # of a table: as a head
        if is_table(name):
            return math.sqrt(self.width_multiplier / fan_in)
        depth = 2 * self.n_layers if name.endswith(RESIDUAL_OUTPUTS) else 1
        return 1 / math.sqrt(fan_in * depth)

    def lr_multiplier(self, name: str, parameter: Tensor) -> float:
        return 1.0 if is_table(name) or is_gain(parameter) else 1 / self.width_multiplier

    def decay_multiplier(self, name: str, parameter: Tensor) -> float:
        if is_gain(parameter):
            return 0.0
        return 1.0 if is_table(name) else self.width_multiplier


def initialize(model: nn.Module, parametrization: Parametrization, seed: int) -> None:
    """Set every parameter of the transformer from `seed` alone, whatever ran before."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if is_gain(parameter):
            nn.init.ones_(parameter)
        else:
            std = parametrization.initial_std(name, parameter)
            nn.init.normal_(parameter, std=std, generator=generator)


def is_table(name: str) -> bool:
    """The input table or the head; a tied one is listed once, as the embedding."""
    return name in {"embedding.weight", "head.weight"}


def is_gain(parameter: Tensor) -> bool:
    """Norm gains are the only vectors of the model."""
    return parameter.ndim < 2
