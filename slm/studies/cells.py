"""A cell of a study, which is a run of train.py, and the job that a launcher is handed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from slm.config.schema import BudgetConfig
from slm.errors import RunError
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

    `rung` is a size or a preset, `varied` are the grid's keys and values, `decided` those that a rule
    of the study sets for the rung or the shape. `recorded` is its result in the study's file of them.
    """

    spec: RunSpec
    family: str
    rung: RungKey
    varied: tuple[str, ...] = ()
    decided: tuple[str, ...] = ()
    recorded: RunResult | None = None
    is_replicate: bool = False
    """Whether it repeats another cell with another seed."""

    @property
    def overrides(self) -> list[str]:
        """What `python train.py study=NAME` needs besides to run this cell alone."""
        config = self.spec.config
        trunk = [
            f"schedule.warmup_budget_tokens={config.schedule.warmup_budget_tokens}",
            "trainer.share_trunk=true",
        ]
        return [*self.arm, *budget_overrides(config.budget), *(trunk if self.has_trunk else ())]

    @property
    def arm(self) -> list[str]:
        seed = f"seed={self.spec.config.seed}"
        family = f"family={self.family}"
        return [*rung_overrides(self.rung), family, *self.varied, *self.decided, seed]

    @property
    def has_trunk(self) -> bool:
        """Whether it is one of several budgets that are decayed from one trunk."""
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
            return self.run.result()
        except RunError:
            return None


@dataclass(frozen=True)
class Job:
    """What a launcher is handed: a cell, or the cells of one trunk, shortest first."""

    cells: tuple[Cell, ...]

    @property
    def overrides(self) -> list[str]:
        *shorter, longest = self.cells
        if not shorter:
            return longest.overrides
        ends = ",".join(written(cell.spec.config.budget.amount) for cell in shorter)
        budget = budget_overrides(longest.spec.config.budget)
        return [*longest.arm, *budget, f"budget.branches=[{ends}]"]

    @property
    def steps(self) -> int:
        """Optimizer steps that it takes, each step of the trunk once."""
        taken, shared = 0, 0
        for cell in self.cells:
            taken += cell.spec.steps - min(shared, cell.spec.trunk_steps)
            shared = max(shared, cell.spec.trunk_steps)
        return taken

    @property
    def tokens(self) -> int:
        return self.steps * self.cells[0].spec.batch_tokens

    @property
    def flops(self) -> int:
        return self.tokens * self.cells[0].spec.flops_per_token

    @property
    def trunk(self) -> Trunk | None:
        """What its branches share."""
        return Trunk.of(self.cells[0].spec) if len(self.cells) > 1 else None

    @property
    def is_replicate(self) -> bool:
        return all(cell.is_replicate for cell in self.cells)


def jobs_of(cells: Sequence[Cell]) -> list[Job]:
    """The cells grouped by trunk, cheapest first, so that a study cut short is worth analysing.

    Replicates come last: a size more says more than a seed more.
    """
    trunks: dict[tuple[str | None, str], list[Cell]] = defaultdict(list)
    for cell in cells:
        trunk = cell.spec.trunk_id if cell.has_trunk else cell.spec.run_id
        trunks[trunk, cell.spec.config.budget.unit].append(cell)
    jobs = [Job(tuple(sorted(group, key=lambda c: c.spec.steps))) for group in trunks.values()]
    return sorted(jobs, key=lambda job: (job.is_replicate, job.flops))


def budget_overrides(budget: BudgetConfig) -> list[str]:
    amounts = {"tokens": None, "tokens_per_param": None, "flops": None, **budget.given}
    return [
        f"budget={budget.unit}",
        *(f"budget.{key}={written(amount)}" for key, amount in amounts.items()),
    ]


def rung_overrides(rung: RungKey) -> list[str]:
    return [f"size={rung}"] if isinstance(rung, int) else [f"model={rung}"]


def written(value: bool | float | str | None) -> str:
    """A value as an override spells it."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def contrast_of(cells: Sequence[Cell]) -> tuple[str, str]:
    """The study's two families: those it names, else the thinnest and the widest."""
    study = cells[0].spec.config.study
    if study.contrast:
        return study.contrast[0], study.contrast[1]
    aspects: dict[str, list[float]] = {}
    for cell in cells:
        aspects.setdefault(cell.family, []).append(cell.spec.shape.aspect_ratio)
    order = sorted(aspects, key=lambda family: sum(aspects[family]) / len(aspects[family]))
    return order[0], order[-1]
