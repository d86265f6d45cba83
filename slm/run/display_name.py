"""Names of runs for people; files and W&B ids use `RunSpec.run_id`."""

from __future__ import annotations

from slm.config.schema import Config
from slm.formatting import short_count
from slm.run.spec import RunSpec


def display_name(spec: RunSpec) -> str:
    """Return family, size, tokens and seed, and the values of the study's grid.

    For example `deep_thin 240k, 8.6M tokens, s0, lr 0.008`.
    """
    config = spec.config
    family = f"{config.family.name} {size_label(spec)}"
    grid = [f"{key.rpartition('.')[2]} {_value_of(config, key)}" for key in config.study.grid]
    return ", ".join([family, f"{short_count(spec.tokens)} tokens", f"s{config.seed}", *grid])


def size_label(spec: RunSpec) -> str:
    """Return the size of a run such as `240k`, else its preset, else its shape such as `L8-d64`."""
    config = spec.config
    if config.size is not None:
        return short_count(config.size)
    return config.model.preset or spec.shape.label


def _value_of(config: Config, key: str) -> str:
    value: object = config
    for part in key.split("."):
        value = getattr(value, part)
    return f"{value:g}" if isinstance(value, float) else str(value)
