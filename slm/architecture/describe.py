"""Parameters, FLOPs and memory of a shape, as JSON-ready data and as printed tables."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Console, Group
from rich.table import Table

from slm.architecture.flops import (
    CONVENTION,
    TRAINING_FACTOR,
    flop_equivalent_params,
    forward_flops_per_token,
    training_flops_per_token,
)
from slm.architecture.memory import MemoryPlan, format_bytes
from slm.architecture.shapes import ModelShape, count_parameters


def describe(shape: ModelShape) -> dict[str, Any]:
    """Return the parameter and FLOP counts of a shape as plain JSON values."""
    counts = count_parameters(shape)
    causal, full = (forward_flops_per_token(shape, causal=c) for c in (True, False))
    return {
        "label": shape.label,
        "shape": shape.as_dict(),
        "depth": shape.depth,
        "aspect_ratio": shape.aspect_ratio,
        "params_total": counts.params_total,
        "params_non_embedding": counts.params_non_embedding,
        "params_embedding": counts.params_embedding,
        "params_by_component": asdict(counts),
        "flops_per_token": training_flops_per_token(shape),
        "flops_convention": CONVENTION,
        "flops_per_token_by_convention": {
            "training_causal_with_head": TRAINING_FACTOR * causal.total,
            "training_causal_without_head": TRAINING_FACTOR * causal.without_head,
            "training_full_with_head": TRAINING_FACTOR * full.total,
            "training_full_without_head": TRAINING_FACTOR * full.without_head,
            "six_times_params_total": 6 * counts.params_total,
            "six_times_params_non_embedding": 6 * counts.params_non_embedding,
        },
        "forward_flops_per_token_by_component": asdict(causal),
        "flop_equivalent_params": flop_equivalent_params(training_flops_per_token(shape)),
    }


def print_description(
    family: str, description: dict[str, Any], plan: MemoryPlan, micro_batch: str
) -> None:
    """Print the result of `describe` and a memory plan.

    `micro_batch` describes the micro-batches of the plan, such as "2 micro-batches of 4 sequences".
    """
    shape = description["shape"]
    dimensions = "  ".join(f"{key}={value}" for key, value in shape.items())
    parameters = _count_table(
        "Parameters", "component", description["params_by_component"], description["params_total"]
    )
    parameters.add_section()
    for key in ("params_non_embedding", "params_embedding", "params_total"):
        share = description[key] / description["params_total"]
        parameters.add_row(key, f"{description[key]:,}", f"{share:.1%}")
    components = description["forward_flops_per_token_by_component"]
    forward = _count_table(
        "Forward FLOPs per token (causal)", "component", components, sum(components.values())
    )
    training = _count_table(
        "Training FLOPs per token",
        "convention",
        description["flops_per_token_by_convention"],
        description["flops_per_token"],
        ratio="ratio to flops_per_token",
    )
    note = (
        f"flops_per_token = {description['flops_per_token']:,} ({description['flops_convention']})\n"
        f"N_flop = flops_per_token / 6 = {description['flop_equivalent_params']:,.0f}\n"
        "The other conventions are listed for comparison only."
    )
    title = f"{family}: {description['label']}, aspect ratio {description['aspect_ratio']:.1f}"
    memory_note = f"For {micro_batch} per step. The peak is during {plan.moment}."
    tables = parameters, forward, training, note, _memory_table(plan), memory_note
    Console(highlight=False).print(Group(title, dimensions, *tables))


def _memory_table(plan: MemoryPlan) -> Table:
    table = _empty_table("Predicted peak memory per process", "component", "size", "share")
    for component, n_bytes in plan.parts().items():
        table.add_row(component, format_bytes(n_bytes), f"{n_bytes / plan.total_bytes:.1%}")
    table.add_section()
    table.add_row("total", format_bytes(plan.total_bytes), "100.0%")
    return table


def _count_table(
    title: str, label: str, counts: dict[str, int], total: int, ratio: str = "share"
) -> Table:
    table = _empty_table(title, label, "count", ratio)
    for name, value in counts.items():
        table.add_row(name, f"{value:,}", f"{value / total:.1%}")
    return table


def _empty_table(title: str, label: str, *number_columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(label)
    for column in number_columns:
        table.add_column(column, justify="right")
    return table
