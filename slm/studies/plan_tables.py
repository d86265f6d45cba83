"""What a study will cost and what is wrong with its design, before anything is computed."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence

from rich.table import Table

from slm.architecture.flops import flop_equivalent_params
from slm.architecture.memory import in_units
from slm.architecture.shape_solver import MATCH_TOLERANCE, aspect_is_kept
from slm.architecture.shapes import ModelShape, count_parameters
from slm.rounding import exceeds
from slm.run.micro_batch import micro_batch_of, planned_accelerator
from slm.run.spec import RunSpec
from slm.studies.cells import Cell, RungKey, jobs_of
from slm.studies.throughput import Throughput, in_hours, jobs_at_once, train_tokens_of, wall_seconds

MAX_EMBEDDING_SHARE = 0.20  # above this the vocabulary taxes wide shapes (method: what to count)
MIN_STEPS = 1000


def rung_mismatch(cells: Sequence[Cell]) -> dict[RungKey, float]:
    """Per rung, the largest relative difference of FLOPs per token between two shapes."""
    flops: dict[RungKey, set[int]] = defaultdict(set)
    for cell in cells:
        flops[cell.rung].add(cell.spec.flops_per_token)
    return {rung: max(found) / min(found) - 1 for rung, found in flops.items()}


def _shapes(cells: Sequence[Cell]) -> list[Cell]:
    """One cell per rung, family and shape; rungs in order of their FLOPs per token."""
    first = {(cell.rung, cell.family, cell.spec.shape): cell for cell in reversed(cells)}
    order = list(dict.fromkeys([*cells[0].spec.config.study.families, *(c.family for c in cells)]))
    return sorted(
        first.values(),
        key=lambda c: (
            c.spec.reference_flops_per_token, order.index(c.family), c.spec.shape.aspect_ratio
        ),
    )  # fmt: skip


def design_warnings(cells: Sequence[Cell]) -> list[str]:
    """Broken rules about shapes and budgets, each a sentence."""
    return [
        *_shape_warnings(cells),
        *_twin_families(cells),
        *_twin_rungs(cells),
        *_short_cells(cells),
        *_unverified_rates(cells),
    ]


def _shape_warnings(cells: Sequence[Cell]) -> Iterator[str]:
    for rung, mismatch in rung_mismatch(cells).items():
        if exceeds(mismatch, MATCH_TOLERANCE):
            yield f"WARN {named(rung)}: its shapes differ by {mismatch:.1%} in FLOPs per token"
    for cell in _shapes(cells):
        shape, aspect = cell.spec.shape, cell.spec.config.family.aspect_ratio
        counts = count_parameters(shape)
        share = counts.params_embedding / counts.params_total
        if share > MAX_EMBEDDING_SHARE:
            yield f"WARN {cell.family} {shape.label}: the vocabulary is {share:.0%} of its parameters"
        if aspect is not None and not aspect_is_kept(shape, aspect):
            yield (
                f"WARN {cell.family} {shape.label}: aspect ratio {shape.aspect_ratio:.1f} is more than "
                f"a third off its family's {aspect:g}"
            )


def named(rung: RungKey) -> str:
    return f"size {_rung_label(rung)}" if isinstance(rung, int) else rung


def _twin_families(cells: Sequence[Cell]) -> Iterator[str]:
    """Two families of one shape have nothing to compare."""
    families: dict[tuple[RungKey, ModelShape], set[str]] = defaultdict(set)
    for cell in cells:
        families[cell.rung, cell.spec.shape].add(cell.family)
    for (rung, shape), twins in families.items():
        if len(twins) > 1:
            listed = " and ".join(sorted(twins))
            yield f"WARN {named(rung)}: {listed} are the same shape, {shape.label}"


def _twin_rungs(cells: Sequence[Cell]) -> Iterator[str]:
    """Two rungs of (nearly) one shape are one rung: they replicate, they do not add a size."""
    rungs: dict[tuple[str, str], dict[RungKey, None]] = defaultdict(dict)
    for cell in cells:
        rungs[cell.family, cell.spec.shape.label][cell.rung] = None
    for (family, label), twins in rungs.items():
        if len(twins) > 1:
            listed = " and ".join(named(rung) for rung in twins)
            yield f"WARN {family}: {listed} are both {label}, apart in d_ff alone"


def _short_cells(cells: Sequence[Cell]) -> Iterator[str]:
    short = sum(cell.spec.steps < MIN_STEPS for cell in cells)
    if short:
        yield f"WARN {short} of {len(cells)} cells take fewer than {MIN_STEPS} optimizer steps"


def _unverified_rates(cells: Sequence[Cell]) -> Iterator[str]:
    config = cells[0].spec.config
    if config.study.lr_policy == "transfer" and config.study.lr_audit is None:
        yield (
            "WARN one learning rate for all shapes is not verified in this recipe; run a study such as "
            "lr_audit in it and name its result in study.lr_audit"
        )


def too_many_epochs(cells: Sequence[Cell]) -> list[str]:
    """Cells that would repeat the text more often than data.max_epochs allows, as refusals."""
    config = cells[0].spec.config
    text = train_tokens_of(config)
    if text is None:
        return []
    over = [cell for cell in cells if cell.spec.tokens > config.data.max_epochs * text]
    if not over:
        return []
    most = max(cell.spec.tokens for cell in over) / text
    return [
        f"data.max_epochs={config.data.max_epochs:g}: {len(over)} of {len(cells)} cells would repeat "
        f"the training text of {text:,} tokens up to {most:.1f} times (more text, smaller budgets, or "
        f"data.max_epochs={math.ceil(most)})"
    ]


def ladder_table(cells: Sequence[Cell]) -> Table:
    """One row a shape: what it is, what it costs, how well its rung is matched.

    Memory is that of one process, and the sequences of its micro-batch.
    """
    table = _table(
        f"shapes of study {cells[0].spec.config.study.name}",
        left=("rung", "family", "shape"),
        right=(
            "aspect", "d_ff", "d_ff/d", "params non-emb.", "params total", "N_flop = f/6", "memory",
            "from size", "pair diff.",
        ),
    )  # fmt: skip
    mismatch = rung_mismatch(cells)
    above = None
    for cell in _shapes(cells):
        spec, shape, rung = cell.spec, cell.spec.shape, cell.rung
        counts = count_parameters(shape)
        if above is not None and rung != above:
            table.add_section()
        table.add_row(
            "" if rung == above else _rung_label(rung),
            cell.family,
            shape.label,
            f"{shape.aspect_ratio:.1f}",
            f"{shape.d_ff:,}",
            f"{shape.ff_ratio:.2f}",
            f"{counts.params_non_embedding:,}",
            f"{counts.params_total:,}",
            f"{flop_equivalent_params(spec.flops_per_token):,.0f}",
            _memory(spec),
            "" if rung == above else _moved(spec),
            "" if rung == above else f"{mismatch[rung]:.1%}",
        )
        above = rung
    return table


def _memory(spec: RunSpec) -> str:
    """What a process is predicted to need, and for how many sequences at once."""
    micro_batch = micro_batch_of(spec, planned_accelerator(spec.config))
    return f"{in_units(micro_batch.plan.total_bytes)} / {micro_batch.sequences}"


def _moved(spec: RunSpec) -> str:
    """How far the rung lies from the size that was asked for."""
    return "" if spec.rung_shift is None else f"{spec.rung_shift:+.0%}"


def _rung_label(rung: RungKey) -> str:
    return f"{rung:,}" if isinstance(rung, int) else rung


def cells_table(cells: Sequence[Cell], throughput: Throughput) -> Table:
    """One row a cell in the order of the jobs, those of one trunk together, with the job's hours."""
    text = train_tokens_of(cells[0].spec.config)
    table = _table(
        "cells in their order of running; hours are those of a trunk with all its branches",
        left=("family", "shape", *(["varied"] if cells[0].varied else []), "state"),
        right=(
            "tokens",
            "tokens_per_param",
            "epochs",
            "batch",
            "steps",
            "FLOPs",
            "seed",
            "lr",
            "hours",
        ),
    )
    for job in jobs_of(cells):
        seconds = throughput.seconds(job)
        for cell in job.cells:
            spec = cell.spec
            table.add_row(
                cell.family,
                spec.shape.label,
                *([" ".join(_leaf(o) for o in cell.varied)] if cell.varied else []),
                cell.state,
                f"{spec.tokens:,}",
                f"{spec.tokens_per_param:.3g}",
                "?" if text is None else f"{spec.tokens / text:.2f}",
                f"{spec.batch_tokens:,}",
                f"{spec.steps:,}",
                f"{spec.flops:.2g}",
                str(spec.config.seed),
                f"{spec.config.optimizer.lr:.2g}",
                in_hours(seconds) if cell is job.cells[-1] else "",
            )
    return table


