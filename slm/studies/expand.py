"""Expansion of a study into cells: family x rung x token budget x seed, with the values set by its rules."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from slm.architecture.flops import flop_equivalent_params
from slm.architecture.memory import divisors
from slm.architecture.shape_solver import log_distance
from slm.architecture.shapes import ModelShape
from slm.config.schema import BudgetConfig, Config, StudyConfig
from slm.errors import ConfigError, Problem, ShapeNotFound
from slm.run.spec import branch_specs, resolve
from slm.studies.cells import (
    ArmKey,
    Cell,
    RungKey,
    family_overrides,
    format_override,
    rung_overrides,
)
from slm.studies.rate_rule import RateRule
from slm.tracking.result import RunResult

# Composes the study's config with further overrides, such as family=deep_thin, and values by key.
Compose = Callable[[Sequence[str], Mapping[str, Any]], Config]
Rates = Mapping[ArmKey, float]
MIN_FAMILIES = 2  # of a rung, for a comparison


@dataclass(frozen=True)
class Arm:
    """A family on a rung at one point of `study.grid`: a cell without token budget and seed."""

    config: Config
    family: str
    rung: RungKey
    varied: tuple[str, ...]
    decided: tuple[str, ...] = ()

    @property
    def key(self) -> ArmKey:
        return self.family, self.rung, self.varied

    def with_optimizer(self, optimizer: Mapping[str, Any]) -> Arm:
        """Return the arm with values of the optimizer that a rule of the study sets."""
        overrides = tuple(
            f"optimizer.{key}={format_override(value)}" for key, value in optimizer.items()
        )
        config = replace(self.config, optimizer=replace(self.config.optimizer, **optimizer))
        return replace(self, config=config, decided=(*self.decided, *overrides))


def cells_of(
    config: Config,
    compose: Compose,
    *,
    recorded: Mapping[str, RunResult] | None = None,
    rates: Rates | None = None,
) -> list[Cell]:
    """Build all cells of a study, sorted by FLOPs.

    `recorded` has the results of `study.results` by run id: their cells count as finished. `rates` has tuned
    learning rates by `Arm.key`.

    Raises:
        ConfigError: if a family has no shape on a rung (lists all of them), or two cells are the same run.
    """
    cells: list[Cell] = []
    problems: dict[Problem, None] = {}  # each problem once, although it repeats in many cells
    for arm in arms_of(config, compose):
        lr = {"lr": rates[arm.key]} if rates and arm.key in rates else {}
        try:
            cells += _cells_of_arm(arm.with_optimizer(lr) if lr else arm, recorded or {})
        except ConfigError as error:
            problems |= dict.fromkeys(error.problems)
    if problems:
        raise ConfigError(list(problems))
    _check_unique(cells)
    return sorted(cells, key=lambda cell: cell.spec.flops)


def arms_of(config: Config, compose: Compose) -> list[Arm]:
    """Return every combination of family, grid point and rung.

    `study.skip_missing_shapes` leaves out arms without a shape of their own on rungs where two families have one.
    """
    arms = list(_all_arms(config, compose))
    if not config.study.skip_missing_shapes:
        return arms
    own = _with_own_shapes(arms)
    families = Counter(rung for _, rung in {(family, rung) for family, rung, _ in own})
    return [arm for arm in arms if arm.key in own or families[arm.rung] < MIN_FAMILIES]


def _with_own_shapes(arms: Sequence[Arm]) -> set[ArmKey]:
    """Return the keys of the arms with a matched shape that no other arm has.

    Two families made from ratios that have the same shape would train the same run under two names: the nearest ratio
    keeps the shape, unless a family with a file has it too.
    """
    by_shape: dict[tuple[RungKey, tuple[str, ...], ModelShape], list[Arm]] = defaultdict(list)
    for arm in arms:
        with suppress(ShapeNotFound):
            shape = resolve(replace(arm.config, budget=BudgetConfig(tokens=1))).shape
            by_shape[arm.rung, arm.varied, shape].append(arm)
    ratios = arms[0].config.study.ratio_families
    own: set[ArmKey] = set()
    for (_, _, shape), same in by_shape.items():
        kept = [arm for arm in same if arm.family not in ratios]
        if not kept:
            actual = shape.aspect_ratio
            kept = [min(same, key=lambda arm: log_distance(actual, ratios[arm.family]))]
        own |= {arm.key for arm in kept}
    return own


def _all_arms(config: Config, compose: Compose) -> Iterator[Arm]:
    study = config.study
    for family, point in product(study.all_families, grid_points(study)):
        overrides = family_overrides(family, study)
        configs: Mapping[RungKey, Config] = {
            model: compose([*rung_overrides(model), *overrides], point) for model in study.models
        }
        if study.sizes:
            first = compose([*rung_overrides(study.sizes[0]), *overrides], point)
            configs = {size: replace(first, size=size) for size in study.sizes}
        varied = tuple(f"{key}={format_override(value)}" for key, value in point.items())
        for rung, arm_config in configs.items():
            _check_name(family, arm_config)
            yield Arm(arm_config, family, rung, varied)


def grid_points(study: StudyConfig) -> list[dict[str, Any]]:
    """Return all combinations of the grid's values; without a grid, one empty combination."""
    return [dict(zip(study.grid, values, strict=True)) for values in product(*study.grid.values())]


