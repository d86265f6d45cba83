"""Cross-entropy in nats, and a fused head and loss that never stores the logits of all tokens.

Logits take V numbers per token, more than any other tensor of a step. `head_loss` computes them in
chunks of tokens and adds each chunk's gradients before it computes the next chunk. So no tensor of
size tokens x V exists, and nothing is computed twice. This works because the loss is a sum: its
gradients are known in the forward pass up to the factor that backward receives.

A chunk runs one function, `chunk_loss`, between matrix products. `compile_chunk_loss` returns it
compiled: one pass over the logits for the softmax and one for their gradient, for GPUs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from slm.architecture.loss_chunks import chunk_tokens
from slm.config.schema.types import IGNORED

# The type of `chunk_loss` and of its compiled form.
ChunkLoss = Callable[..., tuple[Tensor, Tensor | None, Tensor | None]]


class HeadLoss(NamedTuple):
    """Loss sums over all targets that are not IGNORED."""

    objective: Tensor
    """The training objective: nats + z_loss * log-partition^2, in fp32 (float64 weights: float64)."""
    nats: Tensor
    """The reported loss: -log p(target), in float64, without gradients."""


def token_nats(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the per-token loss -log p(target) in nats, fp32, shape (B*T,).

    Shapes: logits (B, T, V), targets (B, T). The loss of an IGNORED target is 0.
    """
    flat = logits.flatten(0, 1).float()
    return F.cross_entropy(flat, targets.flatten(), ignore_index=IGNORED, reduction="none")


def perplexity(nats: float) -> float:
    """Return exp of a mean loss in nats; infinite if it is too large for a float."""
    try:
        return math.exp(nats)
    except OverflowError:
        return math.inf


def chunk_loss(
    logits: Tensor,
    targets: Tensor,
    scored: Tensor,
    *,
    z_loss: float,
    sum_dtype: torch.dtype,
    with_gradients: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return the nats of a chunk, its z-loss, and the gradient of both with respect to the logits.

    Shapes: logits (n, V), targets and scored (n, 1), gradient (n, V) in the dtype of the logits. Sums
    are float64; the z-loss is None for z_loss = 0. Rows with scored = False count 0; their gradient is
    undefined.
    """
    log_p = logits.log_softmax(dim=-1, dtype=sum_dtype)
    log_p_target = log_p.gather(1, targets)
    nats = -log_p_target.squeeze(1).where(scored.squeeze(1), 0).double().sum()
    penalty: Tensor | None = None
    factor: Tensor | None = None
    if z_loss:
        log_partition = logits.gather(1, targets) - log_p_target
        squares = log_partition.squeeze(1).where(scored.squeeze(1), 0).double().square().sum()
        penalty, factor = z_loss * squares, 1 + 2 * z_loss * log_partition
    if not with_gradients:
        return nats, penalty, None
    if torch.compiler.is_compiling():  # pointwise, so that it becomes one kernel
        p = log_p.exp() if factor is None else log_p.exp() * factor
        is_target = torch.arange(logits.shape[1], device=logits.device) == targets
        return nats, penalty, torch.where(is_target, p - 1, p).to(logits.dtype)
    p = log_p.exp_() if factor is None else log_p.exp_().mul_(factor)
    # Not scatter_add_, which torch's deterministic mode rejects or replaces by a slow kernel.
    p.scatter_(1, targets, p.gather(1, targets) - 1)
    return nats, penalty, p.to(logits.dtype)


def compile_chunk_loss(backend: str = "inductor") -> ChunkLoss:
    """Return `chunk_loss` compiled at its first call, once per shape of a chunk."""
    compiled: ChunkLoss = torch.compile(chunk_loss, fullgraph=True, dynamic=False, backend=backend)
    return compiled


def head_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    z_loss: float = 0.0,
    *,
    vocab_size: int | None = None,
    per_chunk: ChunkLoss = chunk_loss,
) -> HeadLoss:
    """Compute the loss of logits = hidden (B, T, D) @ weight (V, D)^T for targets (B, T).

    `z_loss` is the weight of (log sum exp logits)^2 (2204.02311, section 5). Matrix products use the
    autocast dtype; softmax and sums use fp32. Rows of `weight` from `vocab_size` on are padding: their logits are -inf
    and their gradient is 0. The result can be differentiated once. `per_chunk` is `chunk_loss`, or its
    compiled form.
    """
    if not torch.is_grad_enabled():  # needs_input_grad stays True under no_grad
        hidden, weight = hidden.detach(), weight.detach()
    rows, flat_targets = hidden.flatten(0, 1), targets.flatten()
    body = partial(per_chunk, z_loss=z_loss)
    return HeadLoss(*_HeadLoss.apply(rows, weight, flat_targets, body, vocab_size or len(weight)))


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917  autograd passes arguments by position
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        per_chunk: ChunkLoss,
        vocab_size: int,
    ) -> tuple[Tensor, Tensor]:
        device, sum_dtype = hidden.device.type, torch.promote_types(weight.dtype, torch.float32)
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else weight.dtype
        scored, with_gradients = (targets != IGNORED).unsqueeze(1), any(ctx.needs_input_grad)
        ignored, targets = ~scored, targets.unsqueeze(1).where(scored, 0)
        nats = objective = torch.zeros((), dtype=torch.float64, device=hidden.device)
        with torch.autocast(device, enabled=False):
            # Zero the rows of ignored targets, so that they add nothing to the weight's gradient.
            rows, table = hidden.to(dtype).masked_fill(ignored, 0), weight.to(dtype)
            if with_gradients:
                grad_hidden = torch.empty_like(rows)
                grad_weight = torch.zeros_like(weight, dtype=sum_dtype)
            size = chunk_tokens(len(weight), len(rows), on_gpu=device == "cuda")
            for chunk in (slice(start, start + size) for start in range(0, len(rows), size)):
                chunk_nats, penalty, grad_logits = per_chunk(
                    _logits(rows[chunk], table, vocab_size),
                    targets[chunk],
                    scored[chunk],
                    sum_dtype=sum_dtype,
                    with_gradients=with_gradients,
                )
                nats = nats + chunk_nats
                objective = nats if penalty is None else objective + chunk_nats + penalty
                if grad_logits is not None:
                    torch.mm(grad_logits, table, out=grad_hidden[chunk])
                    _add_product(grad_weight, grad_logits.T, rows[chunk])
                del grad_logits  # before the next chunk, which takes the same memory
        if with_gradients:
            ctx.save_for_backward(
                grad_hidden.masked_fill_(ignored, 0).to(hidden.dtype), grad_weight
            )
        ctx.mark_non_differentiable(nats)
        return objective.to(sum_dtype, copy=True), nats

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_objective: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grad_objective, grad_weight * grad_objective, None, None, None


def _logits(rows: Tensor, table: Tensor, vocab_size: int) -> Tensor:
    logits = rows @ table.T
    if vocab_size < len(table):
        logits[:, vocab_size:] = -math.inf
    return logits


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left @ right to `total` in place."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    elif total.is_cuda and torch.version.hip is None and total.dtype == torch.float32:
        # The matrix product adds to fp32 itself, without a temporary tensor of the size of `total`.
        torch.addmm(total, left, right, out_dtype=torch.float32, out=total)
    else:
        total += left @ right
