"""The cells of a study: every family x size x token budget x seed, each a run of train.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product

from slm.errors import ConfigError, Problem
from slm.run_spec import RunSpec, resolve
from slm.schema import BudgetConfig, Config, FamilyConfig
from slm.tracking.record import RunDirectory


@dataclass(frozen=True)
class Cell:
    """One run of a study."""

    spec: RunSpec
    family: str
    size: int
    tokens_per_param: float
    seed: int

    @property
    def overrides(self) -> list[str]:
        """What `python train.py study=NAME` needs besides to run this cell alone."""
        return [
            f"family={self.family}",
            f"size={self.size}",
            "budget=tokens_per_param",
            f"budget.tokens_per_param={self.tokens_per_param!r}",
            f"seed={self.seed}",
        ]

    @property
    def run(self) -> RunDirectory:
        return RunDirectory.of(self.spec)


def check_study(config: Config) -> None:
    """Raise a ConfigError that lists what a study lacks."""
    needed = {"families": "deep_thin", "sizes": "128k", "tokens_per_param": "5", "seeds": "0"}
    problems = [
        Problem(f"study.{key}", "[]", "a sweep needs at least one", f"for example [{example}]")
        for key, example in needed.items()
        if not getattr(config.study, key)
    ]
    if problems:
        cause = Problem("study", config.study.name, "is not a study", "try study=demo")
        raise ConfigError([cause, *problems])


def cells_of(config: Config, families: Mapping[str, FamilyConfig]) -> list[Cell]:
    """All cells, cheapest first, so that a study cut short is already worth analysing.

    Raises:
        ConfigError: listing every family and size that has no shape.
    """
    study = config.study
    cells: list[Cell] = []
    problems: list[Problem] = []
    for name, size in product(study.families, study.sizes):
        try:
            for budget, seed in product(study.tokens_per_param, study.seeds):
                cell_config = replace(
                    config,
                    family=families[name],
                    size=size,
                    budget=BudgetConfig(tokens_per_param=budget),
                    seed=seed,
                )
                cells.append(Cell(resolve(cell_config), name, size, budget, seed))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return sorted(cells, key=lambda cell: cell.spec.flops)