def _cells_of_arm(arm: Arm, recorded: Mapping[str, RunResult]) -> Iterator[Cell]:
    arm = with_rung_batch(arm)
    for budget, seed in product(_merge_branches(_budgets_of(arm.config), arm.config), _seeds(arm)):
        at_rate = _with_rate_of_budget(arm, budget)
        for spec in branch_specs(replace(at_rate.config, budget=budget, seed=seed)):
            result = recorded.get(spec.run_id) if recorded else None  # run_id costs a hash
            is_replicate = seed != arm.config.study.seeds[0]
            yield Cell(
                spec, arm.family, arm.rung, arm.varied, at_rate.decided, result, is_replicate
            )


def _with_rate_of_budget(arm: Arm, budget: BudgetConfig) -> Arm:
    """Return the arm with the learning rate that the study's rule gives for a budget."""
    if not _has_rate_rule(arm.config):
        return arm
    tokens = resolve(replace(arm.config, budget=budget)).tokens
    return arm.with_optimizer({"lr": RateRule.of(arm.config).rate(tokens)})


def _has_rate_rule(config: Config) -> bool:
    return not RateRule.of(config).is_constant and "optimizer.lr" not in config.study.grid


def _seeds(arm: Arm) -> tuple[int, ...]:
    """Return study.seeds, with study.anchor_seeds on the rungs of study.anchor_sizes.

    Without anchor_sizes these are the first, the middle and the last rung.
    """
    study = arm.config.study
    rungs: list[RungKey] = [*sorted(study.sizes), *study.models]
    anchors = study.anchor_sizes or (rungs[0], rungs[len(rungs) // 2], rungs[-1])
    anchor_seeds = study.anchor_seeds if arm.rung in anchors else ()
    return tuple(dict.fromkeys([*study.seeds, *anchor_seeds]))


def _budgets_of(arm: Config) -> list[BudgetConfig]:
    """Return the study's budgets; FLOPs become tokens, the same number for all families of a rung."""
    study = arm.study
    budgets = [
        *(BudgetConfig(tokens_per_param=value) for value in study.tokens_per_param),
        *(BudgetConfig(tokens=tokens) for tokens in study.tokens),
    ]
    if not study.flops:
        return budgets
    flops_per_token = resolve(replace(arm, budget=BudgetConfig(tokens=1))).reference_flops_per_token
    return [*budgets, *(BudgetConfig(tokens=round(f / flops_per_token)) for f in study.flops)]


def _merge_branches(budgets: list[BudgetConfig], arm: Config) -> list[BudgetConfig]:
    """If the study shares trunks, return the longest budget of each unit with the others as its branches.

    Budgets with rates of their own share none, because the branches of a trunk have its learning rate.
    """
    if not arm.study.share_trunks or arm.schedule.kind != "wsd" or _has_rate_rule(arm):
        return budgets
    merged = []
    for unit in dict.fromkeys(budget.unit for budget in budgets):
        *shorter, longest = sorted(b.amount for b in budgets if b.unit == unit)
        merged.append(BudgetConfig.of(unit, longest, tuple(shorter)))
    return merged


def shortest_cell(arm: Arm, recorded: Mapping[str, RunResult]) -> Cell:
    """Build the cell of the arm's smallest token budget and first seed."""
    study = replace(arm.config.study, anchor_seeds=(), seeds=arm.config.study.seeds[:1])
    one_seed = replace(arm, config=replace(arm.config, study=study))
    return min(_cells_of_arm(one_seed, recorded), key=lambda cell: cell.spec.tokens)


def with_rung_batch(arm: Arm) -> Arm:
    """Return the arm with the batch size of its rung under `study.min_steps`, the same for all families.

    The batch is optimizer.global_batch_tokens, halved while the shortest budget has fewer steps than that. A number of
    trainer.micro_batch_sequences that no longer divides it becomes the largest smaller one that does.
    """
    config = arm.config
    min_steps, batch = config.study.min_steps, config.optimizer.global_batch_tokens
    if min_steps is None:
        return arm
    spec = resolve(replace(config, budget=BudgetConfig(tokens=1)))
    tokens = min(
        budget.amount
        * (
            flop_equivalent_params(spec.reference_flops_per_token)
            if budget.unit == "tokens_per_param"
            else 1
        )
        for budget in _budgets_of(config)
    )
    sequences = batch // config.model.seq_len
    while sequences % 2 == 0 and tokens < min_steps * sequences * config.model.seq_len:
        sequences //= 2
    batch = sequences * config.model.seq_len
    micro, rows = config.trainer.micro_batch_sequences, -(-sequences // config.trainer.processes)
    if isinstance(micro, int) and sequences % micro and rows % micro:
        smaller = max(number for number in divisors(rows) if number <= micro)
        trainer = replace(config.trainer, micro_batch_sequences=smaller)
        decided = (*arm.decided, f"trainer.micro_batch_sequences={smaller}")
        arm = replace(arm, config=replace(config, trainer=trainer), decided=decided)
    return arm.with_optimizer({"global_batch_tokens": batch})


def _check_unique(cells: Sequence[Cell]) -> None:
    """Raise a ConfigError if two cells are the same run: their processes would wait for each other."""
    first: dict[str, Cell] = {}
    for cell in cells:
        twin = first.setdefault(cell.spec.run_id, cell)
        if twin is not cell:
            pair = " and ".join(f"({' '.join(each.arm_overrides)})" for each in (twin, cell))
            rule = f"the cells {pair} are the same run, {cell.spec.run_id}"
            fix = "vary only keys that change the result, and list each value once"
            raise ConfigError([Problem("study", cell.spec.config.study.name, rule, fix)])


def _check_name(family: str, config: Config) -> None:
    """Raise a ConfigError if family.name differs from the study's name of the family: it groups the results."""
    if config.family.name != family:
        rule = f"differs from the family of the study, {family}"
        raise ConfigError([Problem("family.name", config.family.name, rule, f"use {family}")])
