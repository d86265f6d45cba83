"""Device of a run: peak FLOP/s by name, bf16 on CPUs, threads, and deterministic kernels."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
import torch

from slm.config.schema import TrainerConfig
from slm.cores import available_cores
from slm.errors import ConfigError
from slm.run.spec import RunSpec
from slm.training.device import accelerator
from slm.training.device.accelerator import (
    check_precision,
    cores_of_process,
    describe_gpu,
    peak_flops,
    prepare_machine,
    set_deterministic,
    set_threads,
)
from slm.training.distributed.workers import SINGLE_PROCESS
from tests.running import run_to_end

# Names as torch.cuda.get_device_name returns them, with the peak in TFLOP/s of the datasheet.
PEAKS = {
    "NVIDIA A10": 125,
    "NVIDIA A100-SXM4-40GB": 312,
    "NVIDIA A100-SXM4-80GB": 312,
    "NVIDIA A100 80GB PCIe": 312,
    "NVIDIA A100-PCIE-40GB": 312,
    "A100-SXM4-40GB": 312,  # of drivers before 2021
    "NVIDIA B200": 2250,
    "NVIDIA GH200 480GB": 989,
    "NVIDIA H100 80GB HBM3": 989,
    "NVIDIA H100 NVL": 835,
    "NVIDIA H100 PCIe": 756,
    "NVIDIA H200": 989,
    "NVIDIA L4": 121,
    "NVIDIA L40S": 362,
    "NVIDIA GeForce RTX 4090": 165.2,
}
UNKNOWN = [
    "NVIDIA A10G",
    "NVIDIA A100-SXM4-80GB MIG 1g.10gb",
    "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
    "NVIDIA H100 NVL MIG 1g.12gb",
    "NVIDIA H200 MIG 1g.18gb",
    "NVIDIA H200 NVL",
    "NVIDIA H800",
    "NVIDIA GB200",
    "NVIDIA L40",
    "NVIDIA GeForce RTX 4090 D",
    "NVIDIA GeForce RTX 4090 Laptop GPU",
    "Tesla V100-SXM2-32GB",
    "cpu",
]
BF16 = TrainerConfig(precision="bf16", accelerator="cpu")


@pytest.mark.parametrize(("device", "teraflops"), PEAKS.items())
def test_peak_flops_of_known_devices(device: str, teraflops: float) -> None:
    assert peak_flops(device, "bf16") == pytest.approx(teraflops * 1e12)
    assert peak_flops(device, "fp32") is None


@pytest.mark.parametrize("device", UNKNOWN)
def test_other_devices_have_no_peak(device: str) -> None:
    assert peak_flops(device, "bf16") is None


def test_bf16_needs_a_cpu_with_bf16_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerator, "cpu_multiplies_bf16", lambda: False)
    with pytest.raises(ConfigError, match=r"has no bf16 instructions.*use trainer=cpu"):
        check_precision(BF16, "cpu")
    check_precision(TrainerConfig(precision="fp32"), "cpu")
    check_precision(BF16, "gpu")
    for answer in (True, None):  # None: the system does not say
        monkeypatch.setattr(accelerator, "cpu_multiplies_bf16", lambda: answer)  # noqa: B023
        check_precision(BF16, "cpu")


def test_bf16_error_is_raised_before_training(
    tiny_spec: Callable[..., RunSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accelerator, "cpu_multiplies_bf16", lambda: False)
    spec = tiny_spec(trainer={"precision": "bf16"})  # a config for another machine is valid
    with pytest.raises(ConfigError, match=r"trainer\.precision=bf16: this CPU"):
        run_to_end(spec)


@pytest.fixture
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_threads")
def test_gpu_processes_use_no_more_threads_than_their_share_of_cores() -> None:
    cores = available_cores()
    assert set_threads(TrainerConfig(threads=4 * cores), "gpu") == cores == torch.get_num_threads()
    assert set_threads(TrainerConfig(threads=1), "gpu") == 1
    many = TrainerConfig(strategy="ddp", devices=2 * cores, threads=8)
    assert set_threads(many, "gpu") == 1
    # On a CPU the number of threads changes rounding, so it is exactly the configured one.
    assert set_threads(TrainerConfig(threads=cores + 1)) == cores + 1 == torch.get_num_threads()


def test_slurm_tasks_have_cores_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerator, "available_cores", lambda: 8)
    four = TrainerConfig(strategy="ddp", devices=4)
    task = {"SLURM_CPUS_PER_TASK": "6", "SLURM_STEP_NUM_TASKS": "4"}
    assert cores_of_process(four, task) == 6
    assert cores_of_process(four, {**task, "SLURM_CPUS_PER_TASK": "16"}) == 8
    assert cores_of_process(four, {**task, "RANK": "0"}) == 2  # torchrun in a task
    assert cores_of_process(four, {"SLURM_STEP_NUM_TASKS": "4"}) == 2
    assert cores_of_process(four, {}) == 2 and cores_of_process(TrainerConfig(), {}) == 8


@pytest.fixture
def _kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic = False
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


@pytest.mark.usefixtures("_kernels", "_threads")
def test_deterministic_kernels_are_switched_on_and_off_for_each_job() -> None:
    prepare_machine(TrainerConfig(accelerator="cpu", threads=1, deterministic=True), SINGLE_PROCESS)
    assert torch.are_deterministic_algorithms_enabled() and torch.backends.cudnn.deterministic
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    prepare_machine(TrainerConfig(accelerator="cpu", threads=1), SINGLE_PROCESS)
    assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.deterministic


@pytest.mark.usefixtures("_kernels")
def test_deterministic_kernels_keep_a_given_cublas_workspace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    set_deterministic(True)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def test_gpu_versions_are_null_without_a_gpu() -> None:
    found = describe_gpu()
    assert set(found) == {"cuda", "cudnn", "nccl", "driver"}
    assert all((version is not None) == torch.cuda.is_available() for version in found.values())
