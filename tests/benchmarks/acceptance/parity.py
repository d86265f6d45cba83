"""Losses of CPU and GPU, in fp32 and bf16, eager and compiled; synchronisations, recompiles and NaN."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._dynamo.utils import counters

from slm.config.hydra import compose_config
from slm.errors import Diverged
from slm.run.spec import RunSpec, resolve
from tests.benchmarks import engine
from tests.benchmarks.acceptance.rows import Options, Rows
from tests.benchmarks.peers import Mode, fixed_batch

STEPS = 20
BATCHES = 4  # repeated, so that the loss falls and differences can grow
FP32_TOLERANCE = 1e-3  # largest relative difference of the loss from CPU fp32, over the steps
BF16_TOLERANCE = 2e-2
SYNC_STEPS = 5
NAN_STEP = 5
WARMUP_STEPS = 2  # after them nothing may be compiled again
BLOCKS = (
    "model=tiny",
    "model.d_model=256",
    "model.n_heads=4",
    "model.n_kv_heads=2",
    "model.d_ff=704",
    "model.seq_len=256",
)
SHAPE = (
    *BLOCKS,
    "model.vocab_size=4096",
    "optimizer.global_batch_tokens=4096",
    "optimizer.lr=1e-3",
    "budget=tokens",
    "budget.tokens=409600",
)
QUICK = (
    "model=tiny",
    "model.n_layers=2",
    "model.seq_len=32",
    "optimizer.global_batch_tokens=128",
    "optimizer.lr=1e-3",
    "budget=tokens",
    "budget.tokens=12800",
)
SYNC_CASES = {
    "plain": (),
    "activation checkpointing": ("trainer.activation_checkpointing=true",),
    "document_mask": ("model.document_mask=true",),
    "both": ("trainer.activation_checkpointing=true", "model.document_mask=true"),
}


@dataclass(frozen=True)
class Trajectory:
    losses: list[float]
    first_step_seconds: float
    graphs_after_warmup: int
    """Graphs that were compiled after the first WARMUP_STEPS steps."""


def run(options: Options, rows: Rows) -> None:
    reference = train_steps(spec_of(options, Mode("fp32", False), device="cpu"), "cpu")
    for mode in (Mode(p, c) for p in ("fp32", "bf16") for c in (False, True)):
        check = f"{options.device} {mode.name} against cpu fp32-eager"
        if options.quick and mode.precision == "bf16" and mode.compiled:
            rows.skipped(check, "saves the time of a second compilation in --quick")
            continue
        torch._dynamo.reset()
        measured = train_steps(spec_of(options, mode), options.device)
        difference = largest_difference(measured.losses, reference.losses)
        tolerance = FP32_TOLERANCE if mode.precision == "fp32" else BF16_TOLERANCE
        last = f"loss {reference.losses[0]:.3f} to {measured.losses[-1]:.3f}"
        note = f"largest relative difference of {STEPS} losses; {last}"
        rows.check(check, difference, at_most=tolerance, note=note)
        if mode.compiled:
            rows.measured(f"{mode.name}: first step", measured.first_step_seconds, "s", "compiles")
            recompiled = measured.graphs_after_warmup
            rows.check(f"{mode.name}: graphs compiled later", recompiled, at_most=0)
    for name, overrides in SYNC_CASES.items():
        _check_synchronisation(options, rows, name, overrides)
    _check_nan(options, rows)


def spec_of(
    options: Options, mode: Mode, overrides: tuple[str, ...] = (), device: str | None = None
) -> RunSpec:
    shape = QUICK if options.quick else SHAPE
    modes = mode.overrides(device or options.device)
    return resolve(compose_config([*shape, *modes, *overrides]))


def batches_of(spec: RunSpec, device: str) -> list[Tensor]:
    return [fixed_batch(spec, device, seed) for seed in range(BATCHES)]


def train_steps(spec: RunSpec, device: str) -> Trajectory:
    """Train STEPS steps from the weights of the spec's seed."""
    batches, losses, graphs = batches_of(spec, device), [], 0
    start_seconds = time.perf_counter()
    step = engine.build_step(spec, device)
    first_step_seconds = 0.0
    for number in range(STEPS):
        if number == WARMUP_STEPS:
            graphs = counters["stats"]["unique_graphs"]
        losses.append(float(step.take(number, batches[number % BATCHES]).loss))
        first_step_seconds = first_step_seconds or time.perf_counter() - start_seconds
    later = counters["stats"]["unique_graphs"] - graphs
    return Trajectory(losses, first_step_seconds, later)


def largest_difference(ours: Sequence[float], reference: Sequence[float]) -> float:
    """Return the largest relative difference; infinity if a loss is not finite."""
    differences = [abs(a / b - 1) for a, b in zip(ours, reference, strict=True)]
    return max(differences) if all(map(math.isfinite, differences)) else math.inf


def _check_synchronisation(
    options: Options, rows: Rows, name: str, overrides: tuple[str, ...]
) -> None:
    """Take SYNC_STEPS steps while torch raises an error at each synchronisation with the host."""
    mode = Mode("fp32" if options.quick else "bf16", False)
    spec = spec_of(options, mode, overrides)
    step, batches = engine.build_step(spec, options.device), batches_of(spec, options.device)
    step.take(0, batches[0])
    found = ""
    with _synchronisation_raises(options):
        try:
            for number in range(1, 1 + SYNC_STEPS):
                step.take(number, batches[number % BATCHES])
        except RuntimeError as error:
            if "synchroniz" not in str(error):
                raise
            found = _where(error)
    check = f"no synchronisation in {SYNC_STEPS} steps: {name}"
    if options.on_gpu:
        rows.holds(check, not found, found)
    else:
        rows.skipped(check, "needs CUDA; the steps ran")


@contextmanager
def _synchronisation_raises(options: Options) -> Iterator[None]:
    if not options.on_gpu:
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _where(error: BaseException) -> str:
    """Return the innermost line of slm in an error's traceback."""
    place, traceback = "outside of slm", error.__traceback__
    while traceback is not None:
        file = traceback.tb_frame.f_code.co_filename
        if "/slm/" in file:
            place = f"slm/{file.rpartition('/slm/')[2]}:{traceback.tb_lineno}"
        traceback = traceback.tb_next
    return place


def _check_nan(options: Options, rows: Rows) -> None:
    """Make a gradient NaN at one step; neither that step nor a later one may change the weights."""
    mode = Mode("fp32" if options.quick else "bf16", False)
    spec = spec_of(options, mode)
    step, batches = engine.build_step(spec, options.device), batches_of(spec, options.device)
    poison = [False]
    engine.model_of(step).norm.weight.register_hook(
        lambda grad: grad * float("nan") if poison[0] else grad
    )
    start = _weights(step)
    for number in range(NAN_STEP):
        step.take(number, batches[number % BATCHES])
    before = _weights(step)
    rows.holds("steps before the NaN change the weights", not _equal(start, before))
    poison[0] = True
    for number in (NAN_STEP, NAN_STEP + 1):
        try:
            step.take(number, batches[number % BATCHES])
        except Diverged:  # on CPU the step itself raises it
            break
        poison[0] = False
    note = "a gradient was NaN at step 5"
    rows.holds("NaN leaves the weights unchanged", _equal(before, _weights(step)), note)


def _weights(step: engine.TrainingStep) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in engine.model_of(step).parameters()]


def _equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
