"""Tokens/s of slm's bare training step, compared with transformers' Llama and litgpt's GPT.

    python -m tests.benchmarks.training [--shapes deep wide] [--modes fp32-eager bf16-compiled ...]
        [--libraries slm transformers litgpt] [--threads 2] [--rounds 5] [--seconds 2]
        [--set model.attention=sdpa ...] [--force] [--json FILE]

All libraries start from slm's weights and train on one batch of random tokens; `peers.py` defines the step.
Before the measurement, parameter counts must be equal, and first losses equal up to rounding. Each library
in each mode has a separate process; a round measures each process once, for `--seconds` and at least one
step. The tables show medians over rounds; ratios are medians of the ratios within rounds. `--set` overrides
apply to slm only. Large shapes are measured one mode at a time, so ratios between their modes are not paired;
even so, mobilellm_125m takes 6 GB per library. Compilation takes minutes the first time, and less with
torch's cache. `deep` and `wide` have the same number of matrix parameters. Modes that the machine cannot run
well are skipped, with the reason: bf16 on a CPU without bf16 matrix products, compiled modes without a C++
compiler. `--force` measures them.

Targets: slm's best mode over the best mode of the peers: 1.4 on `deep`, 1.2 on `wide`. slm's best fp32 mode
over the peers' best fp32 mode: 1.0 against compiled modes, 1.05 against eager modes.
"""

from __future__ import annotations

import os
import shutil
import statistics
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from slm.architecture.shapes import count_parameters
from slm.config.hydra import compose_config
from slm.run.spec import resolve
from slm.tracking.environment import WITH_BF16
from tests.benchmarks.paired import (
    Worker,
    check_target,
    measure_in_rounds,
    measuring_parser,
    median_ratio,
    parse_and_describe,
    print_table,
    report_progress,
    started_workers,
    write_results,
)
from tests.benchmarks.peers import (
    INSTALL,
    LIBRARIES,
    Case,
    Mode,
    contender,
    export_weights,
    first_loss,
    is_installed,
)

Cell = tuple[str, str]  # library and mode
Rates = dict[Cell, list[float]]
COMMON = ["model=tiny", "model.vocab_size=4096", "model.seq_len=256"]
SHAPES = {
    "deep": [
        *COMMON,
        "model.n_layers=24",
        "model.d_model=128",
        "model.n_heads=4",
        "model.n_kv_heads=2",
        "model.d_ff=352",
    ],
    "wide": [
        *COMMON,
        "model.n_layers=4",
        "model.d_model=320",
        "model.n_heads=10",
        "model.n_kv_heads=5",
        "model.d_ff=832",
    ],
    "mobilellm_125m": ["model=mobilellm_125m", "optimizer.global_batch_tokens=2048"],
    "mobilellm_125m_512": [
        "model=mobilellm_125m",
        "model.seq_len=512",
        "optimizer.global_batch_tokens=2048",
    ],
}
MODES = ("fp32-eager", "fp32-compiled", "bf16-eager", "bf16-compiled")
BEST_TARGETS = {"deep": 1.4, "wide": 1.2}
LOSS_TOLERANCE = {"fp32": 1e-6, "bf16": 1e-3}  # relative; bf16 keeps 8 bits of each logit
PROCESS_BYTES = 0.8e9  # memory of a library's imports
LARGE_PARAMS = 50e6  # from this size on, workers are built one after the other
BYTES_PER_PARAM = 40  # weight, gradient and two moments, and as much again kept by malloc


