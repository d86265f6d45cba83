"""Cells of a study (one run of train.py each) and jobs (the units that a launcher executes)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from slm.config.schema import BudgetConfig, StudyConfig
from slm.errors import DataError, RunError
from slm.run.spec import RunSpec
from slm.tracking.result import RunResult, State
from slm.tracking.run_dir import RunDirectory
from slm.tracking.trunk import Trunk

RungKey = int | str  # a size or the name of a preset
ArmKey = tuple[str, RungKey, tuple[str, ...]]  # family, rung, the grid's keys with values
DONE: frozenset[State] = frozenset({"finished", "diverged"})  # a divergence is a result


@dataclass(frozen=True)
class Cell:
    """One run of a study.

    `rung` is a size or a preset. `varied` are the overrides of this point of `study.grid`, `decided` those
    that a rule of the study sets for the rung or the shape. `recorded` is its result in `study.results`.
    """

    spec: RunSpec
    family: str
    rung: RungKey
    varied: tuple[str, ...] = ()
    decided: tuple[str, ...] = ()
    recorded: RunResult | None = None
    is_replicate: bool = False
    """Whether the cell repeats another cell with another seed."""

    @property
    def overrides(self) -> list[str]:
        """Overrides that make `python train.py study=NAME` run this cell alone."""
        config = self.spec.config
        trunk_overrides = [
            f"schedule.warmup_budget_tokens={config.schedule.warmup_budget_tokens}",
            "trainer.share_trunk=true",
        ]
        budget = budget_overrides(config.budget)
        return [*self.arm_overrides, *budget, *(trunk_overrides if self.has_trunk else ())]

    @property
    def arm_overrides(self) -> list[str]:
        """Overrides of the cell without its token budget."""
        config = self.spec.config
        family = family_overrides(self.family, config.study)
        seed = f"seed={config.seed}"
        return [*rung_overrides(self.rung), *family, *self.varied, *self.decided, seed]

    @property
    def has_trunk(self) -> bool:
        """Whether the cell is a branch of a trunk that several token budgets share."""
        return self.spec.config.trainer.share_trunk

    @cached_property
    def run(self) -> RunDirectory:
        return RunDirectory.of(self.spec)

    @property
    def state(self) -> State:
        return "finished" if self.recorded is not None else self.run.state()

    @property
    def is_done(self) -> bool:
        return self.state in DONE

    @property
    def result(self) -> RunResult | None:
        if self.recorded is not None:
            return self.recorded
        try:
            result = self.run.result()
        except RunError:
            return None
        # A folder that was copied or renamed has the result of another run.
        return result if result is None or result.run_id == self.spec.run_id else None


@dataclass(frozen=True)
class Job:
    """Unit of work of a launcher: one cell, or all cells of one trunk, shortest first."""

    cells: tuple[Cell, ...]

    @property
    def overrides(self) -> list[str]:
        """Overrides that make `python train.py study=NAME` run the job without its recorded cells.

        The warmup stays that of the shortest budget of the whole trunk.
        """
        *shorter, longest = [cell for cell in self.cells if cell.recorded is None] or self.cells
        if not shorter:
            return longest.overrides
        warmup = longest.spec.config.schedule.warmup_budget_tokens
        branches = ",".join(format_override(cell.spec.config.budget.amount) for cell in shorter)
        budget = budget_overrides(longest.spec.config.budget)
        return [
            *longest.arm_overrides,
            *budget,
            f"budget.branches=[{branches}]",
            f"schedule.warmup_budget_tokens={warmup}",
        ]

    @property
    def steps(self) -> int:
        """Optimizer steps of the job; steps of the trunk are counted once."""
        total, shared = 0, 0
        for cell in self.cells:
            total += cell.spec.steps - min(shared, cell.spec.trunk_steps)
            shared = max(shared, cell.spec.trunk_steps)
        return total

    @property
    def tokens(self) -> int:
        return self.steps * self.cells[0].spec.batch_tokens

    @property
    def flops(self) -> int:
        return self.tokens * self.cells[0].spec.flops_per_token

    @property
    def trunk(self) -> Trunk | None:
        """Trunk of the job's branches; None for a job of one cell."""
        return Trunk.of(self.cells[0].spec) if len(self.cells) > 1 else None

    @property
    def is_replicate(self) -> bool:
        return all(cell.is_replicate for cell in self.cells)


def jobs_of(cells: Sequence[Cell]) -> list[Job]:
    """Group cells by trunk, and sort the jobs by FLOPs, so that an unfinished study can be analysed.

    Replicates come last, because a further size adds more information than a further seed.
    """
    trunks: dict[tuple[str | None, str], list[Cell]] = defaultdict(list)
    for cell in cells:
        group_id = cell.spec.trunk_id if cell.has_trunk else cell.spec.run_id
        trunks[group_id, cell.spec.config.budget.unit].append(cell)
    jobs = [Job(tuple(sorted(group, key=lambda c: c.spec.steps))) for group in trunks.values()]
    return sorted(jobs, key=lambda job: (job.is_replicate, job.flops))


def budget_overrides(budget: BudgetConfig) -> list[str]:
    amounts = {"tokens": None, "tokens_per_param": None, "flops": None, **budget.given}
    return [
        f"budget={budget.unit}",
        *(f"budget.{key}={format_override(amount)}" for key, amount in amounts.items()),
    ]


def rung_overrides(rung: RungKey) -> list[str]:
    return [f"size={rung}"] if isinstance(rung, int) else [f"model={rung}"]


def family_overrides(family: str, study: StudyConfig) -> list[str]:
    ratio = study.ratio_families.get(family)
    if ratio is None:
        return [f"family={family}"]
    return ["family=aspect", f"family.aspect_ratio={ratio:g}"]


def format_override(value: bool | float | str | None) -> str:
    """Format a value as in an override."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def colour_order(cells: Sequence[Cell]) -> list[str]:
    """Return the families in the order of the colours in all charts of a study: the two compared ones first."""
    return list(dict.fromkeys((*contrast_of(cells), *sorted({cell.family for cell in cells}))))


def check_not_all_diverged(cells: Sequence[Cell]) -> None:
    """Raise a DataError if every cell diverged, so that there is nothing to report."""
    if all(cell.state == "diverged" for cell in cells):
        which = "the only cell" if len(cells) == 1 else f"all {len(cells)} cells"
        rates = sorted({cell.spec.config.optimizer.lr for cell in cells})
        at = " to ".join(f"{rate:g}" for rate in dict.fromkeys((rates[0], rates[-1])))
        raise DataError(
            f"no report: {which} diverged; optimizer.lr={at} is probably too high, so lower it"
        )


def contrast_of(cells: Sequence[Cell]) -> tuple[str, str]:
    """Return the two families to compare: `study.contrast`, else those of lowest and highest aspect ratio."""
    study = cells[0].spec.config.study
    if study.contrast:
        return study.contrast[0], study.contrast[1]
    aspects: dict[str, list[float]] = {}
    for cell in cells:
        aspects.setdefault(cell.family, []).append(cell.spec.shape.aspect_ratio)
    order = sorted(aspects, key=lambda family: sum(aspects[family]) / len(aspects[family]))
    return order[0], order[-1]
