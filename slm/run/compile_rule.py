"""Rule of trainer.compile=auto: compile the blocks of runs that would take minutes without it. Torch-free.

The rule depends on the config alone, not on the steps that remain or on the GPU that is present, so that a
resumed run makes the same decision. It uses the budget of the shortest branch, so that all branches of a
trunk make the same decision too.
"""

from __future__ import annotations

from dataclasses import dataclass

from slm.architecture.shapes import count_parameters
from slm.run.mfu import mfu_at
from slm.run.micro_batch import micro_batch_of
from slm.run.spec import RunSpec

# On a CPU, compilation takes about 15 s. It saves a fifth of the time of large steps (2e13 FLOPs take one core about
# 2 minutes), and 0.6 to 0.8 ms per block of small steps: 24 s or more in 40,000 passes (tests.benchmarks.small_steps).
MIN_CPU_FLOPS = 2e13
MIN_CPU_BLOCK_PASSES = 40_000
# On a GPU, a run that takes less than this without compilation would save little more time than it costs.
MIN_GPU_SECONDS = 120.0
# Kernel launches of the forward and backward pass of one block without compilation: counted in a trace of the
# training step on fake CUDA tensors, bf16 autocast. Launches outside the blocks are the same with compilation.
LAUNCHES_PER_BLOCK = 95
# Time of the host for one launch from PyTorch. An estimate, not yet measured on the target machines.
SECONDS_PER_LAUNCH = 5e-6
# MFU without compilation by total parameters, not yet measured: a bandwidth model of an H100 in bf16, and at 10
# million parameters the assumption of study=small.
EAGER_MFU = {
    10_000_000: 0.05,
    125_000_000: 0.18,
    350_000_000: 0.24,
    600_000_000: 0.27,
    1_000_000_000: 0.29,
}
H100_FLOPS = 989e12  # dense, bf16; NVIDIA H100 SXM5 datasheet


@dataclass(frozen=True)
class CompileDecision:
    """Whether to compile the blocks, and why."""

    compiles: bool
    reason: str

    def as_dict(self) -> dict[str, bool | str]:
        return {"compiled": self.compiles, "reason": self.reason}


def compile_decision(spec: RunSpec, accelerator: str) -> CompileDecision:
    """Apply trainer.compile to a run; the machine may still lack a compiler."""
    choice = spec.config.trainer.compile
    if choice != "auto":
        return CompileDecision(choice == "on", f"trainer.compile={choice}")
    if accelerator == "gpu":
        seconds = eager_gpu_seconds(spec)
        reason = f"auto: {seconds:,.0f} s of training predicted without compilation, threshold {MIN_GPU_SECONDS:g} s"
        return CompileDecision(seconds >= MIN_GPU_SECONDS, reason)
    flops = spec.flops * _share_of_shortest_branch(spec)
    passes = _block_passes(spec, "cpu")
    reason = (
        f"auto: {flops:.2g} FLOPs, threshold {MIN_CPU_FLOPS:.2g}; {passes:,.0f} passes through blocks, "
        f"threshold {MIN_CPU_BLOCK_PASSES:,}"
    )
    return CompileDecision(flops >= MIN_CPU_FLOPS or passes >= MIN_CPU_BLOCK_PASSES, reason)


def eager_gpu_seconds(spec: RunSpec) -> float:
    """Predict the training time of the shortest branch on GPUs without compilation.

    A step takes the longer of two times: the host launches the kernels of all blocks, and the device computes.
    """
    trainer = spec.config.trainer
    launch_seconds = LAUNCHES_PER_BLOCK * _block_passes(spec, "gpu") * SECONDS_PER_LAUNCH
    rate = H100_FLOPS * mfu_at(EAGER_MFU, count_parameters(spec.shape).params_total)
    flops = spec.flops * _share_of_shortest_branch(spec) / trainer.processes
    return max(launch_seconds, flops / rate)


def _block_passes(spec: RunSpec, accelerator: str) -> float:
    """Return how often the shortest branch runs a block forward and backward on one micro-batch."""
    per_step = spec.shape.depth * micro_batch_of(spec, accelerator).count
    return spec.steps * _share_of_shortest_branch(spec) * per_step


def _share_of_shortest_branch(spec: RunSpec) -> float:
    """Return the token budget of the shortest branch of the run's trunk, as a share of the run's own."""
    return (spec.config.schedule.warmup_budget_tokens or spec.tokens) / spec.tokens
