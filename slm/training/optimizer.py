"""AdamW over two groups: what is decayed and what is not."""

from __future__ import annotations

from torch import nn
from torch.optim import AdamW

from slm.model.parametrization import is_gain
from slm.schema import OptimizerConfig


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> AdamW:
    """Decay matrices and tables, never norm gains; a tied table is one parameter, decayed once."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if not is_gain(p)], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if is_gain(p)], "weight_decay": 0.0},
    ]
    betas = (config.beta1, config.beta2)
    return AdamW(groups, lr=config.lr, betas=betas, eps=config.eps, fused=True)
