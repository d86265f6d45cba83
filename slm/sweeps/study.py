"""The cells of a study: family x rung x token budget x seed, each a run of train.py."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any

from slm.errors import ConfigError, Problem
from slm.run_spec import RunSpec, branch_specs
from slm.schema import BudgetConfig, Config, StudyConfig
from slm.tracking.record import RunDirectory

# Composes a config from overrides such as family=deep_thin and from keys with values, on top of the
# study's own.
Compose = Callable[[Sequence[str], Mapping[str, Any]], Config]
NOT_FOR_GRID = {
    "size", "seed", "family", "model", "runs_dir", "cache_dir", "rerun", "action",
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One run of a study. `rung` is a size or a preset; `varied` are the grid's keys and values."""

    spec: RunSpec
    family: str
    rung: int | str
    varied: tuple[str, ...] = ()

    @property
    def overrides(self) -> list[str]:
        """What `python train.py study=NAME` needs besides to run this cell alone."""
        config = self.spec.config
        trunk = [
            f"schedule.warmup_budget_tokens={config.schedule.warmup_budget_tokens}",
            "trainer.share_trunk=true",
        ]
        return [*self._arm, *_budget(config.budget), *(trunk if self.has_trunk else ())]

    @property
    def _arm(self) -> list[str]:
        seed = f"seed={self.spec.config.seed}"
        return [*rung_overrides(self.rung), f"family={self.family}", *self.varied, seed]

    @property
    def has_trunk(self) -> bool:
        """Whether it is one of several budgets that are decayed from one trunk."""
        return self.spec.config.trainer.share_trunk

    @cached_property
    def run(self) -> RunDirectory:
        return RunDirectory.of(self.spec)


@dataclass(frozen=True)
class Job:
    """What a launcher is handed: a cell, or the cells of one trunk, shortest first."""

    cells: tuple[Cell, ...]

    @property
    def overrides(self) -> list[str]:
        *shorter, longest = self.cells
        if not shorter:
            return longest.overrides
        ends = ",".join(_written(cell.spec.config.budget.amount) for cell in shorter)
        budget = _budget(longest.spec.config.budget)
        return [*longest._arm, *budget, f"budget.branches=[{ends}]"]

    @property
    def steps(self) -> int:
        """Optimizer steps that it takes, each step of the trunk once."""
        taken, shared = 0, 0
        for cell in self.cells:
            taken += cell.spec.steps - min(shared, cell.spec.trunk_steps)
            shared = max(shared, cell.spec.trunk_steps)
        return taken

    @property
    def flops(self) -> int:
        spec = self.cells[0].spec
        return self.steps * spec.batch_tokens * spec.flops_per_token


def jobs_of(cells: Sequence[Cell]) -> list[Job]:
    """The cells grouped by trunk, cheapest first, so that a study cut short is worth analysing."""
    trunks: dict[tuple[str | None, str], list[Cell]] = defaultdict(list)
    for cell in cells:
        trunk = cell.spec.trunk_id if cell.has_trunk else cell.spec.run_id
        trunks[trunk, cell.spec.config.budget.unit].append(cell)
    jobs = [Job(tuple(sorted(group, key=lambda c: c.spec.steps))) for group in trunks.values()]
    return sorted(jobs, key=lambda job: job.flops)


def _budget(budget: BudgetConfig) -> list[str]:
    amounts = {"tokens": None, "tokens_per_param": None, "flops": None, **budget.given}
    return [
        f"budget={budget.unit}",
        *(f"budget.{key}={_written(amount)}" for key, amount in amounts.items()),
    ]


def rung_overrides(rung: int | str) -> list[str]:
    return [f"size={rung}"] if isinstance(rung, int) else [f"model={rung}"]


