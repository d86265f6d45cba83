"""Construction of the transformer from a config."""

from __future__ import annotations

from slm.architecture.shapes import ModelShape
from slm.config.schema import Config
from slm.model.parametrization import Parametrization
from slm.model.transformer import Transformer


def build_model(config: Config, shape: ModelShape) -> Transformer:
    """Build the transformer of a config without initialising it.

    `shape` is the shape that `slm.run.spec.resolve` derives from the config.
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
    )
