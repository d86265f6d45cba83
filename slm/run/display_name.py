"""Names of runs and settings for people; files and W&B ids use `RunSpec.run_id`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from slm.architecture.shapes import shape_label
from slm.config.schema import default_tree, to_tree
from slm.config.schema.data import KEYS_READ_BY_SOURCE
from slm.formatting import short_count
from slm.run.spec import RunSpec

Settings = Mapping[str, Any]
"""Values of a config by dotted key."""
NO_STUDY = "single"
SCIENCE = (
    "model.",
    "parametrization.",
    "data.",
    "tokenizer.",
    "optimizer.",
    "schedule.",
    "ladder.",
)
SHAPE_KEYS = (
    "model.n_layers", "model.d_model", "model.n_heads", "model.n_kv_heads", "model.d_head", "model.d_ff",
)  # fmt: skip
NOT_RECIPE = {
    *SHAPE_KEYS, "model.preset", "data.workers", "data.prepared", "data.max_epochs", "schedule.warmup_budget_tokens",
}  # fmt: skip
CORPUS = ("data.repo", "data.files", "data.source")  # the first that is set names a corpus
CORPUS_KEYS = {f"data.{key}" for keys in KEYS_READ_BY_SOURCE.values() for key in keys} | {*CORPUS}
NAMES = {
    "optimizer.global_batch_tokens": "batch",
    "parametrization.kind": "parametrization",
    "schedule.kind": "schedule",
    "tokenizer.kind": "tokenizer",
}


def display_name(spec: RunSpec) -> str:
    """Return family, size, tokens and seed, and what else distinguishes the run (`distinctions`).

    For example `deep_thin 240k, 8.6M tokens, s0, lr 0.008`.
    """
    config = spec.config
    others = distinctions(flatten(to_tree(config)))
    return join_name(config.family.name, size_label(spec), spec.tokens, config.seed, others)


def size_label(spec: RunSpec) -> str:
    """Return the size of a run such as `240k`, else its preset, else its shape such as `L8-d64`."""
    config = spec.config
    if config.size is not None:
        return short_count(config.size)
    return config.model.preset or spec.shape.label


def join_name(family: str, size: str, tokens: float, seed: int, others: Sequence[str]) -> str:
    return ", ".join([f"{family} {size}", f"{short_count(tokens)} tokens", f"s{seed}", *others])


def distinctions(settings: Settings) -> list[str]:
    """Return the values of the study's grid in words; of a run without a study, what differs from the defaults."""
    if settings.get("study.name") == NO_STUDY:
        return list(_not_default(settings))
    grid = [key.removeprefix("study.grid.") for key in settings if key.startswith("study.grid.")]
    if settings.get("study.lr_policy") == "tuned":
        grid.append("optimizer.lr")
    return describe_settings({key: settings[key] for key in grid if key in settings})


def _not_default(settings: Settings) -> Iterator[str]:
    if settings.get("model.preset") and settings.get("model.n_layers"):
        yield shape_label(settings["model.n_layers"], settings["model.d_model"])
    # A folder of conf/ sets the keys of the ladder.
    recipe = {key: settings[key] for key in settings if is_recipe(key) and key[:7] != "ladder."}
    defaults = default_settings()
    yield from describe_settings({k: v for k, v in recipe.items() if v != defaults.get(k)})


@cache
def default_settings() -> Settings:
    """Return the default of every key in the schema."""
    return flatten(default_tree())


def is_recipe(key: str) -> bool:
    """Return whether a key can change the result, apart from family, shape, size, seed and token budget."""
    return key == "trainer.precision" or (key.startswith(SCIENCE) and key not in NOT_RECIPE)


def describe_settings(values: Settings) -> list[str]:
    """Return settings in words; of another corpus only its name."""
    if not any(key in values for key in CORPUS):
        return [describe_setting(key, value) for key, value in values.items()]
    name = next((values[key] for key in CORPUS if values.get(key)), None)
    rest = [describe_setting(key, values[key]) for key in values if key not in CORPUS_KEYS]
    return [f"data {format_value(name)}", *rest]


def describe_setting(key: str, value: object) -> str:
    """Return a setting in words, such as `lr 0.008`, `untied` or `no deduplicate`."""
    name = NAMES.get(key) or key.rpartition(".")[2]
    if key.startswith("ladder.aspect_ratios."):
        name = f"aspect ratio of {name}"
    if key == "model.tied":
        return "tied" if value else "untied"
    if isinstance(value, bool):
        return name if value else f"no {name}"
    return f"{name} {format_value(value)}"


def format_value(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple):
        return ",".join(map(format_value, value))
    return str(value).rpartition("/")[2]  # of a path the file


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of a config tree by dotted key; lists become tuples."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = tuple(value) if isinstance(value, list) else value
    return flat
