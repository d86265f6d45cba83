"""Tests that need a CUDA device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from slm.model.attention import attend
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


def test_peak_flops_of_this_device_is_plausible_or_none() -> None:
    peak = peak_flops(torch.cuda.get_device_name(), "bf16")
    assert peak is None or 1e13 < peak < 1e16
