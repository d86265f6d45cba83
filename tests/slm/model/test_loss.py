"""The fused head and loss against the definition and against a loss with all logits stored."""

from __future__ import annotations

import math
import re
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._inductor.utils import run_and_get_code
from torch.utils._python_dispatch import TorchDispatchMode

from slm.architecture import loss_chunks
from slm.architecture.loss_chunks import chunk_tokens
from slm.architecture.shapes import ModelShape
from slm.model.loss import (
    IGNORED,
    HeadLoss,
    chunk_loss,
    compile_chunk_loss,
    head_loss,
    token_nats,
)
from slm.model.transformer import Transformer

pytestmark = pytest.mark.numeric

VOCAB_SIZE, D_MODEL, CHUNK = 13, 6, 4
Inputs = tuple[Tensor, Tensor, Tensor]


@pytest.fixture(autouse=True)
def _short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set chunks of 4 tokens, so that 2 x 7 tokens are three full chunks and a partial one."""
    monkeypatch.setattr(loss_chunks, "MIN_TOKENS", 1)
    monkeypatch.setattr(loss_chunks, "CPU_LOGITS", CHUNK * VOCAB_SIZE)


def random_inputs(dtype: torch.dtype = torch.float32) -> Inputs:
    generator = torch.manual_seed(0)
    hidden = torch.randn(2, 7, D_MODEL, generator=generator, dtype=dtype, requires_grad=True)
    weight = torch.randn(VOCAB_SIZE, D_MODEL, generator=generator, dtype=dtype, requires_grad=True)
    targets = torch.randint(VOCAB_SIZE, (2, 7), generator=generator)
    targets[0, 2], targets[1, 3:] = IGNORED, IGNORED
    return hidden, weight, targets


def plain_loss(hidden: Tensor, weight: Tensor, targets: Tensor, z_loss: float) -> Tensor:
    """Compute the objective from all logits at once; torch differentiates it."""
    logits, scored = hidden @ weight.T, targets != IGNORED
    nats = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    return nats + z_loss * logits.logsumexp(-1).square()[scored].sum()


@pytest.mark.parametrize("z_loss", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_padded_rows_change_neither_loss_nor_gradients(dtype: torch.dtype, z_loss: float) -> None:
    hidden, weight, targets = random_inputs()
    padded = torch.cat([weight.detach(), torch.full((3, D_MODEL), 5.0)]).requires_grad_()
    results = []
    for table, size in ((weight, None), (padded, VOCAB_SIZE)):
        with torch.autocast("cpu", dtype=dtype, enabled=dtype == torch.bfloat16):
            total = head_loss(hidden, table, targets, z_loss, vocab_size=size)
        gradients = torch.autograd.grad(total.objective, (hidden, table))
        results.append([total.objective, total.nats, gradients[0], gradients[1][:VOCAB_SIZE]])
    assert not gradients[1][VOCAB_SIZE:].any(), "padded rows must stay as they are"
    # Rounding: a matmul with another number of columns may add in another order.
    tolerance = 1e-5 if dtype == torch.float32 else 5e-2
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def test_nats_equal_log_probability_and_ignored_targets_count_zero() -> None:
    logits, targets = torch.randn(2, 5, 7), torch.randint(7, (2, 5))
    targets[1, 3:] = IGNORED
    nats = token_nats(logits, targets).reshape(2, 5)
    # With an identity matrix as head, the hidden states are the logits.
    total = head_loss(logits, torch.eye(7), targets).nats
    p, expected_total = logits.double().softmax(-1), 0.0
    for b, t in np.ndindex(2, 5):
        expected = 0.0 if targets[b, t] == IGNORED else -math.log(p[b, t, targets[b, t]])
        assert nats[b, t].item() == pytest.approx(expected, abs=1e-5)
        expected_total += expected
    assert total.item() == pytest.approx(expected_total, rel=1e-6)


def test_chunk_on_cpu_is_16_mib_of_logits_or_256_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert chunk_tokens(4096, 10_000, on_gpu=False) == 1024
    assert chunk_tokens(32_000, 10_000, on_gpu=False) == 256


@pytest.mark.parametrize("tokens", [1, 100, 2048, 5000, 32 * 2048, 250 * 2048])
@pytest.mark.parametrize("vocab_size", [99, 4096, 32_000, 50_257, 128_256])
def test_chunks_on_gpu_are_few_and_equal_and_take_512_mib(
    monkeypatch: pytest.MonkeyPatch, vocab_size: int, tokens: int
) -> None:
    monkeypatch.undo()
    size = chunk_tokens(vocab_size, tokens, on_gpu=True)
    assert 4 * size * vocab_size <= 2**29
    count, largest = math.ceil(tokens / size), 2**27 // vocab_size // 64 * 64
    assert count == math.ceil(tokens / largest)
    assert count * size - tokens < 64 * count
    if (vocab_size, tokens) == (32_000, 32 * 2048):
        assert (size, count) == (4096, 16)


@pytest.mark.parametrize("z_loss", [0.0, 0.3])
@pytest.mark.parametrize("chunk_tokens", [1, 4, 14, 100])
def test_equals_plain_loss(
    z_loss: float, chunk_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss_chunks, "CPU_LOGITS", chunk_tokens * VOCAB_SIZE)
    hidden, weight, targets = random_inputs(torch.float64)
    ours = head_loss(hidden, weight, targets, z_loss)
    expected = plain_loss(hidden, weight, targets, z_loss)
    torch.testing.assert_close(ours.objective, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(
        ours.nats, plain_loss(hidden, weight, targets, 0), rtol=1e-12, atol=0
    )
    assert not ours.nats.requires_grad
    for actual_grad, expected_grad in zip(
        torch.autograd.grad(ours.objective / 3, (hidden, weight)),
        torch.autograd.grad(expected / 3, (hidden, weight)),
        strict=True,
    ):
        torch.testing.assert_close(actual_grad, expected_grad, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("z_loss", [0.0, 0.3])
def test_gradients_equal_finite_differences(z_loss: float) -> None:
    hidden, weight, targets = random_inputs(torch.float64)
    assert torch.autograd.gradcheck(
        lambda h, w: head_loss(h, w, targets, z_loss).objective, (hidden, weight)
    )


def test_fp32_error_is_rounding() -> None:
    hidden, weight, targets = random_inputs()
    ours, expected = (
        head_loss(hidden, weight, targets, 0.3),
        plain_loss(hidden, weight, targets, 0.3),
    )
    assert ours.objective.dtype == torch.float32 and ours.nats.dtype == torch.float64
    torch.testing.assert_close(ours.objective, expected, rtol=1e-6, atol=0)
    for actual_grad, expected_grad in zip(
        torch.autograd.grad(ours.objective, (hidden, weight)),
        torch.autograd.grad(expected, (hidden, weight)),
        strict=True,
    ):
        torch.testing.assert_close(actual_grad, expected_grad, rtol=1e-5, atol=1e-5)


def test_autocast_uses_bf16_products_and_fp32_sums() -> None:
    hidden, weight, targets = random_inputs()
    with torch.autocast("cpu", torch.bfloat16):
        ours = head_loss(hidden, weight, targets)
        logits = hidden @ weight.T
    assert logits.dtype == torch.bfloat16 and ours.objective.dtype == torch.float32
    # The same bf16 logits give the same nats, up to fp32 rounding.
    nats = token_nats(logits, targets).double().sum()
    torch.testing.assert_close(ours.nats, nats, rtol=1e-6, atol=0)
    expected = plain_loss(hidden, weight, targets, 0.0)
    for actual_grad, expected_grad in zip(
        torch.autograd.grad(ours.objective, (hidden, weight)),
        torch.autograd.grad(expected, (hidden, weight)),
        strict=True,
    ):
        assert actual_grad.dtype == torch.float32
        # bf16 has 8 significant bits; gradients of order 1 are sums of up to 14 products.
        torch.testing.assert_close(actual_grad, expected_grad, rtol=2e-2, atol=5e-2)


def test_loss_of_a_confident_wrong_prediction_is_finite() -> None:
    hidden = torch.tensor([[[1.0, 0.0]]], requires_grad=True)
    ours = head_loss(hidden, torch.tensor([[500.0, 0.0], [-500.0, 0.0]]), torch.tensor([[1]]))
    assert ours.nats.item() == 1000
    (grad_hidden,) = torch.autograd.grad(ours.objective, hidden)
    assert grad_hidden.tolist() == [[[1000.0, 0.0]]]


class RecordedOutputs(TorchDispatchMode):
    """Records the names of all operations, forward and backward, and the sizes of their outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.numels: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.names.append(func.overloadpacket.__name__)
        tensors = out if isinstance(out, (tuple, list)) else (out,)
        self.numels += [x.numel() for x in tensors if isinstance(x, Tensor)]
        return out


