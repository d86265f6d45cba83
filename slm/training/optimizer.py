"""AdamW with a learning rate and a decay per tensor group."""

from __future__ import annotations

from collections import defaultdict

from torch import Tensor, nn
from torch.optim import AdamW

from slm.model.parametrization import Parametrization
from slm.schema import OptimizerConfig

LR_MULTIPLIER = "lr_multiplier"


def build_optimizer(
    model: nn.Module, config: OptimizerConfig, parametrization: Parametrization
) -> AdamW:
    """Group parameters by the multipliers that the parametrization gives them.

    Each group carries its `lr_multiplier`; whoever sets learning rates applies it. Norm gains are
    never decayed; a tied table is one parameter and is decayed once.
    """
    members: dict[tuple[float, float], list[Tensor]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        lr_multiplier = parametrization.lr_multiplier(name, parameter)
        decay_multiplier = parametrization.decay_multiplier(name, parameter)
        members[lr_multiplier, decay_multiplier].append(parameter)
    groups = [
        {
            "params": parameters,
            "lr": config.lr * lr_multiplier,
            LR_MULTIPLIER: lr_multiplier,
            "weight_decay": config.weight_decay * decay_multiplier,
        }
        for (lr_multiplier, decay_multiplier), parameters in members.items()
    ]
    return AdamW(groups, betas=(config.beta1, config.beta2), eps=config.eps, fused=True)
