"""Tables and warnings of `action=plan`: shapes, cells, cost and problems of a study's design."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from rich.table import Table

from slm.architecture.flops import flop_equivalent_params
from slm.architecture.memory import format_bytes
from slm.architecture.shape_solver import MATCH_TOLERANCE, is_within_aspect_tolerance
from slm.architecture.shapes import ModelShape, count_parameters
from slm.rounding import exceeds
from slm.run.mfu import is_far_outside
from slm.run.micro_batch import micro_batch_of, planned_accelerator
from slm.run.spec import RunSpec
from slm.studies.cells import Cell, RungKey, jobs_of
from slm.studies.throughput import (
    Throughput,
    count_concurrent_jobs,
    format_hours,
    load_train_tokens,
    wall_seconds,
)

MAX_EMBEDDING_SHARE = 0.20  # of all parameters; a larger vocabulary handicaps wide shapes
MIN_STEPS = 1000


def rung_mismatch(cells: Sequence[Cell]) -> dict[RungKey, float]:
    """Return the largest relative difference in FLOPs per token between two shapes, by rung."""
    flops: dict[RungKey, set[int]] = defaultdict(set)
    for cell in cells:
        flops[cell.rung].add(cell.spec.flops_per_token)
    return {rung: max(found) / min(found) - 1 for rung, found in flops.items()}


def _shapes(cells: Sequence[Cell]) -> list[Cell]:
    """Return one cell per rung, family and shape, sorted by the FLOPs per token of the rung."""
    first = {(cell.rung, cell.family, cell.spec.shape): cell for cell in reversed(cells)}
    families = cells[0].spec.config.study.all_families
    order = list(dict.fromkeys([*families, *(c.family for c in cells)]))
    return sorted(
        first.values(),
        key=lambda c: (
            c.spec.reference_flops_per_token,
            order.index(c.family),
            c.spec.shape.aspect_ratio,
        ),
    )


def design_warnings(cells: Sequence[Cell]) -> list[str]:
    """List violated rules about shapes, budgets and learning rates, one line each."""
    return [
        *_left_out(cells),
        *_shape_warnings(cells),
        *_twin_families(cells),
        *_twin_rungs(cells),
        *_short_cells(cells),
        *_unverified_rates(cells),
    ]


def _left_out(cells: Sequence[Cell]) -> Iterator[str]:
    """Warn of families that `study.skip_missing_shapes` leaves out of a rung."""
    study = cells[0].spec.config.study
    if not study.skip_missing_shapes:
        return
    present = {(cell.rung, cell.family) for cell in cells}
    rungs: list[RungKey] = [*sorted(study.sizes), *study.models]
    for rung in rungs:
        missing = [name for name in study.all_families if (rung, name) not in present]
        if missing:
            yield f"WARN {format_rung(rung)}: left out, no matched shape of its own: {', '.join(missing)}"


def _shape_warnings(cells: Sequence[Cell]) -> Iterator[str]:
    for rung, mismatch in rung_mismatch(cells).items():
        if exceeds(mismatch, MATCH_TOLERANCE):
            yield f"WARN {format_rung(rung)}: the shapes differ by {mismatch:.1%} in FLOPs per token"
    for cell in _shapes(cells):
        shape, aspect = cell.spec.shape, cell.spec.config.family.aspect_ratio
        counts = count_parameters(shape)
        share = counts.params_embedding / counts.params_total
        if share > MAX_EMBEDDING_SHARE:
            yield f"WARN {cell.family} {shape.label}: {share:.0%} of the parameters are vocabulary embeddings"
        if aspect is not None and not is_within_aspect_tolerance(shape, aspect):
            yield (
                f"WARN {cell.family} {shape.label}: aspect ratio {shape.aspect_ratio:.1f} deviates by more "
                f"than a third from {aspect:g}, the ratio of the family"
            )


def format_rung(rung: RungKey) -> str:
    return f"size {_rung_label(rung)}" if isinstance(rung, int) else rung


def _twin_families(cells: Sequence[Cell]) -> Iterator[str]:
    """Warn of families with the same shape on a rung: they cannot be compared."""
    families: dict[tuple[RungKey, ModelShape], set[str]] = defaultdict(set)
    for cell in cells:
        families[cell.rung, cell.spec.shape].add(cell.family)
    for (rung, shape), twins in families.items():
        if len(twins) > 1:
            listed = " and ".join(sorted(twins))
            yield f"WARN {format_rung(rung)}: {listed} are the same shape, {shape.label}"


def _twin_rungs(cells: Sequence[Cell]) -> Iterator[str]:
    """Warn of rungs with nearly the same shape: they replicate one size instead of adding one."""
    rungs: dict[tuple[str, str], dict[RungKey, None]] = defaultdict(dict)
    for cell in cells:
        rungs[cell.family, cell.spec.shape.label][cell.rung] = None
    for (family, label), twins in rungs.items():
        if len(twins) > 1:
            listed = " and ".join(format_rung(rung) for rung in twins)
            yield f"WARN {family}: {listed} are both {label} and differ only in d_ff"


def _short_cells(cells: Sequence[Cell]) -> Iterator[str]:
    short = sum(cell.spec.steps < MIN_STEPS for cell in cells)
    if short:
        yield f"WARN {short} of {len(cells)} cells take fewer than {MIN_STEPS} optimizer steps"


def _unverified_rates(cells: Sequence[Cell]) -> Iterator[str]:
    config = cells[0].spec.config
    if config.study.lr_policy == "transfer" and config.study.lr_audit is None:
        yield (
            "WARN this recipe has no learning-rate audit; run study=lr_audit with the same recipe and set "
            "study.lr_audit to its lr_audit.json"
        )


def list_epoch_refusals(cells: Sequence[Cell]) -> list[str]:
    """Return a refusal if cells would repeat the training text more often than data.max_epochs."""
    config = cells[0].spec.config
    text = load_train_tokens(config)
    if text is None:
        return []
    over = [cell for cell in cells if cell.spec.tokens > config.data.max_epochs * text]
    if not over:
        return []
    most = max(cell.spec.tokens for cell in over) / text
    return [
        f"data.max_epochs={config.data.max_epochs:g}: {len(over)} of {len(cells)} cells would repeat "
        f"the training text of {text:,} tokens up to {most:.1f} times (use more text, smaller budgets or "
        f"data.max_epochs={math.ceil(most)})"
    ]


def ladder_table(cells: Sequence[Cell]) -> Table:
    """Build a table with one row per shape: parameters, N_flop, memory, and the match of its rung.

    Memory is the prediction for one rank with the micro-batch (in sequences) of the next column.
    """
    table = _table(
        f"shapes of study {cells[0].spec.config.study.name} (micro-batch in sequences)",
        left=("rung", "family", "shape"),
        right=(
            "aspect\nratio",
            "d_ff",
            "d_ff /\nd_model",
            "non-emb.\nparams",
            "total\nparams",
            "N_flop",
            "memory\nper rank",
            "micro-\nbatch",
            "size\ndeviation",
            "FLOPs\nmismatch",
        ),
    )
    mismatch = rung_mismatch(cells)
    previous = None
    for cell in _shapes(cells):
        spec, shape, rung = cell.spec, cell.spec.shape, cell.rung
        counts = count_parameters(shape)
        if previous is not None and rung != previous:
            table.add_section()
        micro_batch = micro_batch_of(spec, planned_accelerator(spec.config))
        table.add_row(
            "" if rung == previous else _rung_label(rung),
            cell.family,
            shape.label,
            f"{shape.aspect_ratio:.1f}",
            f"{shape.d_ff:,}",
            f"{shape.ff_ratio:.2f}",
            f"{counts.params_non_embedding:,}",
            f"{counts.params_total:,}",
            f"{flop_equivalent_params(spec.flops_per_token):,.0f}",
            format_bytes(micro_batch.plan.total_bytes),
            f"{micro_batch.sequences:,}",
            "" if rung == previous else _format_rung_shift(spec),
            "" if rung == previous else f"{mismatch[rung]:.1%}",
        )
        previous = rung
    return table


def _format_rung_shift(spec: RunSpec) -> str:
    return "" if spec.rung_shift is None else f"{spec.rung_shift:+.0%}"


def _rung_label(rung: RungKey) -> str:
    return f"{rung:,}" if isinstance(rung, int) else rung


def cells_table(cells: Sequence[Cell], throughput: Throughput) -> Table:
    """Build a table with one row per cell in execution order; hours are given once per job."""
    text = load_train_tokens(cells[0].spec.config)
    table = _table(
        "cells in execution order (device-hours: a trunk with all its branches)",
        left=("family", "shape", *(["grid values"] if cells[0].varied else []), "status"),
        right=(
            "tokens",
            "tokens_per_param",
            "epochs",
            "batch\ntokens",
            "steps",
            "FLOPs",
            "seed",
            "lr",
            "device-\nhours",
        ),
    )
    for job in jobs_of(cells):
        seconds = throughput.seconds(job)
        for cell in job.cells:
            spec = cell.spec
            table.add_row(
                cell.family,
                spec.shape.label,
                *([" ".join(_short_override(o) for o in cell.varied)] if cell.varied else []),
                cell.state,
                f"{spec.tokens:,}",
                f"{spec.tokens_per_param:.3g}",
                "?" if text is None else f"{spec.tokens / text:.2f}",
                f"{spec.batch_tokens:,}",
                f"{spec.steps:,}",
                f"{spec.flops:.2g}",
                str(spec.config.seed),
                f"{spec.config.optimizer.lr:.2g}",
                format_hours(seconds) if cell is job.cells[-1] else "",
            )
    return table


def format_time_estimate(cells: Sequence[Cell], throughput: Throughput) -> str:
    """Format device-hours and wall time of the unfinished jobs, with the throughput they are based on."""
    jobs = [job for job in jobs_of(cells) if not all(cell.is_done for cell in job.cells)]
    seconds = [each for job in jobs if (each := throughput.seconds(job)) is not None]
    if len(seconds) < len(jobs):
        return (
            "time unknown: measure the throughput of this machine with plan.probe=true, or assume one with plan=h100 "
            "or plan.device_flops and plan.mfu"
        )
    if not jobs:
        return "all cells are done"
    concurrent = count_concurrent_jobs(cells[0].spec.config)
    wall, longest = wall_seconds(seconds, concurrent), max(seconds)
    at_a_time = "1 job" if concurrent == 1 else f"{concurrent} jobs"
    return (
        f"{len(jobs)} jobs, {format_hours(sum(seconds))} device-hours at the {throughput.source}; "
        f"wall time {format_hours(wall)} hours with {at_a_time} at a time, longest job "
        f"{format_hours(longest)} hours"
    )


def mfu_warnings(cells: Sequence[Cell], throughput: Throughput) -> list[str]:
    """Warn of shapes that the table plan.mfu does not cover, if the estimate of hours uses it."""
    mfu = throughput.mfu
    if not throughput.is_assumed or not isinstance(mfu, Mapping):
        return []
    params = {count_parameters(cell.spec.shape).params_total for cell in cells}
    outside = sorted(each for each in params if is_far_outside(mfu, each))
    if not outside:
        return []
    counts = " to ".join(dict.fromkeys(f"{each:,}" for each in (outside[0], outside[-1])))
    return [
        f"WARN plan.mfu covers {min(mfu):,} to {max(mfu):,} parameters; the hours of {len(outside)} of {len(params)} "
        f"shapes ({counts} parameters) assume the MFU of the nearer end"
    ]


def _short_override(override: str) -> str:
    """Shorten `optimizer.lr=0.004` to `lr=0.004`."""
    key, _, value = override.partition("=")
    return f"{key.rpartition('.')[2]}={value}"


def _table(title: str, *, left: Sequence[str], right: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in left:
        table.add_column(heading, no_wrap=True)
    for heading in right:
        table.add_column(heading, justify="right")
    return table


def format_totals(cells: Sequence[Cell]) -> str:
    """Format number of cells, tokens and FLOPs, and the FLOPs saved by shared trunks."""
    separate = sum(cell.spec.flops for cell in cells)
    tokens = sum(cell.spec.tokens for cell in cells)
    jobs = jobs_of(cells)
    flops = sum(job.flops for job in jobs)
    total = f"{len(cells)} cells, {tokens:,} tokens, {separate:.3g} FLOPs"
    if flops == separate:
        return f"{total} in total"
    shared = f"{flops:.3g} FLOPs ({flops / separate:.0%}) with {len(jobs)} shared trunks"
    return f"{total} if trained separately; {shared}"
