"""The transformer that a config asks for, not yet initialised."""

from __future__ import annotations

from slm.architecture.shapes import ModelShape
from slm.config.schema import Config
from slm.model.parametrization import Parametrization
from slm.model.transformer import Transformer


def build_model(config: Config, shape: ModelShape) -> Transformer:
    """`shape` is the config's, as `slm.run.spec.resolve` works it out."""
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