def check_study(config: Config) -> None:
    """Raise a ConfigError that lists what a study lacks."""
    study = config.study
    needed = {"families": "deep_thin", "seeds": "0"}
    problems = [
        Problem(f"study.{key}", "[]", "a sweep needs at least one", f"for example [{example}]")
        for key, example in needed.items()
        if not getattr(study, key)
    ]
    if not study.sizes and not study.models:
        fix = "for example study.sizes=[128k], or study.models=[mobilellm_125m]"
        problems.append(Problem("study.sizes", "[]", "a sweep needs at least one rung", fix))
    if not budgets_of(study):
        fix = "for example study.tokens_per_param=[5], or study.tokens=[1b]"
        rule = "a sweep needs at least one budget"
        problems.append(Problem("study.tokens_per_param", "[]", rule, fix))
    if study.sizes and study.models:
        rule = "rungs are either sizes or models; study.sizes has some too"
        problems.append(Problem("study.models", list(study.models), rule, "set one of them to []"))
    for key, values in study.grid.items():
        if not values:
            problems.append(Problem(f"study.grid.{key}", "[]", "needs values", "remove it"))
        if key in NOT_FOR_GRID or key.partition(".")[0] in {"budget", "study"}:
            rule = "the study has a place of its own for this, or it is no part of a run"
            problems.append(Problem(f"study.grid.{key}", list(values), rule, "remove it"))
    if problems:
        cause = Problem("study", study.name, "is not a study", "try study=demo")
        raise ConfigError([cause, *problems])


def budgets_of(study: StudyConfig) -> list[BudgetConfig]:
    return [
        *(BudgetConfig(tokens_per_param=multiplier) for multiplier in study.tokens_per_param),
        *(BudgetConfig(tokens=tokens) for tokens in study.tokens),
    ]


def _budgets_of(arm: Config) -> list[BudgetConfig]:
    """The study's budgets; as branches of the longest where they share a trunk."""
    budgets = budgets_of(arm.study)
    if not arm.study.share_trunks or arm.schedule.kind != "wsd":
        return budgets
    shared = []
    for unit in dict.fromkeys(budget.unit for budget in budgets):
        *shorter, longest = sorted(b.amount for b in budgets if b.unit == unit)
        shared.append(BudgetConfig.of(unit, longest, tuple(shorter)))
    return shared


def grid_points(study: StudyConfig) -> list[dict[str, Any]]:
    """Every combination of the grid's values; without a grid, the empty one."""
    return [dict(zip(study.grid, values, strict=True)) for values in product(*study.grid.values())]


def _written(value: bool | float | str | None) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def cells_of(config: Config, compose: Compose) -> list[Cell]:
    """All cells, cheapest first, so that a study cut short is already worth analysing.

    Raises:
        ConfigError: listing every family and rung that has no shape.
    """
    study = config.study
    cells: list[Cell] = []
    problems: dict[Problem, None] = {}  # the same mistake shows in many cells
    for family, varied in product(study.families, grid_points(study)):
        arms: Mapping[int | str, Config] = {
            model: compose([*rung_overrides(model), f"family={family}"], varied)
            for model in study.models
        }
        if study.sizes:
            arm = compose([*rung_overrides(study.sizes[0]), f"family={family}"], varied)
            arms = {size: replace(arm, size=size) for size in study.sizes}
        for rung, arm in arms.items():
            _check_name(family, arm)
            written = tuple(f"{key}={_written(value)}" for key, value in varied.items())
            try:
                for budget, seed in product(_budgets_of(arm), study.seeds):
                    for spec in branch_specs(replace(arm, budget=budget, seed=seed)):
                        cells.append(Cell(spec, family, rung, written))
            except ConfigError as error:
                problems |= dict.fromkeys(error.problems)
    if problems:
        raise ConfigError(list(problems))
    _check_unique(cells)
    return sorted(cells, key=lambda cell: cell.spec.flops)


def _check_unique(cells: Sequence[Cell]) -> None:
    """Two cells of one run would wait for each other."""
    first: dict[str, Cell] = {}
    for cell in cells:
        twin = first.setdefault(cell.spec.run_id, cell)
        if twin is not cell:
            rule = f"and {' '.join(twin.overrides)} are the same run"
            fix = "vary what changes the result, each value once"
            raise ConfigError([Problem("study", " ".join(cell.overrides), rule, fix)])


def _check_name(family: str, config: Config) -> None:
    """Results are grouped by the name that a family's file states."""
    if config.family.name != family:
        rule = f"differs from its file, conf/family/{family}.yaml"
        raise ConfigError([Problem("family.name", config.family.name, rule, f"use {family}")])
