"""The cells of a study: family x rung x token budget x seed, and what its rules decide for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from slm.architecture.flops import flop_equivalent_params
from slm.config.schema import BudgetConfig, Config, StudyConfig
from slm.errors import ConfigError, Problem
from slm.run.spec import branch_specs, resolve
from slm.studies.cells import ArmKey, Cell, RungKey, rung_overrides, written
from slm.tracking.result import RunResult

# Composes a config from overrides such as family=deep_thin and from keys with values, on top of the
# study's own.
Compose = Callable[[Sequence[str], Mapping[str, Any]], Config]
Rates = Mapping[ArmKey, float]


@dataclass(frozen=True)
class Arm:
    """A family on a rung at one point of the grid: all of a cell but its budget and seed."""

    config: Config
    family: str
    rung: RungKey
    varied: tuple[str, ...]
    decided: tuple[str, ...] = ()

    @property
    def key(self) -> ArmKey:
        return self.family, self.rung, self.varied

    def deciding(self, optimizer: Mapping[str, Any]) -> Arm:
        """With keys of the optimizer set by a rule."""
        said = tuple(f"optimizer.{key}={written(value)}" for key, value in optimizer.items())
        config = replace(self.config, optimizer=replace(self.config.optimizer, **optimizer))
        return replace(self, config=config, decided=(*self.decided, *said))


def cells_of(
    config: Config,
    compose: Compose,
    *,
    recorded: Mapping[str, RunResult] | None = None,
    rates: Rates | None = None,
) -> list[Cell]:
    """All cells, cheapest first.

    `recorded` are results by run id that need no run here; `rates` are learning rates of arms, by
    `Arm.key`, where the study tunes them.

    Raises:
        ConfigError: listing every family and rung that has no shape.
    """
    cells: list[Cell] = []
    problems: dict[Problem, None] = {}  # the same mistake shows in many cells
    for arm in arms_of(config, compose):
        own = arm.deciding({"lr": rates[arm.key]}) if rates and arm.key in rates else arm
        try:
            cells += _cells_of_arm(own, recorded or {})
        except ConfigError as error:
            problems |= dict.fromkeys(error.problems)
    if problems:
        raise ConfigError(list(problems))
    _check_unique(cells)
    return sorted(cells, key=lambda cell: cell.spec.flops)


def arms_of(config: Config, compose: Compose) -> Iterator[Arm]:
    study = config.study
    for family, point in product(study.families, grid_points(study)):
        configs: Mapping[RungKey, Config] = {
            model: compose([*rung_overrides(model), f"family={family}"], point)
            for model in study.models
        }
        if study.sizes:
            first = compose([*rung_overrides(study.sizes[0]), f"family={family}"], point)
            configs = {size: replace(first, size=size) for size in study.sizes}
        varied = tuple(f"{key}={written(value)}" for key, value in point.items())
        for rung, own in configs.items():
            _check_name(family, own)
            yield Arm(own, family, rung, varied)


def grid_points(study: StudyConfig) -> list[dict[str, Any]]:
    """Every combination of the grid's values; without a grid, the empty one."""
    return [dict(zip(study.grid, values, strict=True)) for values in product(*study.grid.values())]


def _cells_of_arm(arm: Arm, recorded: Mapping[str, RunResult]) -> Iterator[Cell]:
    arm = with_own_batch(arm)
    budgets = _shared(_budgets_of(arm.config), arm.config)
    for budget, seed in product(budgets, _seeds(arm)):
        for spec in branch_specs(replace(arm.config, budget=budget, seed=seed)):
            known = recorded.get(spec.run_id) if recorded else None  # an id costs a hash
            again = seed != arm.config.study.seeds[0]
            yield Cell(spec, arm.family, arm.rung, arm.varied, arm.decided, known, again)


def _seeds(arm: Arm) -> tuple[int, ...]:
    study = arm.config.study
    rungs: list[RungKey] = [*sorted(study.sizes), *study.models]
    anchors = {rungs[0], rungs[len(rungs) // 2], rungs[-1]}
    further = study.anchor_seeds if arm.rung in anchors else ()
    return tuple(dict.fromkeys([*study.seeds, *further]))


def _budgets_of(arm: Config) -> list[BudgetConfig]:
    """The study's budgets; FLOPs as the tokens that they buy, so that a rung's families get as many."""
    study = arm.study
    plain = [
        *(BudgetConfig(tokens_per_param=amount) for amount in study.tokens_per_param),
        *(BudgetConfig(tokens=tokens) for tokens in study.tokens),
    ]
    if not study.flops:
        return plain
    flops_per_token = resolve(replace(arm, budget=BudgetConfig(tokens=1))).reference_flops_per_token
    return [*plain, *(BudgetConfig(tokens=round(f / flops_per_token)) for f in study.flops)]


def _shared(budgets: list[BudgetConfig], arm: Config) -> list[BudgetConfig]:
    """As branches of the longest, where they have a trunk in common."""
    if not arm.study.share_trunks or arm.schedule.kind != "wsd":
        return budgets
    shared = []
    for unit in dict.fromkeys(budget.unit for budget in budgets):
        *shorter, longest = sorted(b.amount for b in budgets if b.unit == unit)
        shared.append(BudgetConfig.of(unit, longest, tuple(shorter)))
    return shared


def shortest_cell(arm: Arm, recorded: Mapping[str, RunResult]) -> Cell:
    """That of its smallest budget and first seed."""
    study = replace(arm.config.study, anchor_seeds=(), seeds=arm.config.study.seeds[:1])
    first = replace(arm, config=replace(arm.config, study=study))
    return min(_cells_of_arm(first, recorded), key=lambda cell: cell.spec.tokens)


def with_own_batch(arm: Arm) -> Arm:
    """The arm with the rung's batch by the rule of study.min_steps: the same for all its families."""
    config = arm.config
    min_steps, batch = config.study.min_steps, config.optimizer.global_batch_tokens
    if min_steps is None:
        return arm
    one = resolve(replace(config, budget=BudgetConfig(tokens=1)))
    tokens = min(
        budget.amount
        * (
            flop_equivalent_params(one.reference_flops_per_token)
            if budget.unit == "tokens_per_param"
            else 1
        )
        for budget in _budgets_of(config)
    )
    sequences = batch // config.model.seq_len
    while sequences % 2 == 0 and tokens < min_steps * sequences * config.model.seq_len:
        sequences //= 2
    batch = sequences * config.model.seq_len
    micro = config.trainer.micro_batch_sequences
    if isinstance(micro, int) and sequences % micro:
        trainer = replace(config.trainer, micro_batch_sequences=sequences)
        decided = (*arm.decided, f"trainer.micro_batch_sequences={sequences}")
        arm = replace(arm, config=replace(config, trainer=trainer), decided=decided)
    return arm.deciding({"global_batch_tokens": batch})


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
