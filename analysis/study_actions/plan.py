"""`action=plan`: print cells, cost and statistical power of a study before any compute is spent.

This module passes the study's cells to `analysis.planning.power`, which slm must not import.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from analysis.learning_rate.gate import audit_of_study
from analysis.study_actions.speeds import latency_lines
from slm.architecture.flops import flop_equivalent_params
from slm.config.schema import Config
from slm.console import Column, FittedTable, console, print_lines
from slm.errors import DesignRefused
from slm.formatting import count, scientific, short_count
from slm.studies.cells import ArmKey, Cell, RungKey, contrast_of
from slm.studies.grid_table import describe_grid, grid_table
from slm.studies.left_out import left_out_lines
from slm.studies.lr_tuning import FIRST_STEPS
from slm.studies.plan_tables import (
    cells_table,
    design_warnings,
    format_time_estimate,
    format_totals,
    ladder_table,
    list_epoch_refusals,
    mfu_warnings,
)
from slm.studies.throughput import load_throughput, probe_key, store_probe

if TYPE_CHECKING:
    from analysis.design.linear import Design, Law
    from analysis.planning.power import DesignPower

log = logging.getLogger("slm")
MIN_POWER = 0.5  # a claim about exponents with less power gets a warning
NEXT_RUNS = 5


def show_plan(cells: Sequence[Cell]) -> None:
    """Print the plan: grid of cells with cost, power, shapes, warnings and refusals.

    Raises:
        DesignRefused: if the design cannot estimate what the study claims; the plan is printed first.
        DataError: if `study.lr_audit` is not an audit of the study; the plan is printed first.
    """
    out = console()
    config = cells[0].spec.config
    if config.plan.probe:
        _probe(cells)
    throughput = load_throughput(cells)
    if config.study.question:
        print_lines(out, [config.study.question])
    print_lines(out, [describe_grid(cells)])
    out.print(grid_table(cells, throughput))
    print_lines(out, [format_totals(cells), format_time_estimate(cells, throughput)])
    print_lines(out, latency_lines(cells))
    if config.study.lr_policy == "tuned":
        print_lines(out, [_tuning_cost(cells)])
    power = compute_power(cells)
    if power is not None and power.se_level is not None:
        out.print()
        out.print(power_table(power))
        print_lines(out, [_verdict_line(power), *_next_runs(cells, power)])
    out.print()
    out.print(ladder_table(cells))
    out.print()
    if config.plan.cells:
        out.print(cells_table(cells, throughput))
        out.print()
    else:
        print_lines(out, ["plan.cells=true lists the cells"])
    warnings = [*mfu_warnings(cells, throughput), *design_warnings(cells)]
    print_lines(out, [*warnings, *_power_warnings(power, config.study.claim)])
    print_lines(out, [f"Note: {line}" for line in left_out_lines(cells)])
    refusals = list_refusals(cells, power)
    print_lines(out, [f"REFUSED {line}" for line in refusals])
    audit_of_study(cells)  # last, because nothing above depends on it
    if refusals:
        raise DesignRefused(refusal_message(config))


def list_refusals(cells: Sequence[Cell], power: DesignPower | None) -> list[str]:
    """Return why the study must not run: it cannot estimate what it claims, or has too few training tokens."""
    claim = cells[0].spec.config.study.claim
    found = list_epoch_refusals(cells)
    if power is not None and claim == "exponents":
        found += [f"exponents: {line}" for line in power.refusals]
    if power is not None and claim == "differences":
        found += [f"differences: {line}" for line in power.level_refusals]
    return found


def refusal_message(config: Config) -> str:
    """Return the last line of a refusal: the claim of the study, and how to fix it."""
    study = config.study
    weaker_claims = {"exponents": "differences or none", "differences": "none"}
    weaker = weaker_claims.get(study.claim)
    fix = "change the design" + ("" if weaker is None else f", or set study.claim to {weaker}")
    return f"study {study.name} is REFUSED for the reasons above (study.claim={study.claim}); {fix}"


def _power_warnings(power: DesignPower | None, claim: str) -> Iterator[str]:
    if power is not None:
        for line in power.warnings:
            # `design_warnings` prints mismatched rungs with their shapes.
            if not line.startswith("rung "):
                yield f"WARN {line}"
        effect, share = list((power.power_exponent or {0.0: 1.0}).items())[-1]
        if claim == "exponents" and share < MIN_POWER:
            yield (
                f"WARN the power for an exponent difference of {effect:g} is {share:.0%}: the verdict on exponents "
                "will most likely be inconclusive"
            )
        if claim != "exponents":
            for line in power.refusals:
                yield f"Note: exponents cannot be estimated here (not part of the claim): {line}"


def compute_power(cells: Sequence[Cell]) -> DesignPower | None:
    """Return the power of the design for the two families of the contrast; None if the study compares none."""
    from analysis.planning.power import design_power

    config = cells[0].spec.config
    if config.study.analysis != "families":
        return None
    deep, wide = contrast_of(cells)
    return design_power(
        design_of(cells),
        deep,
        wide,
        law=law_of(config),
        sigma=config.plan.sigma,
        tau=config.plan.tau,
    )


def design_of(cells: Sequence[Cell]) -> Design:
    """Return the study's cells as a design for power calculations."""
    from analysis.design.linear import Design

    labels = _budget_labels(cells)
    return Design(
        family=[cell.family for cell in cells],
        rung=[cell.rung for cell in cells],
        shape=[f"{cell.family} {cell.spec.shape.label} {' '.join(cell.varied)}" for cell in cells],
        n_flop=[flop_equivalent_params(cell.spec.flops_per_token) for cell in cells],
        tokens=[cell.spec.tokens for cell in cells],
        seed=[cell.spec.config.seed for cell in cells],
        flops=[cell.spec.flops for cell in cells],
        tokens_per_param=[labels[cell.rung, cell.spec.tokens] for cell in cells],
        aspect_ratio=[cell.spec.shape.aspect_ratio for cell in cells],
    )


