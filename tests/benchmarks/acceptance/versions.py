"""Versions of driver and libraries, and the attention kernel of each kind of shape."""

from __future__ import annotations

import importlib.metadata

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from slm.config.hydra import compose_config
from slm.run.spec import RunSpec, resolve
from slm.training.device.accelerator import describe_gpu, peak_flops
from tests.benchmarks import engine
from tests.benchmarks.acceptance.rows import Options, Rows
from tests.benchmarks.peers import Mode, fixed_batch

PACKAGES = ("torch", "triton", "lightning", "transformers", "hydra-core", "omegaconf", "pydantic")
ATTENTION = ("sdpa", "flash", "fmha", "attention", "attn")  # in names of kernels, lower case
BASE = ("model=mobilellm_125m", "model.n_layers=2", "optimizer.global_batch_tokens=8192")
QUICK = (
    "model=tiny",
    "model.n_layers=1",
    "model.seq_len=64",
    "optimizer.global_batch_tokens=128",
)
# Name, precision, overrides of the shape (not in --quick), other overrides, and whether a fused kernel must run.
CASES = (
    ("bf16, d_head 64, 9 query and 3 key heads", "bf16", (), (), True),
    ("bf16, d_head 32, 18 query and 6 key heads", "bf16", ("model.n_heads=18", "model.n_kv_heads=6"), (), True),
    ("bf16, d_head 8, 72 heads", "bf16", ("model.n_heads=72", "model.n_kv_heads=72"), (), False),
    ("bf16, d_head 64, document_mask", "bf16", (), ("model.document_mask=true",), False),
    ("fp32, d_head 64, 9 query and 3 key heads", "fp32", (), (), False),
)  # fmt: skip


def run(options: Options, rows: Rows) -> None:
    _versions(options, rows)
    for name, precision, shape, switches, must_be_fused in CASES:
        base = QUICK if options.quick else (*BASE, *shape)
        mode = Mode(precision, compiled=False).overrides(options.device)
        spec = resolve(compose_config([*base, *mode, *switches]))
        kernels = attention_kernels(spec, options.device)
        check = f"attention kernels: {name}"
        if kernels is None:
            rows.skipped(check, "the profiler sees no kernel; it may need more permissions")
            continue
        shown = ", ".join(kernel[:60] for kernel in kernels) or "none of a known name (math)"
        if must_be_fused and options.on_gpu:
            rows.holds(f"{check}: fused", bool(kernels), shown)
        else:
            rows.measured(check, shown)


def _versions(options: Options, rows: Rows) -> None:
    for package in PACKAGES:
        try:
            rows.measured(package, importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            rows.skipped(package, "not installed")
    if not options.on_gpu:
        rows.skipped("driver, CUDA, cuDNN, NCCL", "no GPU in this run")
        return
    name, (major, minor) = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
    rows.measured("device", name, note=f"compute capability {major}.{minor}")
    for library, version in describe_gpu().items():
        rows.measured(library, version or "unknown")
    peak = peak_flops(name, "bf16")
    if peak is None:
        rows.skipped("dense bf16 peak", f"{name} is not in PEAK_BF16_FLOPS, so there is no MFU")
    else:
        rows.measured("dense bf16 peak", peak / 1e12, "TFLOP/s")


def attention_kernels(spec: RunSpec, device: str) -> list[str] | None:
    """Return the names of the fused attention kernels of one training step; None without a profiler.

    The math fallback runs plain matrix products and softmax, so it leaves no such name.
    """
    step, batch = engine.build_step(spec, device), fixed_batch(spec, device)
    step.take(0, batch)
    activities = [ProfilerActivity.CPU]
    if device == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiled:
        step.take(1, batch)
        if device == "cuda":
            torch.cuda.synchronize()
    kind = DeviceType.CUDA if device == "cuda" else DeviceType.CPU
    names = [event.key for event in profiled.key_averages() if event.device_type == kind]
    if not names:
        return None
    # Longer names contain arguments of templates and of functions; a math kernel is not fused.
    return [
        name.removeprefix("void ").split("<")[0].split("(")[0]
        for name in names
        if any(part in name.lower() for part in ATTENTION)
        and not any(part in name.lower() for part in ("math", "backward0", "generatedbackward"))
    ]
