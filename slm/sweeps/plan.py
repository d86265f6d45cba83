"""What a study will cost and what is wrong with its design, before anything is computed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from rich.table import Table

from slm.architecture.compute import flop_equivalent_params
from slm.architecture.families import MATCH_TOLERANCE, aspect_is_kept
from slm.architecture.shapes import ModelShape, count_parameters
from slm.sweeps.study import Cell

MAX_EMBEDDING_SHARE = 0.20  # above this the vocabulary taxes wide shapes (method: what to count)
MIN_STEPS = 1000
MIN_SIZES_FOR_EXPONENT = 4
MIN_BUDGETS_FOR_EXPONENT = 2


def rung_mismatch(cells: Sequence[Cell]) -> dict[int, float]:
    """Per size, the largest relative difference of FLOPs per token between two families."""
    by_size: dict[int, set[int]] = defaultdict(set)
    for cell in cells:
        by_size[cell.size].add(cell.spec.flops_per_token)
    return {size: max(flops) / min(flops) - 1 for size, flops in by_size.items()}


def design_warnings(cells: Sequence[Cell]) -> list[str]:
    """Broken design rules, each a sentence; REFUSED ones name what must not be estimated."""
    return [
        *_shape_warnings(cells),
        *_twin_families(cells),
        *_twin_rungs(cells),
        *_exponent_refusals(cells),
        *_short_cells(cells),
    ]


def _shape_warnings(cells: Sequence[Cell]) -> Iterator[str]:
    for size, mismatch in rung_mismatch(cells).items():
        if mismatch > MATCH_TOLERANCE:
            yield f"WARN size {size:,}: families differ by {mismatch:.1%} in FLOPs per token"
    for cell in {(c.family, c.size): c for c in cells}.values():
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


def _twin_families(cells: Sequence[Cell]) -> Iterator[str]:
    """Two families of one shape have nothing to compare."""
    families: dict[tuple[int, ModelShape], set[str]] = defaultdict(set)
    for cell in cells:
        families[cell.size, cell.spec.shape].add(cell.family)
    for (size, shape), twins in families.items():
        if len(twins) > 1:
            listed = " and ".join(sorted(twins))
            yield f"WARN size {size:,}: {listed} are the same shape, {shape.label}"


def _twin_rungs(cells: Sequence[Cell]) -> Iterator[str]:
    """Two rungs of (nearly) one shape are one rung: they replicate, they do not add a size."""
    sizes: dict[tuple[str, str], set[int]] = defaultdict(set)
    for cell in cells:
        sizes[cell.family, cell.spec.shape.label].add(cell.size)
    for (family, label), twins in sizes.items():
        if len(twins) > 1:
            listed = " and ".join(f"{size:,}" for size in sorted(twins))
            yield f"WARN {family}: sizes {listed} are both {label}, apart in d_ff alone"


def _exponent_refusals(cells: Sequence[Cell]) -> Iterator[str]:
    sizes = {cell.size for cell in cells}
    budgets = {cell.tokens_per_param for cell in cells}
    families = {cell.family for cell in cells}
    if len(sizes) < MIN_SIZES_FOR_EXPONENT:
        yield f"REFUSED exponents: {len(sizes)} sizes, at least {MIN_SIZES_FOR_EXPONENT} are needed"
    if len(budgets) < MIN_BUDGETS_FOR_EXPONENT:
        yield "REFUSED exponents: one token budget cannot tell size from data"
    if len(families) < 2:
        yield "REFUSED comparison: one family"


def _short_cells(cells: Sequence[Cell]) -> Iterator[str]:
    short = sum(cell.spec.steps < MIN_STEPS for cell in cells)
    if short:
        yield f"WARN {short} of {len(cells)} cells take fewer than {MIN_STEPS} optimizer steps"


def plan_table(cells: Sequence[Cell]) -> Table:
    """One row a cell, with its state and, when finished, its loss."""
    table = Table(title=f"study {cells[0].spec.config.study.name}", title_justify="left")
    mismatch = rung_mismatch(cells)
    for heading in ("family", "shape", "aspect"):
        table.add_column(heading, no_wrap=True)
    for heading in (
        "params non-emb.", "params total", "N_flop = f/6", "pair diff.", "tokens", "D/N_flop",
        "steps", "FLOPs", "seed", "state", "nats/token",
    ):  # fmt: skip
        table.add_column(heading, justify="right", no_wrap=heading == "state")
    for cell in cells:
        spec, counts = cell.spec, count_parameters(cell.spec.shape)
        result = cell.run.result()
        loss = None if result is None else result.val_loss_nats_per_token
        table.add_row(
            cell.family,
            spec.shape.label,
            f"{spec.shape.aspect_ratio:.1f}",
            f"{counts.params_non_embedding:,}",
            f"{counts.params_total:,}",
            f"{flop_equivalent_params(spec.flops_per_token):,.0f}",
            f"{mismatch[cell.size]:.1%}",
            f"{spec.tokens:,}",
            f"{cell.tokens_per_param:g}",
            f"{spec.steps:,}",
            f"{spec.flops:.2g}",
            str(cell.seed),
            cell.run.state(),
            "" if loss is None else f"{loss:.4f}",
        )
    return table


def totals(cells: Sequence[Cell]) -> str:
    flops = sum(cell.spec.flops for cell in cells)
    tokens = sum(cell.spec.tokens for cell in cells)
    return f"{len(cells)} cells, {tokens:,} tokens, {flops:.3g} FLOPs in all"
