"""The CPU RMSNorm against torch's RMSNorm, forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from slm.model.norm import RMSNorm

pytestmark = pytest.mark.numeric

SIZE, EPS = 24, 1e-3


def norms(dtype: torch.dtype) -> tuple[RMSNorm, nn.RMSNorm, Tensor, Tensor]:
    """Return our norm, torch's with the same gain, a transposed input, and an output gradient."""
    generator = torch.manual_seed(0)
    ours, theirs = RMSNorm(SIZE, EPS).to(dtype), nn.RMSNorm(SIZE, eps=EPS).to(dtype)
    nn.init.normal_(ours.weight, mean=1, std=0.3, generator=generator)
    theirs.load_state_dict(ours.state_dict())
    x, grad_y = (torch.randn(2, 5, 3, SIZE, generator=generator, dtype=dtype) for _ in range(2))
    return ours, theirs, x.transpose(1, 2).requires_grad_(), grad_y.transpose(1, 2)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_equals_torch(dtype: torch.dtype, rtol: float) -> None:
    ours, theirs, x, grad_y = norms(dtype)
    actual, expected = ours(x), theirs(x)
    assert actual.dtype == dtype
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=rtol)
    for actual_grad, expected_grad in zip(
        torch.autograd.grad(actual, (x, ours.weight), grad_y),
        torch.autograd.grad(expected, (x, theirs.weight), grad_y),
        strict=True,
    ):
        torch.testing.assert_close(actual_grad, expected_grad, rtol=rtol, atol=rtol)
    torch.testing.assert_close(ours(x, 0.3), 0.3 * expected, rtol=rtol, atol=rtol)


def test_gradients_equal_finite_differences() -> None:
    ours, _, x, _ = norms(torch.float64)
    assert torch.autograd.gradcheck(lambda x, _: ours(x, 0.7), (x, ours.weight))


def test_autocast_computes_in_fp32_and_returns_bf16() -> None:
    ours, theirs, x, grad_y = norms(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        actual = ours(x)
    expected = theirs(x)
    # The result is rounded to bf16 once, at the end.
    torch.testing.assert_close(actual, expected.bfloat16(), rtol=2**-8, atol=0)
    actual_grads = torch.autograd.grad(actual, (x, ours.weight), grad_y.bfloat16())
    grad_y_rounded = grad_y.bfloat16().float()
    expected_grads = torch.autograd.grad(expected, (x, theirs.weight), grad_y_rounded)
    for actual_grad, expected_grad in zip(actual_grads, expected_grads, strict=True):
        assert actual_grad.dtype == torch.float32
        torch.testing.assert_close(actual_grad, expected_grad, rtol=1e-5, atol=1e-5)
