"""A shape in numbers: its parameters and FLOPs by component and convention, as data and as text."""

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
from slm.architecture.memory import MemoryPlan, in_units
from slm.architecture.shapes import ModelShape, count_parameters


def describe(shape: ModelShape) -> dict[str, Any]:
    """Everything that is counted of a shape; plain values, ready for JSON."""
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
    title: str, described: dict[str, Any], plan: MemoryPlan, micro_batch: str
) -> None:
    """`plan` is for micro-batches as `micro_batch` says in words."""
    shape = described["shape"]
    dimensions = "  ".join(f"{key} {value}" for key, value in shape.items())
    parameters = _table("parameters", described["params_by_component"], described["params_total"])
    parameters.add_section()
    for key in ("params_non_embedding", "params_embedding", "params_total"):
        parameters.add_row(key, f"{described[key]:,}", _share(described, key))
    components = described["forward_flops_per_token_by_component"]
    forward = _table("forward FLOPs per token, causal", components, sum(components.values()))
    training = _table(
        "training FLOPs per token",
        described["flops_per_token_by_convention"],
        described["flops_per_token"],
        heading="to the convention in use",
    )
    note = (
        f"flops_per_token = {described['flops_per_token']:,} ({described['flops_convention']}); "
        f"N_flop = f/6 = {described['flop_equivalent_params']:,.0f}. 6N is there to compare with."
    )
    head = f"{title}: {described['label']}, aspect ratio {described['aspect_ratio']:.1f}"
    needed = (
        f"Memory is predicted for one process with {micro_batch} a step, of which "
        f"{plan.moment} needs most."
    )
    tables = parameters, forward, training, note, _memory_table(plan), needed
    Console(highlight=False).print(Group(head, dimensions, *tables))


def _memory_table(plan: MemoryPlan) -> Table:
    table = _headed("memory of a process", "bytes", "share")
    for part, n_bytes in plan.parts().items():
        table.add_row(part, in_units(n_bytes), f"{n_bytes / plan.total_bytes:.1%}")
    table.add_section()
    table.add_row("total", in_units(plan.total_bytes), "")
    return table


def _table(title: str, rows: dict[str, int], whole: int, heading: str = "share") -> Table:
    table = _headed(title, "count", heading)
    for name, value in rows.items():
        table.add_row(name, f"{value:,}", f"{value / whole:.1%}")
    return table


def _headed(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for heading in headings:
        table.add_column(heading, justify="right")
    return table


def _share(described: dict[str, Any], key: str) -> str:
    return f"{described[key] / described['params_total']:.1%}"
