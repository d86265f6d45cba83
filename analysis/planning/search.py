"""Search the design with the smallest MDE of the exponent difference at a given cost.

A design is a set of aspect ratios, sizes, token budgets (branches of one trunk) and seeds, with one batch size. Shapes
are the integer shapes that slm would train. For many designs at once, each shape is collapsed to its mean over budgets
and seeds; `design_power` then gives the exact numbers of the best ones.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
from scipy import special

from analysis.arrays import Floats
from analysis.design.identifiability import MIN_SIZES
from analysis.design.linear import Law, seed_noise
from slm.architecture.flops import flop_equivalent_params
from slm.architecture.shape_solver import MATCH_TOLERANCE
from slm.architecture.shapes import count_parameters
from slm.config.schema import BudgetConfig, Config
from slm.errors import ShapeNotFound
from slm.run.lr_schedule import steps_before_decay
from slm.run.spec import RunSpec, resolve
from slm.studies.expand import arms_of
from slm.studies.plan_tables import MAX_EMBEDDING_SHARE, MIN_STEPS

RATIOS = (3, 4, 5, 6, 8, 10, 12)  # numbers of aspect ratios
BEYOND = (1.3, 1.5)  # factors by which aspect ratios may lie outside the two that are compared
RUNGS = (4, 5, 6, 7, 8, 9, 10, 12, 14)
SEEDS = (1, 2)
BUDGET_FACTORS = (0.5, 0.75, 1.0, 1.5, 2.0)
SIZES_PER_DECADE = 12
DECADES = (1.0, 2.0)  # smallest and largest range of sizes
WANTED_DECADES = 1.5  # shorter only where no design with the same largest size has this range
MIN_RATIOS = 3  # of shapes on a rung
MAX_SHIFT = 0.10  # of a rung from its nominal size
SMALLEST_BATCH = (
    8  # the recipe's batch over the smallest one, because the learning rate depends on the batch
)
MIN_LONGEST = (
    20.0  # tokens_per_param of the longest budget: about the compute optimum (arXiv 2203.15556)
)
CURVATURE = 3  # columns h1, h2, gamma
# Cost of one optimizer step of a shape with a number of tokens per batch.
StepCost = Callable[[RunSpec, int], float]


@dataclass(frozen=True)
class Rung:
    """The matched shapes of one size; `n` is their N_flop. `compared`: those of the compared ratios that it has."""

    size: int
    n: float
    specs: tuple[RunSpec, ...]
    compared: frozenset[float]

    @property
    def has_both(self) -> bool:
        return len(self.compared) > 1


@dataclass(frozen=True)
class Candidate:
    """A design with its cost, and the MDE of the exponent difference without the closed test."""

    aspect_ratios: tuple[float, ...]
    sizes: tuple[int, ...]
    tokens_per_param: tuple[float, ...]
    batch_tokens: int
    seeds: int
    cost: float
    mde: float


@dataclass(frozen=True)
class Assumptions:
    """Law, noise in nats, and cost that a search assumes."""

    law: Law
    sigma: float | None
    tau: float
    step_cost: StepCost


@dataclass(frozen=True)
class Search:
    """Designs by their largest size, and the smallest cost of any design."""

    best: Mapping[int, Candidate]
    cheapest_exponent: float
    cheapest_level: float


def search_designs(
    config: Config,
    contrast: tuple[float, float],
    assumed: Assumptions,
    *,
    limit: float,
    largest: int,
) -> Search:
    """Return the best design of each largest size up to `largest` that costs at most `limit`.

    `contrast`: the low and the high aspect ratio that are compared.
    """
    sizes = _size_grid(largest)
    best: dict[int, Candidate] = {}
    narrow: dict[int, Candidate] = {}
    exponent = level = math.inf
    for ratios in ratio_sets(*contrast):
        rungs = rungs_of(config, ratios, sizes, contrast)
        for budgets in budget_sets(config):
            table = _Table(config, rungs, budgets, assumed)
            level = min(level, table.cheapest_pair())
            for batch, seeds in product(table.batches, SEEDS):
                for choice, cost, mde in table.designs(
                    batch, seeds, math.log(contrast[1] / contrast[0])
                ):
                    exponent = min(exponent, cost)
                    low, high = rungs[choice[0]].size, rungs[choice[-1]].size
                    group = best if high >= low * 10**WANTED_DECADES else narrow
                    if cost <= limit and (high not in group or mde < group[high].mde):
                        chosen = tuple(rungs[i].size for i in choice)
                        group[high] = Candidate(ratios, chosen, budgets, batch, seeds, cost, mde)
    return Search(dict(sorted({**narrow, **best}.items(), reverse=True)), exponent, level)


def ratio_sets(low: float, high: float) -> list[tuple[float, ...]]:
    """Return sets of aspect ratios: equally spaced between the compared ones, some with one beyond each."""
    inner = {count: _spaced(low, high, count) for count in RATIOS}
    wider = [
        (_two_digits(low / factor), *inner[count], _two_digits(high * factor))
        for factor, count in product(BEYOND, RATIOS[:5])
    ]
    return list(dict.fromkeys([*inner.values(), *wider]))


def _spaced(low: float, high: float, count: int) -> tuple[float, ...]:
    between = [_two_digits(ratio) for ratio in np.geomspace(low, high, count)[1:-1]]
    return tuple(sorted({low, *between, high}))


def _two_digits(value: float) -> float:
    return float(f"{value:.2g}")


def budget_sets(config: Config) -> list[tuple[float, ...]]:
    """Return the study's tokens_per_param, and multiples of them."""
    own = config.study.tokens_per_param
    if len(own) < 2:
        own = (8.0, 24.0, 72.0)
    scaled = [tuple(sorted(factor * value for value in own)) for factor in BUDGET_FACTORS]
    return [budgets for budgets in scaled if budgets[-1] >= MIN_LONGEST]


