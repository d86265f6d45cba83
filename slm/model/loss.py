"""Cross-entropy in nats, and a fused head and loss that never stores the logits of all tokens.

Logits take V numbers per token, more than any other tensor of a step. `head_loss` computes them in
chunks of tokens and adds each chunk's gradients before it computes the next chunk. So no tensor of
size tokens x V exists, and nothing is computed twice. This works because the loss is a sum: its
gradients are known in the forward pass up to the factor that backward receives.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from slm.config.schema.types import IGNORED

# Measured on two CPU cores with vocabularies of 99 to 32,000: chunks of CHUNK_LOGITS logits (16 MiB)
# fit into the CPU cache; below MIN_CHUNK_TOKENS tokens, accumulating the head's gradient dominates.
CHUNK_LOGITS = 2**22
MIN_CHUNK_TOKENS = 256


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


def head_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    z_loss: float = 0.0,
    vocab_size: int | None = None,
) -> HeadLoss:
    """Compute the loss of logits = hidden (B, T, D) @ weight (V, D)^T for targets (B, T).

    `z_loss` is the weight of (log sum exp logits)^2 (2204.02311, section 5). Matrix products use the
    autocast dtype; softmax and sums use fp32. Rows of `weight` from `vocab_size` on are padding: their logits are -inf
    and their gradient is 0. The result can be differentiated once.
    """
    if not torch.is_grad_enabled():  # needs_input_grad stays True under no_grad
        hidden, weight = hidden.detach(), weight.detach()
    rows, flat_targets = hidden.flatten(0, 1), targets.flatten()
    return HeadLoss(*_HeadLoss.apply(rows, weight, flat_targets, z_loss, vocab_size))


def chunk_tokens(vocab_size: int) -> int:
    return max(MIN_CHUNK_TOKENS, CHUNK_LOGITS // vocab_size)


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917  autograd passes arguments by position
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        z_loss: float,
        vocab_size: int | None,
    ) -> tuple[Tensor, Tensor]:
        device, sum_dtype = hidden.device.type, torch.promote_types(weight.dtype, torch.float32)
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else weight.dtype
        ignored, with_gradients = (targets == IGNORED).unsqueeze(1), any(ctx.needs_input_grad)
        nats = objective = torch.zeros((), dtype=torch.float64, device=hidden.device)
        with torch.autocast(device, enabled=False):
            # Zero the rows of ignored targets, so that they add nothing to the weight's gradient.
            rows, table = hidden.to(dtype).masked_fill(ignored, 0), weight.to(dtype)
            if with_gradients:
                grad_hidden = torch.empty_like(rows)
                grad_weight = torch.zeros_like(weight, dtype=sum_dtype)
            size = chunk_tokens(len(weight))
            for chunk in (slice(start, start + size) for start in range(0, len(rows), size)):
                logits = rows[chunk] @ table.T
                if vocab_size is not None and vocab_size < len(weight):
                    logits[:, vocab_size:] = -math.inf
                chunk_nats, squares, grad_logits = _chunk_loss(
                    logits, targets[chunk], z_loss, sum_dtype
                )
                nats = nats + chunk_nats
                objective = objective + chunk_nats + z_loss * squares
                if with_gradients:
                    grad_logits = grad_logits.to(dtype)
                    torch.mm(grad_logits, table, out=grad_hidden[chunk])
                    _add_product(grad_weight, grad_logits.T, rows[chunk])
        if with_gradients:
            ctx.save_for_backward(
                grad_hidden.masked_fill_(ignored, 0).to(hidden.dtype), grad_weight
            )
        ctx.mark_non_differentiable(nats)
        return objective.to(sum_dtype), nats

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_objective: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grad_objective, grad_weight * grad_objective, None, None, None


def _chunk_loss(
    logits: Tensor, targets: Tensor, z_loss: float, sum_dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the sums of nats and of squared log-partitions, and the gradient of the logits (n, V).

    The sums are float64. The gradient is that of nats + z_loss * squares, in `sum_dtype`; its rows for
    ignored targets are undefined.
    """
    scored = targets != IGNORED
    target = targets.where(scored, 0).unsqueeze(1)
    log_p = logits.log_softmax(dim=-1, dtype=sum_dtype)
    log_p_target = log_p.gather(1, target)
    log_partition = logits.gather(1, target) - log_p_target
    grad_logits = log_p.exp_()
    if z_loss:
        grad_logits *= 1 + 2 * z_loss * log_partition
    grad_logits.scatter_add_(1, target, torch.full_like(log_partition, -1))
    nats = -log_p_target.squeeze(1).where(scored, 0).double().sum()
    squares = log_partition.squeeze(1).where(scored, 0).double().square().sum()
    return nats, squares, grad_logits


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right
