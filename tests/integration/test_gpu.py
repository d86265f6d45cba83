"""What only a CUDA device can show."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from slm.model.attention import attend
from slm.run.spec import RunSpec
from slm.tracking.run_dir import RunDirectory
from slm.training.hardware import peak_flops
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
    # 20 steps apart in rounding: fp32 agrees to 1e-3; bf16 has 8 bits of mantissa.
    assert losses[1] == pytest.approx(losses[0], rel=1e-3 if precision == "fp32" else 2e-2)


@pytest.mark.parametrize("groups", [6, 2, 1])
@pytest.mark.parametrize("packed", [False, True])
def test_flash_attention_agrees(groups: int, packed: bool) -> None:
    pytest.importorskip("flash_attn")
    torch.manual_seed(0)
    sizes = [(2, 6, 40, 32), (2, groups, 40, 32), (2, groups, 40, 32)]
    q, k, v = (torch.randn(size, device="cuda", dtype=torch.bfloat16) for size in sizes)
    documents = torch.arange(40, device="cuda").div(13, rounding_mode="floor").repeat(2, 1)
    given = documents if packed else None
    exact = attend(q.float(), k.float(), v.float(), "reference", given)
    # bf16 keeps 8 bits: each of the mixed values is off by up to 2^-8 of unit normals.
    torch.testing.assert_close(attend(q, k, v, "flash", given).float(), exact, rtol=2e-2, atol=2e-2)
    if not packed:  # decoding: the last query alone
        last = attend(q[:, :, -1:], k, v, "flash").float()
        torch.testing.assert_close(last, exact[:, :, -1:], rtol=2e-2, atol=2e-2)


def test_the_peak_of_this_device_is_known_or_null() -> None:
    peak = peak_flops(torch.cuda.get_device_name(), "bf16")
    assert peak is None or 1e13 < peak < 1e16
