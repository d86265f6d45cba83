"""Conversion of checkpoints of version 1, which Lightning's Trainer wrote."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch

from slm.architecture.shapes import ModelShape
from slm.model.logical_names import to_logical
from slm.model.parametrization import Parametrization
from slm.model.transformer import Transformer
from slm.run.spec import RunSpec


def convert_checkpoint(saved: Mapping[str, Any], spec: RunSpec) -> dict[str, Any]:
    """Convert the content of a version 1 checkpoint to the form of `slm.training.checkpoint`."""
    rules = Parametrization.of(spec.config.parametrization, spec.shape)
    callbacks = saved["callbacks"]
    return {
        "state_dict": saved["state_dict"],
        "optimizer": name_optimizer_state(saved["optimizer_states"][0], spec.shape, rules),
        "random_states": saved["random_states"],
        "progress": {
            "metrics": callbacks["Metrics"],
            "validation": callbacks["Validation"]["last"],
        },
        "global_step": saved["global_step"],
    }


def name_optimizer_state(
    optimizer: Mapping[str, Any], shape: ModelShape, parametrization: Parametrization
) -> dict[str, Any]:
    """Convert `optimizer_states[0]` of a checkpoint to an optimizer state of logical tensors.

    Parameters were numbered group by group. A group was made of all parameters with the same
    multipliers, in the order of the model. Query, key, value, gate and up were parameters of their own.

    Raises:
        ValueError: if it is the optimizer state of another shape or parametrization.
    """
    with torch.device("meta"):
        tensors = to_logical(dict(Transformer(shape).named_parameters()), shape)
    members: dict[tuple[float, float, float], list[str]] = defaultdict(list)
    for name, tensor in tensors.items():
        rule = parametrization.rule(name, tensor)
        members[rule.lr, rule.decay, rule.eps].append(name)
    names = list(members.values())
    numbers = [group["params"] for group in optimizer["param_groups"]]
    if [len(group) for group in numbers] != [len(group) for group in names]:
        raise ValueError(f"the optimizer state has other parameters than {shape.label}")
    name_of = dict(zip(chain(*numbers), chain(*names), strict=True))
    state = {name_of[number]: entry for number, entry in optimizer["state"].items()}
    for name, entry in state.items():
        if entry["exp_avg"].shape != tensors[name].shape:
            found, required = tuple(entry["exp_avg"].shape), tuple(tensors[name].shape)
            raise ValueError(
                f"the optimizer state of {name} has shape {found} instead of {required}"
            )
    groups = [
        {**group, "params": own}
        for group, own in zip(optimizer["param_groups"], names, strict=True)
    ]
    return {"state": state, "param_groups": groups}
