"""The operations of a training step on CUDA, recorded on a device without memory; no GPU is needed.

A subprocess runs the steps, since the device replaces a part of torch (fake_cuda.cpp). It shows
synchronisations, dtypes and the number of kernels; not which attention kernel torch chooses, nor numbers.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import ROOT, cli_env
from tests.slm.model import fake_cuda_cases

HERE = Path(__file__).parent
TORCH = Path(torch.__file__).parent
SYNCHRONISING = {"_local_scalar_dense", "is_nonzero", "item", "nonzero", "equal", "masked_select"}
# torch.use_deterministic_algorithms rejects these on CUDA, in torch 2.10 to 2.13.
NONDETERMINISTIC = {
    "bincount",
    "histc",
    "index_reduce",
    "nll_loss_forward",
    "put_",
    "scatter_add",
    "scatter_add_",
    "scatter_reduce",
}


def reason_to_skip() -> str | None:
    if not sys.platform.startswith("linux") or torch.backends.cuda.is_built():
        return "needs a CPU build of torch on Linux"
    if shutil.which("g++") is None or not (TORCH / "include/ATen/detail").exists():
        return "needs g++ and the headers of torch"
    matrix = torch.empty(2, 2, dtype=torch.bfloat16, device="meta")
    try:
        torch.addmm(matrix.float(), matrix, matrix, out_dtype=torch.float32)
    except (RuntimeError, TypeError):
        return "this version of torch cannot trace addmm with out_dtype"
    return None


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    reason = reason_to_skip()
    if reason is not None:
        pytest.skip(reason)
    library = tmp_path_factory.mktemp("fake_cuda") / "fake_cuda.so"
    paths = [f"-I{TORCH / 'include'}", f"-L{TORCH / 'lib'}", f"-Wl,-rpath,{TORCH / 'lib'}"]
    compiler = ["g++", "-std=c++20", "-O0", "-shared", "-fPIC", str(HERE / "fake_cuda.cpp"), *paths]
    subprocess.run([*compiler, "-ltorch_cpu", "-lc10", "-o", str(library)], check=True)
    child = subprocess.run(
        [sys.executable, "-m", "tests.slm.model.fake_cuda_steps", str(library)],
        cwd=ROOT,
        env=cli_env(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    result: dict[str, Any] = json.loads(child.stdout)
    return result


@pytest.mark.parametrize("name", fake_cuda_cases.CASES)
def test_step_never_waits_for_the_gpu(recorded: dict[str, Any], name: str) -> None:
    step = recorded["steps"][name]
    assert step["host_copies"] == []
    assert SYNCHRONISING.isdisjoint(step["kernels"])
    assert step["kernels"]["_fused_adamw_"] == 1


@pytest.mark.parametrize("name", fake_cuda_cases.CASES)
def test_step_uses_no_operation_that_deterministic_mode_rejects(
    recorded: dict[str, Any], name: str
) -> None:
    assert NONDETERMINISTIC.isdisjoint(recorded["steps"][name]["kernels"])


@pytest.mark.parametrize("name", fake_cuda_cases.CASES)
def test_matrix_products_use_the_autocast_dtype_and_gradients_are_fp32(
    recorded: dict[str, Any], name: str
) -> None:
    step, is_fp32 = recorded["steps"][name], name.startswith("fp32")
    assert step["matmul_dtypes"] == ["torch.float32" if is_fp32 else "torch.bfloat16"]
    assert step["gradient_dtypes"] == ["torch.float32"] * step["parameters"]


@pytest.mark.parametrize(
    ("dtype", "z_loss", "bound"),
    [("bfloat16", 0.0, 17), ("bfloat16", 1e-4, 30), ("float32", 0.0, 15), ("float32", 1e-4, 28)],
)
def test_a_loss_chunk_launches_few_kernels(
    recorded: dict[str, Any], dtype: str, z_loss: float, bound: int
) -> None:
    kernels = recorded["kernels_per_loss_chunk"][f"torch.{dtype}, z_loss={z_loss}"]
    assert sum(kernels.values()) <= bound
    assert kernels["mm"] == 2  # the third product adds to the head's gradient in place
    assert kernels["addmm" if dtype == "bfloat16" else "addmm_"] == 1
    assert ("pow" in kernels) == (z_loss > 0)


def test_32_sequences_of_2048_tokens_are_16_loss_chunks(recorded: dict[str, Any]) -> None:
    assert recorded["steps"]["default"]["kernels"]["_log_softmax"] == 16


def test_documents_use_the_varlen_kernel_and_one_layout_per_batch(recorded: dict[str, Any]) -> None:
    for name, passes in (("document_mask", 1), ("checkpointing and document_mask", 2)):
        kernels = recorded["steps"][name]["kernels"]
        assert kernels["searchsorted"] == kernels["_assert_async"] == 1
        assert kernels["_varlen_attn"] == passes * fake_cuda_cases.SHAPE.n_layers
        assert kernels["_varlen_attn_backward"] == fake_cuda_cases.SHAPE.n_layers
        assert {"bmm", "tril"}.isdisjoint(kernels)
    assert "searchsorted" not in recorded["steps"]["fp32 and document_mask"]["kernels"]


def test_grouped_queries_are_expanded_where_no_fused_kernel_has_them(
    recorded: dict[str, Any],
) -> None:
    n_layers = fake_cuda_cases.SHAPE.n_layers
    for name, expected in (("default", True), ("fp32", False), ("fp32 and document_mask", False)):
        assert recorded["steps"][name]["sdpa_with_grouped_queries"] == [expected] * n_layers
