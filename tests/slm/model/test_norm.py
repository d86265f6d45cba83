"""RMSNorm on CPU against torch's, forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from slm.model.norm import RMSNorm

SIZE, EPS = 24, 1e-3


def norms(dtype: torch.dtype) -> tuple[RMSNorm, nn.RMSNorm, Tensor, Tensor]:
    """Ours, torch's with the same gain, inputs in a transposed order, and a gradient."""
    generator = torch.manual_seed(0)
    ours, theirs = RMSNorm(SIZE, EPS).to(dtype), nn.RMSNorm(SIZE, eps=EPS).to(dtype)
    nn.init.normal_(ours.weight, mean=1, std=0.3, generator=generator)
    theirs.load_state_dict(ours.state_dict())
    x, by_y = (torch.randn(2, 5, 3, SIZE, generator=generator, dtype=dtype) for _ in range(2))
    return ours, theirs, x.transpose(1, 2).requires_grad_(), by_y.transpose(1, 2)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_it_equals_torchs(dtype: torch.dtype, rtol: float) -> None:
    ours, theirs, x, by_y = norms(dtype)
    own, other = ours(x), theirs(x)
    assert own.dtype == dtype
    torch.testing.assert_close(own, other, rtol=rtol, atol=rtol)
    for mine, his in zip(
        torch.autograd.grad(own, (x, ours.weight), by_y),
        torch.autograd.grad(other, (x, theirs.weight), by_y),
        strict=True,
    ):
        torch.testing.assert_close(mine, his, rtol=rtol, atol=rtol)
    torch.testing.assert_close(ours(x, 0.3), 0.3 * other, rtol=rtol, atol=rtol)


def test_its_gradients_are_those_of_finite_differences() -> None:
    ours, _, x, _ = norms(torch.float64)
    assert torch.autograd.gradcheck(lambda x, _: ours(x, 0.7), (x, ours.weight))


def test_under_autocast_it_computes_in_fp32_and_gives_bf16() -> None:
    ours, theirs, x, by_y = norms(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        own = ours(x)
    other = theirs(x)
    torch.testing.assert_close(
        own, other.bfloat16(), rtol=2**-8, atol=0
    )  # rounded once, at the end
    by_own = torch.autograd.grad(own, (x, ours.weight), by_y.bfloat16())
    by_other = torch.autograd.grad(other, (x, theirs.weight), by_y.bfloat16().float())
    for mine, his in zip(by_own, by_other, strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, his, rtol=1e-5, atol=1e-5)
