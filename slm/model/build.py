"""Construction of the transformer from a config, and loading of its weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from slm.architecture.shapes import ModelShape
from slm.config.schema import Config
from slm.model.logical_names import to_logical
from slm.model.parametrization import Parametrization
from slm.model.transformer import Transformer

VOCAB_MULTIPLE_ON_GPU = 64
"""Rows of the tables on a GPU, for `pad_vocab_to`: matmuls with an odd number of columns are slow there.

d_ff has no such padding, because it would change the shape: its FLOPs and parameters are matched
between families.
"""


def build_model(config: Config, shape: ModelShape, pad_vocab_to: int = 1) -> Transformer:
    """Build the transformer of a config without initialising it.

    `shape` is the shape that `slm.run.spec.resolve` derives from the config. `pad_vocab_to` changes
    only how tables are stored, not the logical tensors.
    """
    settings = config.model
    parametrization = Parametrization.of(config.parametrization, shape)
    return Transformer(
        shape,
        rope_theta=settings.rope_theta,
        norm_eps=settings.norm_eps,
        attention=settings.attention,
        branch_multiplier=parametrization.branch_multiplier,
        logit_multiplier=parametrization.logit_multiplier,
        dropout=settings.dropout,
        activation_checkpointing=config.trainer.activation_checkpointing,
        pad_vocab_to=pad_vocab_to,
    )


@torch.no_grad()
def load_weights(model: Transformer, saved: Mapping[str, Tensor]) -> None:
    """Load logical tensors, such as those of a checkpoint, into the model.

    Raises:
        ValueError: if tensors are missing, unexpected, or have the wrong shape; it names the first.
    """
    tensors = to_logical(model.state_dict(), model.shape)
    for name, tensor in tensors.items():
        if name not in saved:
            raise ValueError(f"{name} is missing")
        if saved[name].shape != tensor.shape:
            found, required = tuple(saved[name].shape), tuple(tensor.shape)
            raise ValueError(f"{name} has shape {found} instead of {required}")
    if unexpected := [name for name in saved if name not in tensors]:
        raise ValueError(f"{unexpected[0]} is unexpected")
    for name, tensor in tensors.items():  # views of the parameters
        tensor.copy_(saved[name])
