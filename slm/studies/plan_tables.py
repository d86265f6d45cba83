"""Tables and warnings of `action=plan`: shapes, cells, cost and problems of a study's design."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from slm.architecture.flops import flop_equivalent_params
from slm.architecture.shape_solver import MATCH_TOLERANCE, is_within_aspect_tolerance
from slm.architecture.shapes import ModelShape, count_parameters
from slm.console import Column, FittedTable
from slm.formatting import (
    BYTE_UNITS,
    TIME_UNITS,
    count,
    format_duration,
    in_one_unit,
    scientific,
    short_count,
)
from slm.rounding import exceeds
from slm.run.mfu import is_far_outside
from slm.run.micro_batch import micro_batch_of, planned_accelerator
from slm.run.spec import RunSpec
from slm.studies.cells import Cell, RungKey, jobs_of
from slm.studies.grid_table import rung_label
from slm.studies.throughput import (
    Throughput,
    count_concurrent_jobs,
    format_device_time,
    load_train_tokens,
    wall_seconds,
)

MAX_EMBEDDING_SHARE = 0.20  # of all parameters; a larger vocabulary handicaps wide shapes
MIN_STEPS = 1000
# In the pilot runs of study=micro no single learning rate was within 0.01 nats of the best ones over this range.
MAX_TOKENS_RATIO_OF_ONE_RATE = 9


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
    return f"size {rung:,}" if isinstance(rung, int) else rung


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
    study = cells[0].spec.config.study
    if study.lr_policy != "transfer" or study.lr_audit is not None:
        return
    yield (
        'WARN this recipe has no learning-rate audit; make one (docs/studies.md, "Learning rates") and set '
        "study.lr_audit to its lr_audit.json"
    )
    budgets = sorted(cell.spec.tokens for cell in cells)
    if not study.lr_tokens_exponent and budgets[-1] >= MAX_TOKENS_RATIO_OF_ONE_RATE * budgets[0]:
        yield (
            f"WARN one learning rate for budgets of {short_count(budgets[0])} to {short_count(budgets[-1])} tokens: "
            "the best rate falls with the tokens; the audit fits a rule (study.lr_tokens_exponent)"
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


def ladder_table(cells: Sequence[Cell]) -> FittedTable:
    """Build a table with one row per shape: parameters, N_flop, memory, and the match of its rung.

    Memory is the prediction for one rank with the micro-batch (in sequences) of the next column.
    """
    rows = _shapes(cells)
    specs = [cell.spec for cell in rows]
    shapes = [spec.shape for spec in specs]
    is_first = [
        number == 0 or cell.rung != rows[number - 1].rung for number, cell in enumerate(rows)
    ]
    counts = [count_parameters(shape) for shape in shapes]
    batches = [micro_batch_of(spec, planned_accelerator(spec.config)) for spec in specs]
    unit, memory = in_one_unit([batch.plan.total_bytes for batch in batches], BYTE_UNITS)
    mismatch = rung_mismatch(cells)

    def once(texts: Iterable[str]) -> list[str]:
        return [text if shown else "" for text, shown in zip(texts, is_first, strict=True)]

    columns = [
        Column("size", once(rung_label(cell.rung) for cell in rows), is_left=True),
        Column("family", [cell.family for cell in rows], is_left=True),
        Column("shape", [shape.label for shape in shapes], is_left=True),
        Column("aspect\nratio", [f"{shape.aspect_ratio:.1f}" for shape in shapes], rank=2),
        Column("d_ff", [f"{shape.d_ff}" for shape in shapes], rank=4),
        Column("d_ff /\nd_model", [f"{shape.ff_ratio:.2f}" for shape in shapes], rank=6),
        Column(
            "non-emb.\nparams", [short_count(each.params_non_embedding) for each in counts], rank=3
        ),
        Column("total\nparams", [short_count(each.params_total) for each in counts]),
        Column(
            "N_flop",
            [short_count(flop_equivalent_params(spec.flops_per_token)) for spec in specs],
            rank=1,
        ),
        Column(f"memory per\nrank ({unit})", memory, rank=1),
        Column("sequences\nper pass", [f"{batch.sequences}" for batch in batches], rank=5),
        Column("actual minus\nrequested size", once(map(_format_rung_shift, specs)), rank=7),
        Column("FLOPs\nmismatch", once(f"{mismatch[cell.rung]:.1%}" for cell in rows), rank=1),
    ]
    return FittedTable(columns, "Shapes")


def _format_rung_shift(spec: RunSpec) -> str:
    return "" if spec.rung_shift is None else f"{spec.rung_shift:+.0%}"


def cells_table(cells: Sequence[Cell], throughput: Throughput) -> FittedTable:
    """Build a table with one row per cell in execution order; the time is given once per job."""
    text = load_train_tokens(cells[0].spec.config)
    jobs = jobs_of(cells)
    unit, times = in_one_unit([throughput.seconds(job) for job in jobs], TIME_UNITS)
    rows = [cell for job in jobs for cell in job.cells]
    specs = [cell.spec for cell in rows]
    grid = [" ".join(_short_override(each) for each in cell.varied) for cell in rows]
    columns = [
        Column("size", [rung_label(cell.rung) for cell in rows], is_left=True),
        Column("family", [cell.family for cell in rows], is_left=True),
        Column("shape", [spec.shape.label for spec in specs], rank=2, is_left=True),
        *([Column("grid values", grid, rank=1, is_left=True)] if any(grid) else []),
        Column("status", [cell.state for cell in rows], rank=3, is_left=True),
        Column("tokens", [short_count(spec.tokens) for spec in specs]),
        Column("tokens_per_param", [f"{spec.tokens_per_param:.3g}" for spec in specs], rank=7),
        Column(
            "epochs",
            ["?" if text is None else f"{spec.tokens / text:.2f}" for spec in specs],
            rank=5,
        ),
        Column("batch\ntokens", [short_count(spec.batch_tokens) for spec in specs], rank=6),
        Column("steps", [f"{spec.steps:,}" for spec in specs], rank=2),
        Column("FLOPs", [scientific(spec.flops, 2) for spec in specs], rank=2),
        Column("seed", [f"{spec.config.seed}" for spec in specs], rank=1),
        Column("lr", [f"{spec.config.optimizer.lr:.2g}" for spec in specs], rank=4),
        Column(
            f"device\n{unit}",
            [
                time if cell is job.cells[-1] else ""
                for job, time in zip(jobs, times, strict=True)
                for cell in job.cells
            ],
            rank=3,
        ),
    ]
    title = f"Cells in execution order; {unit} are per group of runs that share training"
    return FittedTable(columns, title)


def format_time_estimate(cells: Sequence[Cell], throughput: Throughput) -> str:
    """Format device time and wall time of the unfinished jobs, with the throughput they are based on."""
    jobs = [job for job in jobs_of(cells) if not all(cell.is_done for cell in job.cells)]
    if not jobs:
        return "all cells are done"
    seconds = [each for job in jobs if (each := throughput.seconds(job)) is not None]
    if len(seconds) < len(jobs):
        return (
            "time unknown: measure the throughput of this machine with plan.probe=true, or give the speed of your "
            "device, for an H100 plan=h100, or plan.device_flops=989e12 plan.mfu=0.4"
        )
    config = cells[0].spec.config
    concurrent = count_concurrent_jobs(config)
    job_seconds = [each / config.trainer.processes for each in seconds]
    wall, longest = wall_seconds(job_seconds, concurrent), max(job_seconds)
    return (
        f"{count(len(jobs), 'job')}, {format_device_time(sum(seconds))} at the {throughput.source}; "
        f"wall time {format_duration(wall)} with {count(concurrent, 'job')} at a time, longest job "
        f"{format_duration(longest)}"
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


def format_totals(cells: Sequence[Cell]) -> str:
    """Format number of cells, tokens and FLOPs, and the FLOPs saved by shared trunks."""
    separate = sum(cell.spec.flops for cell in cells)
    tokens = sum(cell.spec.tokens for cell in cells)
    jobs = jobs_of(cells)
    flops = sum(job.flops for job in jobs)
    total = (
        f"{count(len(cells), 'cell')}, {short_count(tokens)} tokens, {scientific(separate)} FLOPs"
    )
    if flops == separate:
        return f"{total} in total"
    return (
        f"{total} if trained separately; sharing {count(len(jobs), 'trunk')} reduces this to {scientific(flops)} "
        f"FLOPs ({flops / separate:.0%})"
    )
