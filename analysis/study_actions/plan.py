"""`action=plan`: cells, costs, and what the design can find, before anything is computed.

It wires the study's cells to `analysis.design.power`, which slm itself may not import.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from analysis.learning_rate.gate import check_study_audit
from slm.architecture.flops import flop_equivalent_params
from slm.config.schema import Config
from slm.errors import DesignRefused
from slm.studies.cells import ArmKey, Cell, RungKey, contrast_of
from slm.studies.lr_tuning import FIRST_STEPS
from slm.studies.plan_tables import (
    cells_table,
    design_warnings,
    format_rung,
    format_time_estimate,
    format_totals,
    ladder_table,
    list_epoch_refusals,
)
from slm.studies.throughput import load_throughput, store_probe

if TYPE_CHECKING:
    from analysis.design.linear import Design, Law
    from analysis.design.power import DesignPower

log = logging.getLogger("slm")
EFFECTS = (0.01, 0.02, 0.05)
EVEN_ODDS = 0.5
NEXT_RUNS = 5
MIN_PAIRS_FOR_SPREAD = 3  # of a regression on ln FLOPs: two parameters
WIDTH = 170  # where the output is no terminal


def show_plan(cells: Sequence[Cell]) -> None:
    """Print it.

    Raises:
        DesignRefused: if the design cannot estimate what the study claims, after everything is shown.
    """
    console = Console(width=None if Console().is_terminal else WIDTH)
    config = cells[0].spec.config
    check_study_audit(cells)  # raises where it is not there
    if config.plan.probe:
        _probe(cells)
    throughput = load_throughput(cells)
    if config.study.question:
        console.print(f"[bold]{config.study.question}[/bold]\n")
    console.print(ladder_table(cells))
    console.print(cells_table(cells, throughput))
    console.print(format_totals(cells))
    console.print(format_time_estimate(cells, throughput), soft_wrap=True)
    if config.study.lr_policy == "tuned":
        console.print(_tuning_said(cells), soft_wrap=True)
    power = power_of(cells)
    if power is not None and (power.se_difference or power.se_exponent):
        console.print()
        console.print(power_table(power, config))
        for line in _next_runs(cells, power):
            console.print(line, soft_wrap=True)
    for line in [*design_warnings(cells), *_power_warnings(power, config.study.claim)]:
        console.print(line, soft_wrap=True)
    refusals = refusals_of(cells, power)
    for line in refusals:
        console.print(f"REFUSED {line}", soft_wrap=True)
    if refusals:
        raise DesignRefused(refused(config))


def refusals_of(cells: Sequence[Cell], power: DesignPower | None) -> list[str]:
    """Why the study must not run as it is: it could not show what it claims, or lacks the text."""
    claim = cells[0].spec.config.study.claim
    found = list_epoch_refusals(cells)
    if power is not None and claim == "exponents":
        found += [f"exponents: {line}" for line in power.refusals]
    if power is not None and claim == "differences" and power.se_difference is None:
        found += [f"differences: {line}" for line in _without_difference(power)]
    return found


def _without_difference(power: DesignPower) -> Sequence[str]:
    if not 0 < power.pairs < MIN_PAIRS_FOR_SPREAD:
        return power.refusals
    return [
        f"{power.pairs} pairs of shapes at equal FLOPs have no spread to judge a difference by; at least "
        f"{MIN_PAIRS_FOR_SPREAD} sizes are needed, 6 or more are wanted"
    ]


def refused(config: Config) -> str:
    study = config.study
    less = "" if study.claim == "none" else ", or claim less (study.claim=differences or none)"
    return (
        f"study {study.name} is REFUSED for the reasons above: it claims {study.claim}; mend the design"
        f"{less}"
    )


def _power_warnings(power: DesignPower | None, claim: str) -> Iterator[str]:
    if power is not None:
        # Mismatched rungs are told of with their shapes.
        told = (line for line in power.warnings if not line.startswith("rung "))
        own_law = ("a law of your own", "a law of your own in plan.law")
        yield from (f"WARN {line.replace(*own_law)}" for line in told)
        found = (power.power_verdict or {}).get(EFFECTS[-1])
        if claim == "exponents" and found is not None and found < EVEN_ODDS:
            yield (
                f"WARN a difference of exponents of {EFFECTS[-1]:g} would be found with a probability of "
                f"{found:.0%}: about exponents the study will most likely end inconclusive"
            )
        if claim != "exponents":
            yield from (f"REFUSED exponents (not claimed): {line}" for line in power.refusals)


def power_of(cells: Sequence[Cell]) -> DesignPower | None:
    """What the design can find between the two families of the contrast; None where none is tested."""
    from analysis.design.power import design_power

    config = cells[0].spec.config
    if config.study.analysis != "families":
        return None
    deep, wide = contrast_of(cells)
    return design_power(
        design_of(cells), deep, wide, law=_law(config), sigma=config.plan.sigma,
        tau=config.plan.tau, effects=EFFECTS,
    )  # fmt: skip


def design_of(cells: Sequence[Cell]) -> Design:
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
    )


def _budget_labels(cells: Sequence[Cell]) -> dict[tuple[RungKey, int], float]:
    """tokens_per_param as asked for; the rank within the rung of budgets in tokens or FLOPs."""
    if cells[0].spec.config.study.tokens_per_param:
        return {(c.rung, c.spec.tokens): c.spec.tokens_per_param for c in cells}
    ranks: dict[tuple[RungKey, int], float] = {}
    for rung in {cell.rung for cell in cells}:
        tokens = sorted({cell.spec.tokens for cell in cells if cell.rung == rung})
        ranks |= {(rung, count): float(rank) for rank, count in enumerate(tokens, start=1)}
    return ranks


def _law(config: Config) -> Law:
    from analysis.design.linear import Law

    return replace(Law(), **config.plan.law)


def power_table(power: DesignPower, config: Config) -> Table:
    table = Table(
        title=f"what the design can find: {power.deep} against {power.wide}, {power.shapes} shapes, "
        f"seed standard deviation {power.sigma:g} and random effect of a shape {power.tau:g} nats",
        title_justify="left",
    )
    for heading in ("", "SE", "found with 80% power", *(f"power at {e:g}" for e in EFFECTS)):
        table.add_column(heading, justify="left" if not heading else "right")
    t, verdict = power.power_t or {}, power.power_verdict or {}
    table.add_row(
        "exponent of deep minus that of wide (t test)",
        _shown(power.se_exponent),
        _shown(power.mde80_exponent),
        *(_share(t.get(effect)) for effect in EFFECTS),
    )
    table.add_row(
        "... by the whole verdict, simulated", "", "", *(_share(verdict.get(e)) for e in EFFECTS)
    )
    at = power.difference_tokens_per_param
    budget = "tokens_per_param" if config.study.tokens_per_param else "token budget number"
    where = f" ({budget} {at:g}, {power.difference_pairs} pairs)" if at is not None else ""
    table.add_row(
        f"loss at equal FLOPs, at the largest{where}, nats",
        _shown(power.se_difference),
        _shown(power.mde80_difference),
        *[""] * len(EFFECTS),
    )
    return table


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _next_runs(cells: Sequence[Cell], power: DesignPower) -> Iterator[str]:
    from analysis.design.extensions import candidates
    from analysis.design.power import most_valuable_next

    config = cells[0].spec.config
    plain = [cell for cell in cells if not cell.varied]
    if power.refusals or not plain:
        return
    single = candidates(design_of(plain), power.deep, power.wide)
    if not len(single):
        return
    chosen = most_valuable_next(
        design_of(cells), single, power.deep, power.wide, law=_law(config),
        sigma=config.plan.sigma, tau=config.plan.tau, count=NEXT_RUNS,
    )  # fmt: skip
    yield "the runs that would lower its SE most per FLOP, each given those before it:"
    for run in chosen:
        rung = run.rung if isinstance(run.rung, str) else format_rung(run.rung)  # type: ignore[arg-type]
        yield (
            f"  {run.family}, {rung}, {run.tokens:,.0f} tokens, seed {run.seed}: {run.flops:.2g} FLOPs, "
            f"SE {run.se_exponent:.4f}"
        )


def _tuning_said(cells: Sequence[Cell]) -> str:
    """What finding the rates costs before, at the least."""
    shortest: dict[ArmKey, int] = {}
    for cell in cells:
        arm, flops = (cell.family, cell.rung, cell.varied), cell.spec.flops
        shortest[arm] = min(flops, shortest.get(arm, flops))
    return (
        f"study.lr_policy=tuned: before these, at least {len(FIRST_STEPS)} rates for each of {len(shortest)} shapes "
        f"at its shortest budget, {len(FIRST_STEPS) * sum(shortest.values()):.3g} FLOPs; the lr shown is the "
        "middle of the first grid where none is tuned yet"
    )


def _probe(cells: Sequence[Cell]) -> None:
    """Measure every shape that is not known yet; torch is imported for it."""
    from slm.training.probe import measure_tokens_per_second

    config = cells[0].spec.config
    shapes = {cell.spec.shape.label: cell.spec for cell in cells}
    for number, (label, spec) in enumerate(shapes.items(), start=1):
        rate = measure_tokens_per_second(spec, config.plan.probe_seconds)
        log.info("[%d/%d] %s: %s tokens/s", number, len(shapes), label, f"{rate:,.0f}")
        store_probe(config, {label: rate})