def _size_grid(largest: int) -> list[int]:
    steps = range(round((DECADES[1] + 0.5) * SIZES_PER_DECADE), -1, -1)
    return [round(_two_digits(largest * 10 ** (-step / SIZES_PER_DECADE))) for step in steps]


def rungs_of(
    config: Config, ratios: tuple[float, ...], sizes: Sequence[int], contrast: tuple[float, float]
) -> list[Rung]:
    """Return the sizes whose shapes fit well: matched, near their nominal size, with a small vocabulary.

    Two sizes may not share depth and width: they would replicate one size.
    """
    specs: dict[int, list[RunSpec]] = {size: [] for size in sizes}
    study = study_config(config, ratios, sizes)
    for arm in arms_of(study, compose_ratio(study)):
        with suppress(ShapeNotFound):
            spec = resolve(replace(arm.config, budget=BudgetConfig(tokens=1)))
            specs[int(arm.rung)].append(spec)
    rungs: list[Rung] = []
    labels: set[str] = set()  # of the shapes of the size below
    for size, found in specs.items():
        own = {spec.shape.label for spec in found}
        if _fits(found) and not own & labels:
            n = flop_equivalent_params(found[0].reference_flops_per_token)
            present = {spec.config.family.aspect_ratio for spec in found}
            rungs.append(Rung(size, n, tuple(found), frozenset(contrast) & present))
            labels = own
    return rungs


def _fits(specs: Sequence[RunSpec]) -> bool:
    if len(specs) < MIN_RATIOS:
        return False
    flops = [spec.flops_per_token for spec in specs]
    counts = [count_parameters(spec.shape) for spec in specs]
    return (
        max(flops) / min(flops) - 1 <= MATCH_TOLERANCE
        and abs(specs[0].rung_shift or 0.0) <= MAX_SHIFT
        and max(c.params_embedding / c.params_total for c in counts) <= MAX_EMBEDDING_SHARE
    )


def study_config(
    config: Config, ratios: tuple[float, ...], sizes: Sequence[int], **study: Any
) -> Config:
    """Return the config of a study of aspect ratios instead of families."""
    replaced = {
        "families": (),
        "contrast": (),
        "aspect_ratios": ratios,
        "skip_missing_shapes": True,
        "models": (),
        "sizes": tuple(sizes),
        "anchor_seeds": (),
        "anchor_sizes": (),
        "min_steps": None,
        "grid": {},
    }
    return replace(config, study=replace(config.study, **{**replaced, **study}))


def candidate_config(config: Config, candidate: Candidate, contrast: tuple[float, float]) -> Config:
    """Return the config of the study that a candidate describes."""
    study = study_config(
        config,
        candidate.aspect_ratios,
        candidate.sizes,
        contrast=tuple(f"aspect_{ratio:g}" for ratio in contrast),
        tokens_per_param=candidate.tokens_per_param,
        tokens=(),
        flops=(),
        seeds=tuple(range(candidate.seeds)),
    )
    optimizer = replace(config.optimizer, global_batch_tokens=candidate.batch_tokens)
    return replace(study, optimizer=optimizer)


def compose_ratio(config: Config) -> Callable[[Sequence[str], Mapping[str, Any]], Config]:
    """Return a function that composes the config of one aspect ratio without Hydra, for `arms_of` and `cells_of`."""

    def compose(overrides: Sequence[str], _: Mapping[str, Any]) -> Config:
        ratio = float(overrides[-1].partition("=")[2])
        family = replace(config.family, name=f"aspect_{ratio:g}", aspect_ratio=ratio)
        return replace(config, family=family)

    return compose


