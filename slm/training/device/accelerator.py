"""The device of a run: which one, how many threads, and its peak if that is known."""

from __future__ import annotations

import re
import resource
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from slm.config.schema import TrainerConfig
from slm.errors import ConfigError, Problem
from slm.tracking.environment import available_cores
from slm.training.distributed.workers import Workers

# Dense peak FLOP/s of tensor cores with 16-bit inputs; NVIDIA's datasheets print twice these where
# they assume sparsity.
PEAK_BF16_FLOPS = {
    "A100": 312e12,  # NVIDIA A100 Tensor Core GPU datasheet, 2021
    "H100 PCIe": 756e12,  # NVIDIA H100 Tensor Core GPU datasheet, 2023
    "H100": 989e12,  # the same, SXM5
    "H200": 989e12,  # NVIDIA H200 Tensor Core GPU datasheet, 2024
    "L4": 121e12,  # NVIDIA L4 Tensor Core GPU datasheet, 2023
}


@dataclass(frozen=True)
class Machine:
    """What this process computes on; `peak_flops` is that of the devices of its whole team."""

    accelerator: str
    device: str
    threads: int
    peak_flops: float | None


def prepare_machine(config: TrainerConfig, workers: Workers) -> Machine:
    """Choose this process's device and threads, and forget what earlier jobs needed of them.

    Raises:
        ConfigError: if there is no such device.
    """
    accelerator = resolve_accelerator(config)
    threads = set_threads(config)
    if accelerator == "gpu":
        torch.cuda.set_device(workers.local_rank)
    device = device_name(accelerator)
    reset_peak_memory(accelerator)
    peak = peak_flops(device, config.precision)
    return Machine(
        accelerator, device, threads, None if peak is None else peak * workers.world_size
    )


def resolve_accelerator(config: TrainerConfig) -> str:
    """`cpu` or `gpu`.

    Raises:
        ConfigError: if a GPU is asked for and torch sees none, or fewer than processes on this node.
    """
    if config.accelerator == "auto":
        accelerator = "gpu" if torch.cuda.is_available() else "cpu"
    else:
        accelerator = config.accelerator
    if accelerator == "gpu" and not torch.cuda.is_available():
        rule = "torch sees no CUDA device here"
        raise ConfigError([Problem("trainer.accelerator", "gpu", rule, "use trainer=cpu")])
    if accelerator == "gpu" and torch.cuda.device_count() < config.devices:
        rule = (
            f"torch sees {torch.cuda.device_count()} CUDA devices here, and each process needs one"
        )
        fix = "of Slurm ask for --gpus-per-node, so that a task sees them all"
        raise ConfigError([Problem("trainer.devices", config.devices, rule, fix)])
    return accelerator


def set_threads(config: TrainerConfig) -> int:
    """Fix the CPU threads of this process; sums are rounded differently with other counts."""
    threads = config.threads or max(1, available_cores() // config.devices)
    torch.set_num_threads(threads)
    return threads


def device_name(accelerator: str) -> str:
    return torch.cuda.get_device_name() if accelerator == "gpu" else "cpu"


def peak_flops(device: str, precision: str) -> float | None:
    """Dense peak FLOP/s of a device, None unless the device and precision are in the table.

    NVL parts and MIG slices carry a name of the table with another peak, so they have none here.
    """
    if precision != "bf16":
        return None
    words = set(re.split(r"[\s-]+", device))
    if words & {"NVL", "MIG"}:
        return None
    matches = [name for name in PEAK_BF16_FLOPS if words.issuperset(name.split())]
    return PEAK_BF16_FLOPS[max(matches, key=len)] if matches else None


def reset_peak_memory(accelerator: str) -> None:
    """Forget what earlier jobs of this process needed, where the system allows it."""
    if accelerator == "gpu":
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the resident peak (proc(5))


def peak_memory_bytes(accelerator: str) -> int:
    """Largest memory since the reset: of the GPU's allocator, or resident on CPU."""
    if accelerator == "gpu":
        return torch.cuda.max_memory_allocated()
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return resident if sys.platform == "darwin" else resident * 1024