def compare(
    overrides: Sequence[str],
    *,
    modes: Sequence[str] = MODES,
    libraries: Sequence[str] = LIBRARIES,
    threads: int = 2,
    rounds: int = 5,
    seconds: float = 2.0,
    device: str = "cpu",
    slm_overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Measure one shape with all libraries and modes.

    Raises:
        AssertionError: if parameter counts or first losses differ between libraries.
    """
    with TemporaryDirectory() as folder:
        case = Case(tuple(overrides), device, Path(folder), tuple(slm_overrides))
        spec = case.spec("transformers", Mode("fp32", False))
        params = export_weights(spec, case.weights)
        expected_loss = first_loss(spec)
        cells: list[dict[str, Any]] = []
        for group in _mode_groups(modes, params, len(libraries)):
            starts = {
                (library, mode): partial(Worker, contender, library, mode, case, threads=threads)
                for mode in group
                for library in libraries
            }
            report_progress(f"starting {', '.join(group)}")
            with started_workers(starts, concurrently=params < LARGE_PARAMS) as workers:
                for cell, worker in workers.items():
                    check_equal(cell, worker.facts, params, expected_loss)
                measured = measure_in_rounds(workers, rounds, seconds)
            cells += [
                {
                    "library": library,
                    "mode": mode,
                    "first_loss": workers[library, mode].facts["first_loss"],
                    "rounds": results,
                }
                for (library, mode), results in measured.items()
            ]
    return {
        "shape": spec.shape.as_dict(),
        "params": params,
        "batch_sequences": spec.batch_sequences,
        "flops_per_token": spec.flops_per_token,
        "first_loss": expected_loss,
        "slm_overrides": list(slm_overrides),
        "cells": cells,
    }


def _mode_groups(modes: Sequence[str], params: int, libraries: int) -> Iterator[Sequence[str]]:
    """Yield groups of modes whose processes together fit into half of the memory.

    Ratios between modes of different groups are not paired.
    """
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    mode_bytes = libraries * (PROCESS_BYTES + BYTES_PER_PARAM * params)
    size = max(1, int(memory_bytes / 2 // mode_bytes))
    for start in range(0, len(modes), size):
        yield modes[start : start + size]


def check_equal(cell: Cell, facts: dict[str, Any], params: int, expected_loss: float) -> None:
    assert facts["params"] == params, f"{cell}: {facts['params']:,} parameters, slm has {params:,}"
    error = abs(facts["first_loss"] / expected_loss - 1)
    tolerance = LOSS_TOLERANCE[Mode.named(cell[1]).precision]
    assert error < tolerance, f"{cell}: first loss {facts['first_loss']}, slm's is {expected_loss}"


def rates_of(result: dict[str, Any]) -> Rates:
    return {
        (cell["library"], cell["mode"]): [r["tokens_per_second"] for r in cell["rounds"]]
        for cell in result["cells"]
    }


def best(rates: Rates, *, ours: bool, precision: str = "", kind: str = "") -> Cell | None:
    """Return the fastest cell of slm or of the peers, by median, with this precision and kind."""
    cells = [
        cell
        for cell in rates
        if (cell[0] == "slm") == ours and cell[1].startswith(precision) and cell[1].endswith(kind)
    ]
    return max(cells, key=lambda cell: statistics.median(rates[cell]), default=None)


def comparisons(name: str, rates: Rates) -> Iterator[dict[str, Any]]:
    """Yield slm's ratio to the best peer: over all modes, and over fp32 modes with a target."""
    kinds: list[tuple[str, str, str, float | None]] = [
        ("best mode / best mode", "", "", BEST_TARGETS.get(name)),
        ("best fp32 / best compiled fp32", "fp32", "compiled", 1.0),
        ("best fp32 / best eager fp32", "fp32", "eager", 1.05),
    ]
    has_all_modes = {mode for library, mode in rates if library != "slm"} >= set(MODES)
    for comparison, precision, kind, target in kinds:
        ours = best(rates, ours=True, precision=precision)
        peer = best(rates, ours=False, precision=precision, kind=kind)
        if ours is None or peer is None:
            continue
        ratio = median_ratio(rates[ours], rates[peer])
        outcome = "" if target is None else check_target(ratio, target)
        yield {
            "comparison": comparison,
            "slm": ours[1],
            "peer": " ".join(peer),
            "ratio": ratio,
            "verdict": outcome if precision or has_all_modes else "not all modes measured",
        }


def print_result(name: str, result: dict[str, Any]) -> None:
    rates, shape = rates_of(result), result["shape"]
    rows = []
    for cell in result["cells"]:
        library, mode = cell["library"], cell["mode"]
        ours = rates.get(("slm", mode))
        ratio = "" if ours is None else f"{median_ratio(ours, rates[library, mode]):.2f}"
        rows.append(
            [
                mode,
                library,
                f"{statistics.median(rates[library, mode]):,.0f}",
                f"{1e3 * statistics.median(r['step_seconds'] for r in cell['rounds']):,.1f}",
                ratio,
                f"{cell['first_loss']:.5f}",
            ]
        )
    rounds = len(result["cells"][0]["rounds"])
    title = (
        f"{name}: {result['params']:,} parameters, L{shape['n_layers']} d{shape['d_model']}, "
        f"{result['batch_sequences']} x {shape['seq_len']} tokens, {rounds} rounds"
    )
    columns = ["mode", "library", "tokens/s", "ms/step", "slm / library", "first loss"]
    print_table(title, columns, rows)
    if result["comparisons"]:
        columns = ["comparison", "slm", "peer", "slm / peer", "target", "CPU"]
        keys = ("comparison", "slm", "peer", "ratio", "verdict", "cpu_instruction_set")
        comparison_rows = [
            [f"{c[key]:.2f}" if key == "ratio" else c[key] for key in keys]
            for c in result["comparisons"]
        ]
        print_table("slm compared with the peers", columns, comparison_rows)


def installed(libraries: Sequence[str]) -> list[str]:
    for library in libraries:
        if not is_installed(library):
            print(f"{library} is not installed and is skipped; to install: {INSTALL[library]}")
    return [library for library in libraries if is_installed(library)]


def supported_modes(modes: Sequence[str], machine: Mapping[str, Any], device: str) -> list[str]:
    """Return the modes that the machine runs at a useful speed; print why others are skipped."""
    cpu, supported = machine["cpu_instruction_set"], []
    for mode in map(Mode.named, modes):
        reason = None
        if device == "cpu" and mode.precision == "bf16" and cpu not in {*WITH_BF16, "unknown"}:
            reason = f"this CPU ({cpu}) has no bf16 matrix products"
        elif (
            device == "cpu" and mode.compiled and shutil.which(os.environ.get("CXX", "g++")) is None
        ):
            reason = "there is no C++ compiler"
        if reason is None:
            supported.append(mode.name)
        else:
            print(f"{mode.name} is skipped: {reason}")
    return supported


def check_shapes() -> None:
    """Assert that `deep` and `wide` have the same number of matrix parameters."""
    counts = []
    for name in ("deep", "wide"):
        shape = resolve(compose_config(SHAPES[name])).shape
        groups = count_parameters(shape)
        counts.append(groups.attention + groups.mlp)
    assert counts[0] == counts[1], counts


def main() -> None:
    parser = measuring_parser(__doc__.splitlines()[0], threads=2, rounds=5, seconds=2.0)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["deep", "wide"])
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--libraries", nargs="+", choices=LIBRARIES, default=LIBRARIES)
    parser.add_argument("--force", action="store_true", help="measure modes that would be skipped")
    check_shapes()
    arguments, machine = parse_and_describe(parser)
    modes = arguments.modes if arguments.force else supported_modes(arguments.modes, machine, "cpu")
    results = {}
    for name in arguments.shapes if modes else ():
        report_progress(f"shape {name}")
        result = compare(
            SHAPES[name],
            modes=modes,
            libraries=installed(arguments.libraries),
            threads=arguments.threads,
            rounds=arguments.rounds,
            seconds=arguments.seconds,
            slm_overrides=arguments.set,
        )
        cpu = {"cpu_instruction_set": machine["cpu_instruction_set"]}
        result["comparisons"] = [{**c, **cpu} for c in comparisons(name, rates_of(result))]
        print_result(name, result)
        results[name] = result
    write_results(arguments.json, machine, results)


if __name__ == "__main__":
    main()
