"""The schema of `conf/`: every key, its default, its unit and its rule.

Defaults live here alone: `slm.cli` shows this tree to Hydra, and the files in `conf/` state only
what they change. Rules between keys, and the wording of errors, are in `slm.config.load`.

The string under a field is its documentation; `python train.py --help` prints it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal

from slm.config.schema.architecture import (
    FamilyConfig,
    LadderConfig,
    ModelConfig,
    ParametrizationConfig,
)
from slm.config.schema.data import DataConfig, TokenizerConfig
from slm.config.schema.study import PlanConfig, StudyConfig
from slm.config.schema.training import (
    BudgetConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrackingConfig,
    TrainerConfig,
)
from slm.config.schema.types import Index, ParametrizationKind, Size, section

__all__ = [
    "BudgetConfig",
    "Config",
    "DataConfig",
    "FamilyConfig",
    "LadderConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ParametrizationConfig",
    "ParametrizationKind",
    "PlanConfig",
    "ScheduleConfig",
    "StudyConfig",
    "TokenizerConfig",
    "TrackingConfig",
    "TrainerConfig",
    "default_tree",
    "field_descriptions",
    "to_tree",
]


@section
class Config:
    seed: Index = 0
    """Seed of initialisation and data order; 0 is a seed like any other."""
    size: Size | None = None
    """Non-embedding parameters of the ideal balanced shape, such as 200k or 1.5m; null for explicit shapes."""
    runs_dir: str = "runs"
    """Where run directories are written."""
    cache_dir: str = ".cache"
    """Where prepared data are kept and reused."""
    rerun: bool = False
    """Start over; the old run directory is set aside, not deleted."""
    action: Literal["plan", "run", "status", "report", "collect"] | None = None
    """What sweep.py does with the study; null runs it, then reports. train.py ignores it."""
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


def default_tree() -> dict[str, Any]:
    """Every key with its default, as plain containers for Hydra's ConfigStore."""
    return _plain(Config())


def to_tree(config: Config) -> dict[str, Any]:
    """The config as plain containers; `load_config(to_tree(c)) == c`."""
    return _plain(config)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return list(value) if isinstance(value, tuple) else value


def field_descriptions() -> Iterator[tuple[str, object, str]]:
    """(dotted key, default, documentation) of every leaf, in the order of the schema."""
    for name, default, text in _described(Config):
        if dataclasses.is_dataclass(default):
            for leaf, leaf_default, leaf_text in _described(type(default)):
                yield f"{name}.{leaf}", leaf_default, leaf_text
        else:
            yield name, default, text


def _described(cls: Any) -> Iterator[tuple[str, object, str]]:
    for name, field in cls.__pydantic_fields__.items():
        yield name, field.get_default(call_default_factory=True), field.description or ""
