"""Tests that need a CUDA device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from slm.architecture import loss_chunks
from slm.model.attention import attend
from slm.model.loss import chunk_loss, compile_chunk_loss, head_loss
from slm.run.spec import RunSpec
from slm.tracking.run_dir import RunDirectory
from slm.training.device.accelerator import peak_flops
from slm.training.runner import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_on_a_gpu_agrees_with_the_cpu(
    tiny_spec: Callable[..., RunSpec], tmp_path: Path, precision: str
) -> None:
    losses = []
    for accelerator, chosen in (("cpu", "fp32"), ("gpu", precision)):
        trainer = {"accelerator": accelerator, "precision": chosen}
        spec = tiny_spec(trainer=trainer, runs_dir=str(tmp_path / accelerator))
        run = RunDirectory.of(spec)
        with run.claim(spec, rerun=True):
            result = train(spec, run)
        assert result.val_loss_nats_per_token is not None
        losses.append(result.val_loss_nats_per_token)
    # Rounding differs over 20 steps: fp32 agrees to 1e-3; bf16 has 8 significant bits.
    assert losses[1] == pytest.approx(losses[0], rel=1e-3 if precision == "fp32" else 2e-2)


@pytest.mark.parametrize("groups", [6, 2, 1])
@pytest.mark.parametrize("packed", [False, True])
def test_flash_attention_equals_reference(groups: int, packed: bool) -> None:
    pytest.importorskip("flash_attn")
    torch.manual_seed(0)
    sizes = [(2, 6, 40, 32), (2, groups, 40, 32), (2, groups, 40, 32)]
    q, k, v = (torch.randn(size, device="cuda", dtype=torch.bfloat16) for size in sizes)
    documents = torch.arange(40, device="cuda").div(13, rounding_mode="floor").repeat(2, 1)
    mask = documents if packed else None
    expected = attend(q.float(), k.float(), v.float(), "reference", mask)
    # bf16 has 8 significant bits: outputs, of the size of unit normals, have errors of up to 2^-8.
    output = attend(q, k, v, "flash", mask).float()
    torch.testing.assert_close(output, expected, rtol=2e-2, atol=2e-2)
    if not packed:  # the last query alone, as in decoding
        last = attend(q[:, :, -1:], k, v, "flash").float()
        torch.testing.assert_close(last, expected[:, :, -1:], rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("groups", [6, 2, 1])
def test_attention_over_documents_equals_reference(groups: int, dtype: torch.dtype) -> None:
    """bf16 uses the varlen kernel, fp32 an additive mask."""
    torch.manual_seed(0)
    sizes = [(2, 6, 40, 32), (2, groups, 40, 32), (2, groups, 40, 32)]
    inputs = [torch.randn(size, device="cuda", dtype=dtype, requires_grad=True) for size in sizes]
    documents = torch.arange(40, device="cuda").div(13, rounding_mode="floor").repeat(2, 1)
    results = []
    for backend, kind in (("sdpa", dtype), ("reference", torch.float32)):
        output = attend(*(x.to(kind) for x in inputs), backend, documents).float()
        results.append([output, *torch.autograd.grad(output.square().sum(), inputs)])
    tolerance = 5e-2 if dtype == torch.bfloat16 else 1e-4
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual.float(), expected.float(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
def test_head_loss_on_a_gpu_agrees_with_the_cpu(
    z_loss: float, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss_chunks, "GPU_LOGITS", 300 * 1000)  # 4 chunks of 256 tokens
    torch.manual_seed(0)
    hidden, weight = torch.randn(4, 256, 64), torch.randn(1000, 64) / 8
    targets = torch.randint(1000, (4, 256))
    results = []
    for device in ("cpu", "cuda"):
        h, w = (x.detach().to(device, copy=True).requires_grad_() for x in (hidden, weight))
        body = compile_chunk_loss() if compiled and device == "cuda" else chunk_loss
        with torch.autocast(device, torch.bfloat16):
            sums = head_loss(h, w, targets.to(device), z_loss, per_chunk=body)
        gradients = torch.autograd.grad(sums.objective, (h, w))
        results.append([x.cpu() for x in (*sums, *gradients)])
    # Both use the same bf16 inputs; logits are rounded to bf16 after sums in different orders.
    for expected, actual in zip(*results, strict=True):
        atol = 2e-2 * expected.abs().max().item()
        torch.testing.assert_close(actual, expected, rtol=2e-2, atol=atol)


def test_peak_flops_of_this_device_is_plausible_or_none() -> None:
    peak = peak_flops(torch.cuda.get_device_name(), "bf16")
    assert peak is None or 1e13 < peak < 1e16
