"""How initialisation and learning rates follow the shape.

standard, per tensor group:

| group                       | initial standard deviation | learning rate | weight decay |
|-----------------------------|----------------------------|---------------|--------------|
| embedding, head             | 1 / sqrt(D)                | lr            | yes          |
| query, key, value, gate, up | 1 / sqrt(fan_in)           | lr            | yes          |
| attention output, down      | 1 / sqrt(fan_in * 2 L)     | lr            | yes          |
| norm gains                  | 1 (constant)               | lr            | no           |

The residual branches' last matrices are scaled by 1 / sqrt(2 L), L = n_layers, so that the residual
stream keeps its size at any depth when training starts (GPT-2; Radford et al. 2019, section 2.3).
A table drawn with 1 / sqrt(D) gives logits of unit variance (1706.03762, section 3.4, without its
factor on the input). The optimum of lr still moves with width and depth under this parametrization.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

RESIDUAL_OUTPUTS = ("attention.output.weight", "mlp.down.weight")


def initialize(model: nn.Module, n_layers: int, seed: int) -> None:
    """Set every parameter of the transformer from `seed` alone, whatever ran before."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if is_gain(parameter):
            nn.init.ones_(parameter)
        else:
            std = initial_std(name, parameter, n_layers)
            nn.init.normal_(parameter, std=std, generator=generator)


def initial_std(name: str, parameter: Tensor, n_layers: int) -> float:
    fan_in = parameter.shape[1]  # of the table, as a head
    depth = 2 * n_layers if name.endswith(RESIDUAL_OUTPUTS) else 1
    return 1 / math.sqrt(fan_in * depth)


def is_gain(parameter: Tensor) -> bool:
    """Norm gains are the only vectors of the model; they are neither drawn nor decayed."""
    return parameter.ndim < 2
