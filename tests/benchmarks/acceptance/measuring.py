"""Speed and memory of one preset's training step with the automatic micro-batch."""

from __future__ import annotations

import gc
import time
from dataclasses import dataclass

import torch

from slm.architecture.flops import training_flops_per_token
from slm.config.hydra import compose_config
from slm.run.micro_batch import MicroBatch
from slm.run.spec import RunSpec, resolve
from slm.training.device.accelerator import peak_flops, peak_memory_bytes, reset_peak_memory
from tests.benchmarks import engine
from tests.benchmarks.acceptance.rows import Options, Rows
from tests.benchmarks.paired import run_for
from tests.benchmarks.peers import Mode, fixed_batch

BATCH_TOKENS = 131_072
SECONDS, QUICK_SECONDS = 4.0, 0.1
WARMUP_STEPS = 2
MEMORY_RATIO = (0.8, 1.1)  # measured peak of the allocator / planned bytes
QUICK = ("model=tiny", "model.n_layers=2", "model.seq_len=64", "optimizer.global_batch_tokens=512")


@dataclass(frozen=True)
class Speed:
    tokens_per_second: float
    step_seconds: float
    first_step_seconds: float
    peak_bytes: int
    micro_batch: MicroBatch
    spec: RunSpec

    def mfu(self, options: Options, *, causal: bool) -> float | None:
        """Return the share of the device's dense bf16 peak; None if the peak is not known."""
        peak = peak_flops(torch.cuda.get_device_name(), "bf16") if options.on_gpu else None
        if peak is None:
            return None
        flops = training_flops_per_token(self.spec.shape, causal=causal)
        return self.tokens_per_second * flops / peak


def preset_spec(options: Options, preset: str, mode: Mode, sequences: int | None = None) -> RunSpec:
    """Return the spec of a preset; `sequences` replaces the global batch of BATCH_TOKENS."""
    shape = [f"model=mobilellm_{preset}", f"optimizer.global_batch_tokens={BATCH_TOKENS}"]
    if sequences is not None:
        shape = [f"model=mobilellm_{preset}", f"optimizer.global_batch_tokens={sequences * 2048}"]
    overrides = QUICK if options.quick else shape
    modes = mode.overrides(options.device)
    return resolve(compose_config([*overrides, *modes, "trainer.micro_batch_sequences=auto"]))


def measure_speed(options: Options, preset: str, mode: Mode) -> Speed:
    """Build, warm up and time the training step of a preset, alone on the device."""
    free_memory(options)
    spec, micro_batch = engine.fit_micro_batch(preset_spec(options, preset, mode), options.device)
    reset_peak_memory(options.accelerator)
    step, batch = engine.build_step(spec, options.device), fixed_batch(spec, options.device)
    start_seconds = time.perf_counter()
    float(step.take(0, batch).loss)
    first_step_seconds = time.perf_counter() - start_seconds
    for number in range(1, WARMUP_STEPS):
        step.take(number, batch)
    seconds = QUICK_SECONDS if options.quick else SECONDS
    steps, elapsed_seconds = run_for(lambda: step.take(WARMUP_STEPS, batch), seconds)
    peak_bytes = peak_memory_bytes(options.accelerator)
    rate = steps * spec.batch_tokens / elapsed_seconds
    return Speed(rate, elapsed_seconds / steps, first_step_seconds, peak_bytes, micro_batch, spec)


def free_memory(options: Options) -> None:
    """Give the memory of earlier models back to the device."""
    torch._dynamo.reset()
    gc.collect()
    if options.on_gpu:
        torch.cuda.empty_cache()


def add_speed(
    options: Options, rows: Rows, name: str, speed: Speed, mfu_floor: float | None = None
) -> None:
    """Add tokens/s, both MFUs, memory and the time of the first step, which compiles."""
    note = f"{speed.micro_batch.summary}, {1e3 * speed.step_seconds:,.0f} ms per step"
    rows.measured(f"{name}: speed", speed.tokens_per_second, "tokens/s", note)
    causal, full = (speed.mfu(options, causal=causal) for causal in (True, False))
    if causal is None or full is None:
        rows.skipped(f"{name}: MFU", "the peak of this device is not known")
    else:
        rows.check(f"{name}: MFU, causal attention", causal, at_least=mfu_floor, note="slm's")
        rows.measured(f"{name}: MFU, full attention", full, note="PaLM's convention")
    planned = speed.micro_batch.plan.total_bytes
    check = f"{name}: measured / planned memory"
    if options.on_gpu:
        low, high = MEMORY_RATIO
        note = f"{speed.peak_bytes / 1e9:.1f} GB of {planned / 1e9:.1f} GB"
        rows.check(check, speed.peak_bytes / planned, at_least=low, at_most=high, note=note)
    else:
        rows.skipped(check, "on a CPU the peak of the process includes its imports")
    note = "compiles" if speed.spec.config.trainer.compile == "on" else "eager"
    rows.measured(f"{name}: first step", speed.first_step_seconds, "s", note)