def _budget_labels(cells: Sequence[Cell]) -> dict[tuple[RungKey, int], float]:
    """Label each token budget of a rung.

    The label is `tokens_per_param`; for budgets in tokens or FLOPs it is the rank of the budget in its rung.
    """
    if cells[0].spec.config.study.tokens_per_param:
        return {(c.rung, c.spec.tokens): c.spec.tokens_per_param for c in cells}
    ranks: dict[tuple[RungKey, int], float] = {}
    for rung in {cell.rung for cell in cells}:
        tokens = sorted({cell.spec.tokens for cell in cells if cell.rung == rung})
        ranks |= {(rung, budget): float(rank) for rank, budget in enumerate(tokens, start=1)}
    return ranks


def law_of(config: Config) -> Law:
    from analysis.design.linear import Law

    return replace(Law(), **config.plan.law)


def power_table(power: DesignPower) -> FittedTable:
    """Return standard error, MDE and power of the verdict, one row per estimate."""
    rows = power.rows()
    columns = [
        Column(
            heading.replace(" (", "\n("),
            [row[heading].replace(", ", "\n") for row in rows],
            is_left=heading != "SE",
        )
        for heading in list(rows[0])[1:]
    ]
    estimates = Column("estimate", [row["estimate"] for row in rows], wraps=True)
    title = f"Power: {power.deep} against {power.wide}"
    noise = (
        f"{count(power.shapes, 'shape')}, {power.df} degrees of freedom, seed standard deviation {power.sigma:.3g} "
        f"nats, random effect of a shape {power.tau:.3g} nats"
    )
    return FittedTable([estimates, *columns], title, note=noise)


def _verdict_line(power: DesignPower) -> str:
    assert power.n is not None and power.tokens is not None  # the level is given
    line = f"level at N = {short_count(power.n)} and {short_count(power.tokens)} tokens"
    return (
        line if power.power_exponent is None else f"{line}; no_difference: {power.equivalence_text}"
    )


def _next_runs(cells: Sequence[Cell], power: DesignPower) -> Iterator[str]:
    from analysis.planning.extensions import most_valuable_next

    config = cells[0].spec.config
    if any(cell.varied for cell in cells):  # values of study.grid are no shapes
        return
    found = most_valuable_next(
        design_of(cells), power, law=law_of(config), sigma=config.plan.sigma, count=NEXT_RUNS
    )
    if found:
        estimate = "level, nats" if power.se_exponent is None else "exponent difference"
        yield f"Best additions, by decrease in SE^2 of the {estimate} per FLOP, each alone:"
    for addition in found:
        yield (
            f"  {addition.name}: {count(addition.runs, 'run')}, {scientific(addition.flops, 2)} FLOPs, "
            f"SE {addition.se:.4f}"
        )


def _tuning_cost(cells: Sequence[Cell]) -> str:
    """Return the minimum cost of tuning the learning rate of each shape before the study."""
    shortest: dict[ArmKey, int] = {}
    for cell in cells:
        arm, flops = (cell.family, cell.rung, cell.varied), cell.spec.flops
        shortest[arm] = min(flops, shortest.get(arm, flops))
    return (
        f"study.lr_policy=tuned: before these cells, each of {len(shortest)} shapes runs at least {len(FIRST_STEPS)} "
        f"learning rates at its shortest budget, {scientific(len(FIRST_STEPS) * sum(shortest.values()))} FLOPs in total; "
        "for shapes without a tuned learning rate, the table has the middle of the first grid"
    )


def _probe(cells: Sequence[Cell]) -> None:
    """Measure the throughput of every shape at its batch size on this machine, and store it."""
    from slm.training.throughput_probe import measure_tokens_per_second

    specs = {probe_key(cell.spec): cell.spec for cell in cells}
    for number, spec in enumerate(specs.values(), start=1):
        rate = measure_tokens_per_second(spec, spec.config.plan.probe_seconds)
        place, batch = f"[{number}/{len(specs)}]", short_count(spec.batch_tokens)
        log.info(
            "%s %s, batch of %s tokens: %s tokens/s", place, spec.shape.label, batch, f"{rate:,.0f}"
        )
        store_probe(spec, rate)
