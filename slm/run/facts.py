"""Config, counts and facts of a resolved run, for the files of the run and W&B."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from slm.architecture.flops import CONVENTION
from slm.architecture.shapes import count_parameters
from slm.config.schema import WatchConfig, to_tree
from slm.run.display_name import size_label
from slm.run.spec import RunSpec


def saved_config(spec: RunSpec) -> dict[str, Any]:
    """Return the resolved config as it is saved: without the token of action=watch."""
    return to_tree(replace(spec.config, watch=WatchConfig()))


def run_counts(spec: RunSpec) -> dict[str, Any]:
    counts = count_parameters(spec.shape)
    return {
        "params_total": counts.params_total,
        "params_non_embedding": counts.params_non_embedding,
        "params_embedding": counts.params_embedding,
        "flops_per_token": spec.flops_per_token,
        "flops_convention": CONVENTION,
        "reference_flops_per_token": spec.reference_flops_per_token,
        "tokens_per_param": spec.tokens_per_param,
        "tokens": spec.tokens,
        "flops": spec.flops,
        "steps": spec.steps,
        "batch_tokens": spec.batch_tokens,
    }


def run_facts(spec: RunSpec) -> dict[str, Any]:
    """Return the values by which runs are grouped and filtered at W&B.

    `rung` is for people, such as 240k. `tokens_per_param` is rounded, so that it is equal in all families of a rung.
    """
    config = spec.config
    return {
        "run_id": spec.run_id,
        "recipe_id": spec.recipe_id,
        "trunk_id": spec.trunk_id,
        "study": config.study.name,
        "family": config.family.name,
        "rung": size_label(spec),
        "size": config.size,
        "seed": config.seed,
        "aspect_ratio": spec.shape.aspect_ratio,
        "shape_label": spec.shape.label,
        "peak_lr": config.optimizer.lr,
        **run_counts(spec),
        "tokens_per_param": float(f"{spec.tokens_per_param:.3g}"),
    }
