"""Search of designs: exact cost, rules of a design, the cheapest designs."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from analysis.design.linear import Law
from analysis.planning import search
from analysis.planning.power import design_power
from analysis.planning.search import (
    Assumptions,
    Candidate,
    Search,
    candidate_config,
    compose_ratio,
    search_designs,
)
from analysis.study_actions.plan import design_of
from slm.config.hydra import compose_config
from slm.config.schema import Config
from slm.run.spec import RunSpec
from slm.studies.cells import Cell, jobs_of
from slm.studies.expand import cells_of

pytestmark = pytest.mark.numeric
CONTRAST = (4.0, 32.0)
LIMIT, LARGEST = 1.2e15, 500_000
LAW = Law(E=0.653, A=12.14, B=27.56, alpha=0.3276, beta=0.2728)


def flops_of_step(spec: RunSpec, batch: int) -> float:
    return float(batch * spec.flops_per_token)


ASSUMED = Assumptions(LAW, 0.0102, 0.0078, flops_of_step)


@pytest.fixture(scope="module")
def config() -> Config:
    return compose_config(
        ["study=micro", "optimizer.global_batch_tokens=1024", "study.tokens_per_param=[4,12,36]"]
    )


@pytest.fixture(scope="module")
def found(config: Config) -> Search:
    patch = pytest.MonkeyPatch()
    patch.setattr(
        search, "ratio_sets", lambda *_: [(4.0, 11.0, 32.0), (2.7, 4.0, 11.0, 32.0, 48.0)]
    )
    try:
        return search_designs(config, CONTRAST, ASSUMED, limit=LIMIT, largest=LARGEST)
    finally:
        patch.undo()


def cells_of_candidate(config: Config, candidate: Candidate) -> list[Cell]:
    study = candidate_config(config, candidate, CONTRAST)
    return cells_of(study, compose_ratio(study))


def test_designs_cost_what_their_cells_cost(config: Config, found: Search) -> None:
    assert len(found.best) > 3
    for candidate in list(found.best.values())[:3]:
        cells = cells_of_candidate(config, candidate)
        assert sum(job.flops for job in jobs_of(cells)) == pytest.approx(candidate.cost)
        assert candidate.cost <= LIMIT
        power = design_power(
            design_of(cells), "aspect_4", "aspect_32", law=LAW, sigma=0.0102, tau=0.0078
        )
        assert not power.refusals and power.df is not None and power.df >= 2
        # The search ignores the closed test, and that the compared shapes are not exactly 4 and 32.
        assert power.mde80_exponent == pytest.approx(candidate.mde, rel=0.25)


def test_designs_keep_the_rules(config: Config, found: Search) -> None:
    for size, candidate in found.best.items():
        assert candidate.sizes[-1] == size <= LARGEST
        assert math.log10(size / candidate.sizes[0]) >= 1.0
        assert candidate.tokens_per_param[-1] >= 20
    candidate = found.best[LARGEST]
    assert math.log10(LARGEST / candidate.sizes[0]) >= 1.5
    cells = cells_of_candidate(config, candidate)
    assert len({cell.spec.batch_tokens for cell in cells}) == 1
    assert min(cell.spec.steps for cell in cells) >= 0.99 * 1000
    shapes = {(cell.rung, cell.spec.shape) for cell in cells}
    labels = [shape.label for _, shape in shapes]
    assert len(labels) == len(set(labels))  # no two sizes replicate one shape
    for rung in candidate.sizes:
        assert sum(each == rung for each, _ in shapes) >= 3
    for rung in (candidate.sizes[0], candidate.sizes[-1]):
        assert {"aspect_4", "aspect_32"} <= {cell.family for cell in cells if cell.rung == rung}


def test_each_compared_ratio_has_the_sizes_of_an_exponent(config: Config) -> None:
    """One of five sizes has no shape of ratio 4: four sizes with it in the middle do not identify an exponent."""
    ratios = (4.0, 11.0, 32.0)
    sizes = [50_000, 89_000, 160_000, 280_000, 500_000]
    rungs = search.rungs_of(config, ratios, sizes, CONTRAST)
    assert [rung.has_both for rung in rungs] == [True] * 5
    rungs[2] = replace(rungs[2], compared=frozenset({32.0}))
    table = search._Table(config, rungs, config.study.tokens_per_param, ASSUMED)
    choices = [choice for group in table.choices.values() for choice in group]
    assert [0, 1, 2, 3, 4] in choices
    assert all(len(set(choice) - {2}) >= 4 for choice in choices)


def test_more_compute_never_gives_a_worse_design(config: Config, found: Search) -> None:
    assert found.cheapest_level < found.cheapest_exponent < LIMIT
    best = min(candidate.mde for candidate in found.best.values())
    patch = pytest.MonkeyPatch()
    patch.setattr(
        search, "ratio_sets", lambda *_: [(4.0, 11.0, 32.0), (2.7, 4.0, 11.0, 32.0, 48.0)]
    )
    less = search_designs(config, CONTRAST, ASSUMED, limit=LIMIT / 4, largest=LARGEST)
    none = search_designs(
        config, CONTRAST, ASSUMED, limit=found.cheapest_exponent * 0.99, largest=LARGEST
    )
    patch.undo()
    assert min(candidate.mde for candidate in less.best.values()) >= best
    assert not none.best and none.cheapest_exponent == pytest.approx(found.cheapest_exponent)


def test_aspect_ratios_include_the_compared_ones() -> None:
    sets = search.ratio_sets(*CONTRAST)
    assert all(set(CONTRAST) <= set(ratios) and len(ratios) >= 3 for ratios in sets)
    assert (4.0, 11.0, 32.0) in sets and (2.7, 4.0, 11.0, 32.0, 48.0) in sets
    assert len(sets) == len(set(sets))