def test_never_allocates_all_logits() -> None:
    hidden, weight, targets = random_inputs()
    with RecordedOutputs() as chunked:
        head_loss(hidden, weight, targets).objective.backward()
    with RecordedOutputs() as whole:
        plain_loss(hidden, weight, targets, 0.0).backward()
    assert max(whole.numels) == targets.numel() * VOCAB_SIZE
    assert max(chunked.numels) == max(weight.numel(), hidden.numel())


def test_without_gradients_computes_only_the_logits() -> None:
    hidden, weight, targets = random_inputs()
    with RecordedOutputs() as training:
        head_loss(hidden, weight, targets)
    with torch.no_grad(), RecordedOutputs() as validating:
        assert not head_loss(hidden, weight, targets).objective.requires_grad
    chunks = math.ceil(targets.numel() / CHUNK)
    products = ("mm", "addmm_")
    assert sum(training.names.count(name) for name in products) == 3 * chunks
    assert sum(validating.names.count(name) for name in products) == chunks


@pytest.mark.parametrize("z_loss", [0.0, 0.3])
def test_without_z_loss_no_squares_are_computed(z_loss: float) -> None:
    hidden, weight, targets = random_inputs()
    with RecordedOutputs() as recorded:
        head_loss(hidden, weight, targets, z_loss)
    assert ("square" in recorded.names or "pow" in recorded.names) == (z_loss > 0)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("z_loss", [0.0, 0.3])
