"""Content of env.json: instruction set of the CPU, driver, libraries and decisions of the run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from slm.tracking import environment
from slm.tracking.environment import (
    cpu_instruction_set,
    cpu_multiplies_bf16,
    describe_environment,
    gpu_driver_version,
)

X86 = "processor : 0\nmodel name : a CPU\nflags\t\t: fpu sse2 {}\nbogomips : 1\n"
ARM = "processor : 0\nFeatures\t: fp asimd {}\n"


@pytest.mark.parametrize(
    ("cpuinfo", "instruction_set", "has_bf16"),
    [
        (X86.format("avx avx2 fma"), "AVX2", False),
        (X86.format("avx avx2 avx512f avx512bw"), "AVX512", False),
        (X86.format("avx avx2 avx512f avx512_bf16"), "AVX512-BF16", True),
        (X86.format("avx avx2 avx512f avx512_bf16 amx_bf16 amx_tile"), "AMX-BF16", True),
        (X86.format("avx"), "unknown", False),
        (ARM.format(""), "NEON", False),
        (ARM.format("sve i8mm bf16"), "ARM-BF16", True),
        ("processor : 0\n", "unknown", None),
        (None, "unknown", None),  # no such file
    ],
)
def test_instruction_set_is_read_from_cpuinfo(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cpuinfo: str | None,
    instruction_set: str,
    has_bf16: bool | None,
) -> None:
    path = tmp_path / "cpuinfo"
    if cpuinfo is not None:
        path.write_text(cpuinfo)
    monkeypatch.setattr(environment, "CPUINFO", path)
    assert cpu_instruction_set() == instruction_set
    assert cpu_multiplies_bf16() is has_bf16


def test_driver_version_is_read_if_a_driver_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "DRIVER_VERSION", tmp_path / "version")
    assert gpu_driver_version() is None
    (tmp_path / "version").write_text("580.82.07\n")
    assert gpu_driver_version() == "580.82.07"


def test_environment_has_the_decisions_of_the_run_if_they_are_given() -> None:
    without = describe_environment(device="cpu", threads=2)
    assert without["gpu"] is without["attention"] is without["compilation"] is None
    assert without["processes"] == 1 and without["threads"] == 2
    compilation = {"compiled": False, "reason": "trainer.compile=off"}
    gpu = {"cuda": "13.0", "driver": None}
    full = describe_environment(
        device="a GPU", threads=8, gpu=gpu, attention="sdpa", compilation=compilation
    )
    assert full["gpu"] == gpu and full["attention"] == "sdpa"
    assert full["compilation"] == compilation
    assert json.loads(json.dumps(full)) == full
