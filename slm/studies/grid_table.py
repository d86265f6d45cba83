"""Tables with one row per rung and one column per family, for `action=plan` and `action=status`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

from slm.console import Column, FittedTable
from slm.formatting import TIME_UNITS, count, in_one_unit, scientific, short_count
from slm.studies.cells import Cell, Job, RungKey, jobs_of
from slm.studies.throughput import Throughput

MAX_LISTED = 4  # token budgets of a rung
NO_CELL = "-"


def rung_label(rung: RungKey) -> str:
    return short_count(rung) if isinstance(rung, int) else rung


def rungs_of(cells: Sequence[Cell]) -> list[RungKey]:
    """Return the rungs, sorted by their FLOPs per token."""
    ordered = sorted(cells, key=lambda cell: cell.spec.reference_flops_per_token)
    return list(dict.fromkeys(cell.rung for cell in ordered))


def families_of(cells: Sequence[Cell]) -> list[str]:
    """Return the families in the order of the study."""
    used = {cell.family for cell in cells}
    listed = cells[0].spec.config.study.all_families
    return [name for name in dict.fromkeys([*listed, *sorted(used)]) if name in used]


def family_kind(cells: Sequence[Cell]) -> str:
    """Return `aspect ratio` if all families are made from ratios, else `family`."""
    ratios = cells[0].spec.config.study.ratio_families
    return "aspect ratio" if all(cell.family in ratios for cell in cells) else "family"


def rung_family_columns(
    cells: Sequence[Cell], text: Callable[[Sequence[Cell]], str], *, has_total: bool = False
) -> list[Column]:
    """Return the column of rungs and one column per family, whose cells are the `text` of the study's cells.

    If all families are aspect ratios, the headings are the ratios alone.
    """
    groups: dict[tuple[RungKey, str], list[Cell]] = defaultdict(list)
    for cell in cells:
        groups[cell.rung, cell.family].append(cell)
    rungs, families = rungs_of(cells), families_of(cells)
    ratios = cells[0].spec.config.study.ratio_families
    is_ratios = family_kind(cells) == "aspect ratio"
    columns = [Column("size", [*map(rung_label, rungs), *["total"] * has_total], is_left=True)]
    for number, family in enumerate(families):
        found = [groups.get((rung, family)) for rung in rungs]
        texts = [NO_CELL if group is None else text(group) for group in found]
        heading = f"{ratios[family]:g}" if is_ratios else family
        # A comparison needs two families; of many, the last ones may be left out.
        columns.append(Column(heading, [*texts, *[""] * has_total], rank=int(number > 1)))
    return columns


def grid_table(cells: Sequence[Cell], throughput: Throughput) -> FittedTable:
    """Build the table of the study's cells: their number by rung and family, token budgets and cost by rung."""
    rungs = rungs_of(cells)
    by_rung = [[cell for cell in cells if cell.rung == rung] for rung in rungs]
    jobs = [jobs_of(group) for group in by_rung]
    flops = [sum(job.flops for job in group) for group in jobs]
    columns = [
        *rung_family_columns(cells, lambda group: str(len(group)), has_total=True),
        Column("tokens", [*map(_budgets, by_rung), ""], rank=2, is_left=True),
        Column("cells", [str(len(group)) for group in [*by_rung, cells]]),
        Column("FLOPs", [scientific(each) for each in [*flops, sum(flops)]], rank=3),
    ]
    seconds = [_seconds(group, throughput) for group in jobs]
    known = [each for each in seconds if each is not None]
    if len(known) == len(seconds):
        unit, times = in_one_unit([*known, sum(known)], TIME_UNITS)
        columns.append(Column(f"device\n{unit}", times, rank=4))
    return FittedTable(columns, f"Number of cells by size and {family_kind(cells)}")


def _budgets(cells: Sequence[Cell]) -> str:
    budgets = sorted({cell.spec.tokens for cell in cells})
    if len(budgets) > MAX_LISTED:
        ends = " to ".join(short_count(each) for each in (budgets[0], budgets[-1]))
        return f"{len(budgets)}: {ends}"
    return ", ".join(dict.fromkeys(map(short_count, budgets)))


def _seconds(jobs: Sequence[Job], throughput: Throughput) -> float | None:
    seconds = [throughput.seconds(job) for job in jobs]
    known = [each for each in seconds if each is not None]
    return sum(known) if len(known) == len(seconds) else None


def describe_grid(cells: Sequence[Cell]) -> str:
    """Return one line: the study, its number of cells, and what they vary."""
    study = cells[0].spec.config.study
    seeds = len({cell.spec.config.seed for cell in cells})
    parts = [
        count(len(rungs_of(cells)), "size"),
        count(len(families_of(cells)), "family", "families"),
        _describe_budgets(cells),
        *(f"{count(len(values), 'value')} of {key}" for key, values in study.grid.items()),
        count(seeds, "seed"),
    ]
    return f"study {study.name}: {count(len(cells), 'cell')} in {', '.join(parts)}"


def _describe_budgets(cells: Sequence[Cell]) -> str:
    study = cells[0].spec.config.study
    if study.tokens_per_param:
        values = ", ".join(f"{value:g}" for value in study.tokens_per_param)
        return f"{count(len(study.tokens_per_param), 'budget')} (tokens_per_param {values})"
    if study.tokens:
        values = ", ".join(map(short_count, study.tokens))
        return f"{count(len(study.tokens), 'budget')} ({values} tokens)"
    values = ", ".join(map(scientific, study.flops))
    return f"{count(len(study.flops), 'budget')} ({values} FLOPs)"
