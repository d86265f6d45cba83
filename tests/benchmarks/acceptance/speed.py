"""Compiled training steps of 125M and 600M in bf16, and transformers' Llama beside 125M."""

from __future__ import annotations

import statistics
import time

from tests.benchmarks.acceptance.measuring import (
    QUICK_SECONDS,
    SECONDS,
    WARMUP_STEPS,
    add_speed,
    free_memory,
    measure_speed,
    preset_spec,
)
from tests.benchmarks.acceptance.rows import Options, Rows
from tests.benchmarks.paired import run_for
from tests.benchmarks.peers import (
    Mode,
    compile_layers,
    export_weights,
    is_installed,
    llama_step,
)

MFU_FLOORS = {"125m": 0.20, "600m": 0.29}  # causal attention, compiled, on one H100
PEER_SEQUENCES = 16  # the peer stores all logits: about 4 GB in fp32, several times


def run(options: Options, rows: Rows) -> None:
    mode = Mode("fp32", False) if options.quick and not options.on_gpu else Mode("bf16", True)
    rates = {}
    for preset, floor in MFU_FLOORS.items():
        name = f"{preset} {mode.name}"
        speed = measure_speed(options, preset, mode)
        add_speed(options, rows, name, speed, None if options.quick else floor)
        rates[preset] = speed.tokens_per_second
        del speed
    if not is_installed("transformers"):
        rows.skipped("transformers 125m", "transformers is not installed")
        return
    _add_peer(options, rows, mode, rates["125m"])


def _add_peer(options: Options, rows: Rows, mode: Mode, our_rate: float) -> None:
    """Measure transformers' Llama from the same weights; its layers are compiled, as slm's blocks are."""
    free_memory(options)
    spec = preset_spec(options, "125m", mode, PEER_SEQUENCES)
    folder = options.folder / "llama"
    export_weights(spec, folder)
    step, _ = llama_step(spec, mode, folder, options.device, compile_layers)
    start_seconds = time.perf_counter()
    float(step())
    first_step_seconds = time.perf_counter() - start_seconds
    for _ in range(1, WARMUP_STEPS):
        step()
    rounds = [run_for(step, (QUICK_SECONDS if options.quick else SECONDS) / 2) for _ in range(2)]
    rate = statistics.median(steps * spec.batch_tokens / seconds for steps, seconds in rounds)
    note = f"{spec.batch_sequences} sequences at once, SDPA, layers {'compiled' if mode.compiled else 'eager'}"
    rows.measured(f"transformers 125m {mode.name}: speed", rate, "tokens/s", note)
    rows.measured("slm / transformers, 125m", our_rate / rate)
    rows.measured(
        "transformers 125m: first step",
        first_step_seconds,
        "s",
        "compiles" if mode.compiled else "eager",
    )