def test_compiled_chunks_equal_eager_chunks(z_loss: float, backend: str) -> None:
    """The compiled body computes the gradient of the target pointwise, without scatter."""
    torch._dynamo.reset()
    hidden, weight, targets = random_inputs(torch.float64)
    compiled = compile_chunk_loss(backend)
    results = []
    for body in (chunk_loss, compiled):
        ours = head_loss(hidden, weight, targets, z_loss, per_chunk=body)
        results.append((*ours, *torch.autograd.grad(ours.objective, (hidden, weight))))
        with torch.no_grad():
            results[-1] += (head_loss(hidden, weight, targets, z_loss, per_chunk=body).nats,)
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.slow
def test_compiled_chunk_stores_only_the_gradient_of_the_logits() -> None:
    """In bf16; softmax and sums stay inside the kernels."""
    torch._dynamo.reset()
    logits, targets = torch.randn(64, 999, dtype=torch.bfloat16), torch.randint(999, (64, 1))
    compiled = partial(
        compile_chunk_loss(), z_loss=0.0, sum_dtype=torch.float32, with_gradients=True
    )
    _, (code, *_) = run_and_get_code(compiled, logits, targets, targets >= 0)
    stored = re.findall(r"empty_strided_cpu\(\(64, 999\), \(999, 1\), torch\.(\w+)\)", code)
    assert stored == ["bfloat16"]


@pytest.mark.parametrize("tied", [True, False])
def test_model_loss_equals_the_loss_of_its_logits(tied: bool) -> None:
    shape = ModelShape(2, 16, 4, 2, 4, 40, VOCAB_SIZE, 7, tied=tied)
    torch.manual_seed(0)
    model = Transformer(shape, logit_multiplier=0.7).double()
    _, _, targets = random_inputs()
    tokens = targets.clamp(min=0)
    documents = torch.tensor([[0] * 3 + [1] * 4] * 2)
    gradients = []
    for use_head_loss in (True, False):
        model.zero_grad()
        if use_head_loss:
            sums = model(tokens, documents, targets=targets, z_loss=0.1)
            assert isinstance(sums, HeadLoss)
            objective = sums.objective
        else:
            logits = model(tokens, documents)
            objective = plain_loss(logits, torch.eye(VOCAB_SIZE).double(), targets, 0.1)
        objective.backward()
        gradients.append([p.grad for p in model.parameters()])
    for actual, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)
