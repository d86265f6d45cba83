"""`python -m slm runs diff`: what differs between two runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from json import dumps
from pathlib import Path
from typing import Any

from rich.console import Console

from slm.architecture.memory import format_bytes
from slm.architecture.shapes import shape_label
from slm.console import Column, FittedTable, console, print_lines
from slm.files import read_json
from slm.formatting import format_duration, scientific, short_count
from slm.run.display_name import SHAPE_KEYS, flatten, format_value, is_recipe
from slm.run_index.scan import Run, find_run, read_run
from slm.tracking.result import RunResult

Pair = tuple[Any, Any]
Differences = dict[str, Pair]
ARCHITECTURE_AND_BUDGET = ("family.", "size", "seed", "budget.", *SHAPE_KEYS, "model.preset")
IGNORED = (
    "plan.",
    "design.",
    "watch.",
    "speed.",
    "action",
    "rerun",
    "schedule.warmup_budget_tokens",
)
NOT_ENVIRONMENT = ("command", "memory.", "compilation.reason", "visible_gpus")
FINGERPRINTS = ("data_fingerprint", "tokenizer_fingerprint", "val_fingerprint", "recipe_id")


def print_difference(first: str, second: str, runs_dir: Path, *, json: bool) -> None:
    """Print the differences of two runs, each given as for `find_run`."""
    pair = tuple(read_run(find_run(text, runs_dir)) for text in (first, second))
    if json:
        print(dumps(difference(*pair), indent=2, default=str))
        return
    target = console()
    for letter, run in zip("AB", pair, strict=True):
        note = f" ({run.problem})" if run.problem else ""
        print_lines(target, [f"{letter}: {run.name}, {run.state}{note}", f"   {run.path}"])
    one, other = pair
    science, execution = differing_settings(one, other)
    _print_table(target, "Settings that can change the result", _in_words(science), "no difference")
    _print_table(target, "Other settings", _in_words(execution), "no difference")
    results = {name: value for name, value in _results(one, other).items() if value != ("", "")}
    _print_table(target, "Results", results, "no results")
    print_lines(target, ["", _comparability(one.result, other.result)])
    environment = differing(_environment(one), _environment(other))
    _print_table(target, "Environment", _in_words(environment), "no difference")


def difference(one: Run, other: Run) -> dict[str, Any]:
    """Return the output of --json: differing keys with both values."""
    science, execution = differing_settings(one, other)
    results = [{} if run.result is None else asdict(run.result) for run in (one, other)]
    return {
        "runs": [str(one.path), str(other.path)],
        "science": science,
        "execution": execution,
        "results": differing(*results),
        "environment": differing(_environment(one), _environment(other)),
    }


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> Differences:
    """Return the keys with different values; a missing key counts as null."""
    keys = dict.fromkeys([*one, *other])
    return {key: (one.get(key), other.get(key)) for key in keys if one.get(key) != other.get(key)}


def differing_settings(one: Run, other: Run) -> tuple[Differences, Differences]:
    """Return the differing keys of the configs that can change the result, and the others."""
    science: Differences = {}
    execution: Differences = {}
    for key, values in differing(one.settings, other.settings).items():
        if key.startswith(ARCHITECTURE_AND_BUDGET) or is_recipe(key):
            science[key] = values
        elif not key.startswith(IGNORED):
            execution[key] = values
    return science, execution


def _environment(run: Run) -> dict[str, Any]:
    try:
        saved = flatten(read_json(run.path / "env.json"))
    except (OSError, ValueError, AttributeError):
        return {}
    return {key: value for key, value in saved.items() if not key.startswith(NOT_ENVIRONMENT)}


def _in_words(differences: Differences) -> dict[str, tuple[str, str]]:
    return {key: (_shown(a), _shown(b)) for key, (a, b) in differences.items()}


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else format_value(value)


def _results(one: Run, other: Run) -> dict[str, tuple[str, str]]:
    rows = [_result_row(run.result) for run in (one, other)]
    names = rows[0] or rows[1]
    return {name: (rows[0].get(name, ""), rows[1].get(name, "")) for name in names}


def _result_row(result: RunResult | None) -> dict[str, str]:
    if result is None:
        return {}

    def loss(value: float | None) -> str:
        return "" if value is None else f"{value:.4f}"

    return {
        "validation loss (nats/token)": loss(result.val_loss_nats_per_token),
        "validation bits/byte": loss(result.val_bits_per_byte),
        "training loss (nats/token)": loss(result.train_loss_nats_per_token),
        "shape": _shape(result.shape),
        "parameters": short_count(result.params_total),
        "without embeddings": short_count(result.params_non_embedding),
        "tokens": short_count(result.tokens),
        "steps": f"{result.steps:,}",
        "FLOPs": scientific(result.flops),
        "FLOPs per token": short_count(result.flops_per_token),
        "tokens/s": f"{result.tokens_per_second:,.0f}",
        "MFU": "" if result.mfu is None else f"{result.mfu:.1%}",
        "training time": format_duration(result.wall_seconds),
        "peak memory": format_bytes(result.peak_memory_bytes),
        "loss spikes": str(len(result.loss_spikes)),
    }


def _shape(shape: Mapping[str, Any]) -> str:
    return f"{shape_label(shape['n_layers'], shape['d_model'])}, d_ff {shape['d_ff']}"


def _comparability(one: RunResult | None, other: RunResult | None) -> str:
    """Return whether data, tokenizer, validation set and recipe are the same, and the loss difference if it means something."""
    if one is None or other is None:
        return "No comparison of the data: a run has no result yet."
    words = [name.removesuffix("_fingerprint").removesuffix("_id") for name in FINGERPRINTS]
    names = dict(zip(FINGERPRINTS, words, strict=True)) | {"val_fingerprint": "validation set"}
    different = [name for key, name in names.items() if getattr(one, key) != getattr(other, key)]
    same = [name for name in names.values() if name not in different]
    line = "; ".join(
        f"{verb} {_join(listed)}"
        for verb, listed in (("Same", same), ("different", different))
        if listed
    )
    losses = one.val_loss_nats_per_token, other.val_loss_nats_per_token
    if losses[0] is None or losses[1] is None:
        return f"{line}."
    if names["val_fingerprint"] in different:
        return f"{line}: the losses are not comparable."
    return f"{line}. Validation loss of A minus B: {losses[0] - losses[1]:+.4f} nats/token."


def _join(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _print_table(
    target: Console, title: str, rows: Mapping[str, tuple[str, str]], if_empty: str
) -> None:
    if not rows:
        print_lines(target, ["", f"{title}: {if_empty}"])
        return
    first, second = zip(*rows.values(), strict=True)
    columns = [
        Column("", list(rows), is_left=True),
        Column("A", first, wraps=True),
        Column("B", second, wraps=True),
    ]
    target.print()
    target.print(FittedTable(columns, title))
