"""Device of a run: choice, threads, memory limit, deterministic kernels, peak FLOP/s and library versions."""

from __future__ import annotations

import os
import re
import resource
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from slm.config.schema import TrainerConfig
from slm.cores import available_cores
from slm.errors import ConfigError, Problem
from slm.tracking.environment import (
    cpu_instruction_set,
    cpu_multiplies_bf16,
    gpu_driver_version,
)
from slm.training.distributed.workers import Workers

# Dense peak FLOP/s of tensor cores with bf16 inputs and fp32 sums, by words of the device's name. NVIDIA's
# datasheets print twice these where they assume sparsity.
PEAK_BF16_FLOPS = {
    "A10": 125e12,  # NVIDIA A10 datasheet, 2021
    "A100": 312e12,  # NVIDIA A100 Tensor Core GPU datasheet, 2021
    "B200": 2250e12,  # NVIDIA HGX B200 datasheet, 2024
    "GH200": 989e12,  # NVIDIA GH200 Grace Hopper Superchip datasheet, 2023
    "H100": 989e12,  # NVIDIA H100 Tensor Core GPU datasheet, 2023: SXM5
    "H100 NVL": 835e12,  # the same datasheet
    "H100 PCIe": 756e12,  # the same datasheet
    "H200": 989e12,  # NVIDIA H200 Tensor Core GPU datasheet, 2024
    "L4": 121e12,  # NVIDIA L4 Tensor Core GPU datasheet, 2023
    "L40S": 362e12,  # NVIDIA L40S datasheet, 2023
    "RTX 4090": 165.2e12,  # NVIDIA Ada GPU Architecture whitepaper, 2022
}
# A device with one of these words in its name has another peak than the device without it, because it is another
# chip or a slice of one; so it has a peak only if the table has it with the word.
VARIANTS = {"D", "Laptop", "MIG", "NVL"}


@dataclass(frozen=True)
class Machine:
    """Device of this process; `peak_flops` is the sum over the devices of all ranks."""

    accelerator: str
    device: str
    threads: int
    peak_flops: float | None


def prepare_machine(config: TrainerConfig, workers: Workers) -> Machine:
    """Choose this process's device and threads, and undo the settings of earlier jobs of this process.

    Raises:
        ConfigError: if there is no such device, or the CPU has no bf16 instructions and the config needs them.
    """
    accelerator = resolve_accelerator(config)
    check_precision(config, accelerator)
    threads = set_threads(config, accelerator)
    set_deterministic(config.deterministic)
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()  # shapes of earlier jobs count towards the limit of recompilations
    if accelerator == "gpu":
        torch.cuda.set_device(workers.local_rank)
        torch.cuda.set_per_process_memory_fraction(config.gpu_memory_fraction or 1.0)
    device = device_name(accelerator)
    reset_peak_memory(accelerator)
    peak = peak_flops(device, config.precision)
    return Machine(
        accelerator, device, threads, None if peak is None else peak * workers.world_size
    )


def resolve_accelerator(config: TrainerConfig) -> str:
    """`cpu` or `gpu`.

    Raises:
        ConfigError: if a GPU is requested and torch sees none, or fewer than processes on this node.
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
        fix = "on Slurm, request --gpus-per-node, so that each task sees all GPUs of the node"
        raise ConfigError([Problem("trainer.devices", config.devices, rule, fix)])
    return accelerator


def check_device(config: TrainerConfig) -> None:
    """Raise a ConfigError if this machine cannot train with the accelerator and precision of a config."""
    check_precision(config, resolve_accelerator(config))


def check_precision(config: TrainerConfig, accelerator: str) -> None:
    """Raise a ConfigError for bf16 on a CPU that would emulate it, several times slower than fp32."""
    if accelerator == "gpu" or config.precision != "bf16" or cpu_multiplies_bf16() is not False:
        return
    rule = f"this CPU ({cpu_instruction_set()}) has no bf16 instructions: AVX512-BF16 or AMX-BF16"
    fix = "use trainer=cpu, which trains in fp32; precision is part of a run's identity"
    raise ConfigError([Problem("trainer.precision", "bf16", rule, fix)])


def set_threads(config: TrainerConfig, accelerator: str = "cpu") -> int:
    """Set and return the CPU threads of this process.

    On a CPU the number changes how sums are rounded, so it is what the config says. On a GPU it does not, and
    is at most this process's share of the cores.
    """
    share = cores_of_process(config, os.environ)
    threads = config.threads or share
    if accelerator == "gpu":
        threads = min(threads, share)
    torch.set_num_threads(threads)
    return threads


def cores_of_process(config: TrainerConfig, environ: Mapping[str, str]) -> int:
    """Return the cores for one process: those of its Slurm task, else its share of the cores of this machine.

    The processes of torchrun share the cores that they see, also inside a Slurm job.
    """
    cores, of_task = available_cores(), environ.get("SLURM_CPUS_PER_TASK")
    if of_task and "SLURM_STEP_NUM_TASKS" in environ and "RANK" not in environ:
        return min(cores, int(of_task))
    return max(1, cores // config.devices)


def set_deterministic(enabled: bool) -> None:
    """Switch torch to deterministic kernels, or back; an operator without one then raises a RuntimeError.

    cuBLAS reads its variable once per process, at the first matrix product, so it is never removed again.
    """
    if enabled:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(enabled)
    torch.backends.cudnn.deterministic = enabled


def describe_gpu() -> dict[str, str | None]:
    """Return the versions of CUDA, cuDNN, NCCL and the driver, for env.json; all None without a GPU."""
    if not torch.cuda.is_available():
        return dict.fromkeys(("cuda", "cudnn", "nccl", "driver"))
    cudnn, has_nccl = torch.backends.cudnn.version(), torch.distributed.is_nccl_available()
    return {
        "cuda": torch.version.cuda,
        "cudnn": None if cudnn is None else str(cudnn),
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if has_nccl else None,
        "driver": gpu_driver_version(),
    }


def device_name(accelerator: str) -> str:
    return torch.cuda.get_device_name() if accelerator == "gpu" else "cpu"


def peak_flops(device: str, precision: str) -> float | None:
    """Return the dense peak FLOP/s of a device; None unless the device and precision are in the table.

    `device` is a name as from torch.cuda.get_device_name, such as `NVIDIA H100 80GB HBM3`.
    """
    if precision != "bf16":
        return None
    words = set(re.split(r"[\s-]+", device))
    matches = [name for name in PEAK_BF16_FLOPS if words.issuperset(name.split())]
    if not matches:
        return None
    name = max(matches, key=len)
    is_variant = bool((words & VARIANTS) - set(name.split()))
    return None if is_variant else PEAK_BF16_FLOPS[name]


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
