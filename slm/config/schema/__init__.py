"""Schema of `conf/`: every key with its type, default and documentation.

Defaults are defined only here; the files in `conf/` state what they change. `slm.config.rules` checks
rules between keys, and `slm.config.load` formats the error messages. The string under a field is its
documentation, which `python train.py --help` prints.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args, get_origin

from slm.config.schema.architecture import (
    FamilyConfig,
    LadderConfig,
    ModelConfig,
    ParametrizationConfig,
)
from slm.config.schema.data import DataConfig, TokenizerConfig
from slm.config.schema.study import (
    DesignConfig,
    PlanConfig,
    SpeedConfig,
    StudyConfig,
    WatchConfig,
)
from slm.config.schema.training import (
    BudgetConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrackingConfig,
    TrainerConfig,
)
from slm.config.schema.types import Index, ModelSize, ParametrizationKind, section

__all__ = [
    "BudgetConfig",
    "Config",
    "DataConfig",
    "DesignConfig",
    "FamilyConfig",
    "LadderConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ParametrizationConfig",
    "ParametrizationKind",
    "PlanConfig",
    "ScheduleConfig",
    "SpeedConfig",
    "StudyConfig",
    "TokenizerConfig",
    "TrackingConfig",
    "TrainerConfig",
    "WatchConfig",
    "choices_of",
    "default_tree",
    "field_descriptions",
    "key_of_field",
    "to_tree",
]

Action = Literal[
    "plan", "design", "run", "status", "watch", "report", "collect", "dashboard", "sync"
]


@section
class Config:
    seed: Index = 0
    """Seed of the initial weights and of the data order."""
    size: ModelSize | None = None
    """Size of the model, such as 200k or 1.5m; null for an explicit shape. ladder.size_counts says what it
    counts: by default the non-embedding parameters of the ideal balanced shape."""
    runs_dir: str = "runs"
    """Folder of the run directories."""
    cache_dir: str = ".cache"
    """Folder of prepared data, which runs share."""
    rerun: bool = False
    """Train finished or started runs again; the old run directory is moved to .superseded/, not deleted."""
    action: Action | None = None
    """What sweep.py does with the study; null runs it and then writes the report. train.py ignores this key."""
    family: FamilyConfig = FamilyConfig()
    ladder: LadderConfig = LadderConfig()
    model: ModelConfig = ModelConfig()
    parametrization: ParametrizationConfig = ParametrizationConfig()
    data: DataConfig = DataConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    budget: BudgetConfig = BudgetConfig()
    trainer: TrainerConfig = TrainerConfig()
    tracking: TrackingConfig = TrackingConfig()
    study: StudyConfig = StudyConfig()
    plan: PlanConfig = PlanConfig()
    design: DesignConfig = DesignConfig()
    watch: WatchConfig = WatchConfig()
    speed: SpeedConfig = SpeedConfig()


def default_tree() -> dict[str, Any]:
    """Return every key with its default as plain dicts and lists, for Hydra's ConfigStore."""
    return _plain(Config())


def to_tree(config: Config) -> dict[str, Any]:
    """Return the config as plain dicts and lists; `load_config(to_tree(c)) == c`."""
    return _plain(config)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return list(value) if isinstance(value, tuple) else value


def field_descriptions() -> Iterator[tuple[str, object, str]]:
    """Yield (dotted key, default, documentation) of every key, in the order of the schema."""
    for name, default, text in _fields(Config):
        if dataclasses.is_dataclass(default):
            for leaf, leaf_default, leaf_text in _fields(type(default)):
                yield f"{name}.{leaf}", leaf_default, leaf_text
        else:
            yield name, default, text


def key_of_field(parts: Sequence[str]) -> str:
    """Return the dotted key of the field that a path of names leads to, without the names inside its value."""
    depth = 2 if dataclasses.is_dataclass(getattr(Config, parts[0], None)) else 1
    return ".".join(parts[:depth])


def choices_of(key: str) -> list[str]:
    """Return the words that the schema allows for a key of type Literal, or for the names in its table."""
    annotation: Any = Config
    for part in key.split("."):
        annotation = annotation.__pydantic_fields__[part].annotation
    return [str(choice) for choice in _literals(annotation)]


def _literals(annotation: Any) -> Iterator[object]:
    arguments = get_args(annotation)
    if get_origin(annotation) is Literal:
        yield from arguments
        return
    for argument in arguments:
        yield from _literals(argument)


def _fields(cls: Any) -> Iterator[tuple[str, object, str]]:
    for name, field in cls.__pydantic_fields__.items():
        yield name, field.get_default(call_default_factory=True), field.description or ""