def hours_said(cells: Sequence[Cell], throughput: Throughput) -> str:
    """What the unfinished jobs will take, and on what that rests."""
    jobs = [job for job in jobs_of(cells) if not all(cell.is_done for cell in job.cells)]
    seconds = [each for job in jobs if (each := throughput.seconds(job)) is not None]
    if len(seconds) < len(jobs):
        return (
            "hours are not known: plan.probe=true measures throughput here; plan.device_flops=989e12 "
            "plan.mfu=0.4 states it (an H100 in bf16)"
        )
    if not jobs:
        return "nothing is left to run"
    at_once = jobs_at_once(cells[0].spec.config)
    wall, longest = wall_seconds(seconds, at_once), max(seconds)
    devices = "one device" if at_once == 1 else f"{at_once} at once"
    return (
        f"{len(jobs)} jobs, {in_hours(sum(seconds))} device-hours by {throughput.source}: "
        f"{in_hours(wall)} hours with {devices}, the longest job {in_hours(longest)}"
    )


def _leaf(override: str) -> str:
    """`optimizer.lr=0.004` -> `lr=0.004`."""
    key, _, value = override.partition("=")
    return f"{key.rpartition('.')[2]}={value}"


def _table(title: str, *, left: Sequence[str], right: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in left:
        table.add_column(heading, no_wrap=True)
    for heading in right:
        table.add_column(heading, justify="right")
    return table


def totals(cells: Sequence[Cell]) -> str:
    """What the study holds, and what it costs with each step of a trunk taken once."""
    apart = sum(cell.spec.flops for cell in cells)
    tokens = sum(cell.spec.tokens for cell in cells)
    jobs = jobs_of(cells)
    flops = sum(job.flops for job in jobs)
    said = f"{len(cells)} cells, {tokens:,} tokens, {apart:.3g} FLOPs in all"
    if flops == apart:
        return said
    return (
        f"{said}; as branches of {len(jobs)} trunks {flops:.3g} FLOPs, {flops / apart:.0%} of that"
    )
