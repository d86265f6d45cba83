"""AdamW with a learning rate, a decay and an epsilon per tensor group."""

from __future__ import annotations

from collections import defaultdict

from torch import Tensor, nn
from torch.optim import AdamW

from slm.config.schema import OptimizerConfig
from slm.model.parametrization import Parametrization


def build_optimizer(
    model: nn.Module, config: OptimizerConfig, parametrization: Parametrization
) -> AdamW:
    """Group parameters by the multipliers of the parametrization.

    The peak learning rate of a group is `initial_lr`. Norm gains are never decayed; a tied table is one
    parameter and is decayed once.
    """
    members: dict[tuple[float, float, float], list[Tensor]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        rule = parametrization.rule(name, parameter)
        members[rule.lr, rule.decay, rule.eps].append(parameter)
    groups = [
        {
            "params": parameters,
            "lr": config.lr * lr,
            "initial_lr": config.lr * lr,
            "weight_decay": config.weight_decay * decay,
            "eps": config.eps * eps,
        }
        for (lr, decay, eps), parameters in members.items()
    ]
    return AdamW(groups, betas=(config.beta1, config.beta2), fused=True)
