"""Free memory of the device, the micro-batch that fits, and advice when memory runs out."""

from __future__ import annotations

import gc
import logging
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from slm.architecture.memory import format_bytes
from slm.errors import RunError
from slm.files import read_json
from slm.model.out_of_memory import is_out_of_memory
from slm.run.micro_batch import (
    MicroBatch,
    choose_micro_batch,
    format_usable_memory,
    micro_batch_of,
    requested_sequences,
    suggest_less_memory,
    usable_memory,
)
from slm.run.spec import RunSpec
from slm.tracking.run_dir import RunDirectory
from slm.training.distributed.workers import Workers

log = logging.getLogger(__name__)
# cgroups of version 2 and of version 1: where they are, their limit, what is used of it, and what of
# that is files that the system would give up.
CGROUPS = {
    "": ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    "memory": (
        "/sys/fs/cgroup/memory",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_inactive_file",
    ),
}


def settle_micro_batch(
    spec: RunSpec, run: RunDirectory, accelerator: str, free: int | None = None
) -> MicroBatch:
    """Return the configured micro-batch, or the one that auto chooses; a resumed run keeps its size if it fits.

    `free` is the free memory in bytes, the smallest of all ranks; None means that of this process.

    Raises:
        ConfigError: if one sequence does not fit.
    """
    if free is None:
        free = free_bytes(accelerator, spec.config.trainer.gpu_memory_fraction)
    requested = requested_sequences(spec)
    if requested is None:
        chosen = choose_micro_batch(spec, accelerator, free, _chosen_before(run))
        log.info(
            "micro-batches of %d of %d sequences: %s predicted, %s",
            chosen.sequences, chosen.rank_sequences, format_bytes(chosen.plan.total_bytes),
            format_usable_memory(free, accelerator),
        )  # fmt: skip
        return chosen
    fixed = micro_batch_of(spec, accelerator, requested)
    if fixed.plan.total_bytes > usable_memory(free, accelerator):
        log.warning(
            "WARN %d sequences at once are predicted to need %s, and %s; %s",
            fixed.sequences, format_bytes(fixed.plan.total_bytes), format_usable_memory(free, accelerator),
            suggest_less_memory(spec, accelerator, fixed),
        )  # fmt: skip
    return fixed


def _chosen_before(run: RunDirectory) -> int | None:
    with suppress(OSError, ValueError, KeyError):
        return int(read_json(run.path / "env.json")["memory"]["micro_batch_sequences"])
    return None


@contextmanager
def advise_on_oom(
    spec: RunSpec, accelerator: str, micro_batch: MicroBatch, workers: Workers
) -> Iterator[None]:
    """Replace an out-of-memory error by a RunError that lists changes which need less memory.

    One of several ranks logs the advice and raises the original error, which the other ranks do not share.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        message = _advice(error, spec, accelerator, micro_batch)
        if workers.world_size > 1:
            log.critical("process %d: %s", workers.rank, message)
            raise
        raise RunError(message) from error


def _advice(error: BaseException, spec: RunSpec, accelerator: str, micro_batch: MicroBatch) -> str:
    plan = micro_batch.plan
    parts = ", ".join(f"{part} {format_bytes(n)}" for part, n in plan.parts().items() if n)
    reason = str(error).strip().splitlines()
    return (
        f"out of memory: {reason[0] if reason else type(error).__name__}\n"
        f"predicted for {micro_batch.sequences} sequences at once: {format_bytes(plan.total_bytes)}, "
        f"for {plan.moment} ({parts})\n"
        f"for less: {suggest_less_memory(spec, accelerator, micro_batch)}\n"
        "the same command with such a change continues from the newest checkpoint"
    )


def free_bytes(accelerator: str, gpu_memory_fraction: float | None = None) -> int:
    """Return the bytes that this process could allocate on its GPU, or on the machine within its limits.

    `gpu_memory_fraction` is the share of the GPU's memory that this process may use; None means all of it.
    """
    if accelerator == "gpu":
        gc.collect()  # an earlier run of this process
        free, total = torch.cuda.mem_get_info()
        reserved, allocated = torch.cuda.memory_reserved(), torch.cuda.memory_allocated()
        return unused_bytes(free, total, reserved, allocated, gpu_memory_fraction)
    return min([_free_of_machine(), *_free_of_cgroups(), *_free_of_address_space()])


def unused_bytes(
    free: int, total: int, reserved: int, allocated: int, fraction: float | None
) -> int:
    """Return the bytes that a process can still allocate on a GPU, of `free` and of its share of `total`.

    `reserved` is what its allocator holds, of which `allocated` is in use.
    """
    available = free + reserved
    if fraction is not None:
        available = min(available, int(fraction * total))
    return max(0, available - allocated)


def _free_of_machine() -> int:
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            name, _, amount = line.partition(":")
            if name == "MemAvailable":
                return int(amount.split()[0]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _free_of_address_space() -> Iterator[int]:
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return
    with suppress(OSError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        yield limit - pages * os.sysconf("SC_PAGE_SIZE")


def _free_of_cgroups() -> Iterator[int]:
    """Yield the free bytes of each cgroup of this process and of its parents."""
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers in CGROUPS:
                root, limit, used, files = CGROUPS[controllers]
                own = Path(root, path.lstrip("/"))
                for group in (own, *(p for p in own.parents if p.is_relative_to(root))):
                    yield from _free_of_cgroup(group, limit, used, files)


def _free_of_cgroup(group: Path, limit: str, used: str, files: str) -> Iterator[int]:
    with suppress(OSError, ValueError):  # memory.max is the word `max` without a limit
        allowed, taken = (int((group / name).read_text()) for name in (limit, used))
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        yield allowed - taken + int(stat.get(files, 0))
