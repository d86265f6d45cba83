"""Parameters, FLOPs and memory of a shape, as JSON-ready data and as printed tables."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from slm.architecture.flops import (
    CONVENTION,
    TRAINING_FACTOR,
    flop_equivalent_params,
    forward_flops_per_token,
    training_flops_per_token,
)
from slm.architecture.memory import MemoryPlan, format_bytes
from slm.architecture.shapes import ModelShape, count_parameters
from slm.console import Column, FittedTable, console, print_lines


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
    counts = ("params_non_embedding", "params_embedding", "params_total")
    parameters = _count_table(
        "Parameters",
        "component",
        {**description["params_by_component"], **{key: description[key] for key in counts}},
        description["params_total"],
    )
    components = description["forward_flops_per_token_by_component"]
    forward = _count_table(
        "Forward FLOPs per token (causal)", "component", components, sum(components.values())
    )
    training = _count_table(
        "Training FLOPs per token",
        "convention",
        description["flops_per_token_by_convention"],
        description["flops_per_token"],
        ratio="relative to\nflops_per_\ntoken",
    )
    note = (
        f"flops_per_token = {description['flops_per_token']:,} ({description['flops_convention']})\n"
        f"N_flop = flops_per_token / 6 = {description['flop_equivalent_params']:,.0f}\n"
        "The other conventions are listed for comparison only."
    )
    title = f"{family}: {description['label']}, aspect ratio {description['aspect_ratio']:.1f}"
    memory_note = f"For {micro_batch} per step. The peak is during {plan.moment}."
    tables = parameters, forward, training, note, _memory_table(plan), memory_note
    out = console()
    for part in (title, dimensions, *tables):
        if isinstance(part, str):
            print_lines(out, part.splitlines())
        else:
            out.print(part)


def _memory_table(plan: MemoryPlan) -> FittedTable:
    parts = {**plan.parts(), "total": plan.total_bytes}
    columns = [
        Column("component", list(parts), is_left=True),
        Column("size", [format_bytes(n_bytes) for n_bytes in parts.values()]),
        Column("share", [f"{n_bytes / plan.total_bytes:.1%}" for n_bytes in parts.values()]),
    ]
    return FittedTable(columns, "Predicted peak memory per process")


def _count_table(
    title: str, label: str, counts: dict[str, int], total: int, ratio: str = "share"
) -> FittedTable:
    columns = [
        Column(label, list(counts), is_left=True),
        Column("count", [f"{value:,}" for value in counts.values()]),
        Column(ratio, [f"{value / total:.1%}" for value in counts.values()]),
    ]
    return FittedTable(columns, title)