class _Table:
    """Cost and information of each rung, for all choices of rungs."""

    def __init__(
        self,
        config: Config,
        rungs: Sequence[Rung],
        budgets: tuple[float, ...],
        assumed: Assumptions,
    ):
        self.config, self.rungs, self.budgets, self.assumed = config, rungs, budgets, assumed
        batches = [self._batch(rung) for rung in rungs]
        self.batches = sorted({batch for batch in batches if batch is not None})
        self.choices: dict[int, list[list[int]]] = {batch: [] for batch in self.batches}
        for low, high in product(range(len(rungs)), repeat=2):
            batch = batches[low]
            decades = math.log10(rungs[high].size / rungs[low].size)
            ends = rungs[low].has_both and rungs[high].has_both
            if ends and batch is not None and DECADES[0] <= decades <= DECADES[1]:
                self.choices[batch] += self._between(low, high)
        self.n = np.array([rung.n for rung in rungs])

    def _between(self, low: int, high: int) -> Iterator[list[int]]:
        """Yield choices of rungs from `low` to `high`, nearly equally spaced in ln N.

        Each compared ratio must have the sizes that an exponent needs.
        """
        logs = np.log([rung.n for rung in self.rungs[low : high + 1]])
        for count in RUNGS:
            wanted = np.linspace(logs[0], logs[-1], count)
            found = {int(np.argmin(np.abs(logs - each))) for each in wanted}
            choice = [low + index for index in sorted(found)]
            sizes = Counter(ratio for index in choice for ratio in self.rungs[index].compared)
            if len(found) == count and min(sizes.values()) >= MIN_SIZES:
                yield choice

    def _batch(self, rung: Rung) -> int | None:
        """Return the largest batch with which the shortest run of a rung has MIN_STEPS steps; None if too small."""
        seq_len = self.config.model.seq_len
        sequences = whole = self.config.optimizer.global_batch_tokens // seq_len
        while sequences % 2 == 0 and self.budgets[0] * rung.n < MIN_STEPS * sequences * seq_len:
            sequences //= 2
        if (
            self.budgets[0] * rung.n < MIN_STEPS * sequences * seq_len
            or SMALLEST_BATCH * sequences < whole
        ):
            return None
        return sequences * seq_len

    def _costs(self, budgets: Sequence[float], batch: int) -> Floats:
        """Return the cost of one seed of all shapes of each rung."""
        totals = []
        for rung in self.rungs:
            steps = [max(1, round(each * rung.n / batch)) for each in budgets]
            total = _job_steps(steps, batch, self.config)
            totals.append(total * sum(self.assumed.step_cost(spec, batch) for spec in rung.specs))
        return np.array(totals)

    def cheapest_pair(self) -> float:
        """Return the cost of the two cheapest rungs with one budget: with three shapes each they identify a level."""
        if not self.batches or len(self.rungs) < 2:
            return math.inf
        return float(np.sort(self._costs(self.budgets[:1], self.batches[0]))[:2].sum())

    def designs(
        self, batch: int, seeds: int, log_ratio: float
    ) -> Iterator[tuple[list[int], float, float]]:
        """Yield chosen rungs, cost and MDE of d_alpha of all designs with this batch."""
        choices = self.choices[batch]
        if not choices:
            return
        chosen = np.zeros((len(choices), len(self.rungs)))
        for row, choice in enumerate(choices):
            chosen[row, choice] = 1.0
        costs = chosen @ self._costs(self.budgets, batch) * seeds
        information = chosen @ self._information(batch, seeds)
        covariance = np.linalg.inv(information.reshape(-1, CURVATURE, CURVATURE))
        shapes = chosen @ np.array([len(rung.specs) for rung in self.rungs], float)
        df = shapes - chosen.sum(axis=1) - CURVATURE
        quantiles = special.stdtrit(df, 0.975) + special.stdtrit(df, 0.8)
        mde = quantiles * log_ratio * np.sqrt(covariance[:, 2, 2])
        yield from zip(choices, costs.tolist(), mde.tolist(), strict=True)

    def _information(self, batch: int, seeds: int) -> Floats:
        """Return the information on (h1, h2, gamma) of each rung, (rungs, 9)."""
        law, rows = self.assumed.law, []
        x = np.log(self.n) - np.log(self.n).mean()
        middle = float(
            np.mean([math.log(s.shape.aspect_ratio) for r in self.rungs for s in r.specs])
        )
        for rung, position in zip(self.rungs, x, strict=True):
            u = np.array([math.log(spec.shape.aspect_ratio) for spec in rung.specs]) - middle
            columns = np.stack([u, u**2, -u * position], axis=1) * law.A * rung.n**-law.alpha
            columns -= columns.mean(axis=0)
            loss = law.terms(
                np.full(len(self.budgets), rung.n), rung.n * np.array(self.budgets)
            ).sum(axis=1)
            given = self.assumed.sigma
            sigma = seed_noise(loss) if given is None else np.full(len(loss), given)
            variance = self.assumed.tau**2 + 1 / (seeds * (sigma**-2).sum())
            rows.append((columns.T @ columns / variance).ravel())
        return np.array(rows)


def _job_steps(steps: Sequence[int], batch: int, config: Config) -> int:
    """Return the steps of one shape with all budgets; steps of a shared trunk count once."""
    shares = config.study.share_trunks and not config.study.lr_tokens_exponent
    total = shared = 0
    for each in sorted(steps):
        trunk = steps_before_decay(each, batch, config.schedule) if shares else 0
        total += each - min(shared, trunk)
        shared = max(shared, trunk)
    return total
