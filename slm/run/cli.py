"""`python -m slm describe`."""

from __future__ import annotations

from collections.abc import Sequence
from json import dumps

from slm.architecture.describe import describe as describe_shape
from slm.architecture.describe import print_description
from slm.config.hydra import compose_config
from slm.run.micro_batch import micro_batch_of, planned_accelerator
from slm.run.spec import resolve


def describe(overrides: Sequence[str], *, json: bool) -> None:
    """Print the shape of a config with its parameters, FLOPs and predicted memory."""
    config = compose_config(overrides)
    spec = resolve(config)
    micro_batch = micro_batch_of(spec, planned_accelerator(config))
    description = describe_shape(spec.shape)
    if json:
        content = {"family": config.family.name, **description, "memory": micro_batch.as_dict()}
        print(dumps(content, indent=2))
    else:
        print_description(config.family.name, description, micro_batch.plan, micro_batch.summary)
