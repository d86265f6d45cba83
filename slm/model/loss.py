"""Cross-entropy in nats, and the training loss without the logits of more than a chunk of tokens.

Logits are V numbers per token, more than anything else that a step keeps of one. `head_loss` makes
them chunk by chunk and turns each chunk into its share of the gradients before the next begins, so
that nothing of size tokens x V outlives its chunk and nothing is computed twice. It may do so because
a loss that is a sum has its gradients up to one factor, which backward brings.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from slm.config.schema.types import IGNORED

# Measured on two CPU cores with vocabularies of 99 to 32,000: chunks of this many logits (16 MiB) stay
# in the cache; with fewer tokens than this, adding up the head's gradient costs more than that saves.
CHUNK_LOGITS = 2**22
MIN_CHUNK_TOKENS = 256


class HeadLoss(NamedTuple):
    """Sums over the scored targets."""

    objective: Tensor
    """Nats plus z_loss times the squared log-partition, in the weights' type: what is minimised."""
    nats: Tensor
    """-log p(target) in float64, without gradients: what is reported."""


def token_nats(logits: Tensor, targets: Tensor) -> Tensor:
    """-log p(target) at each position of logits (B, T, V) and targets (B, T), as fp32 (B * T,)."""
    flat = logits.flatten(0, 1).float()
    return F.cross_entropy(flat, targets.flatten(), ignore_index=IGNORED, reduction="none")


def head_loss(hidden: Tensor, weight: Tensor, targets: Tensor, z_loss: float = 0.0) -> HeadLoss:
    """The loss of logits = hidden (B, T, D) @ weight (V, D)^T for targets (B, T).

    `z_loss` weighs (log sum exp)^2, after 2204.02311 section 5. Under autocast the matrix products
    are in its type; softmax and sums are in fp32. Can be differentiated once.
    """
    if not torch.is_grad_enabled():  # torch tells the function only whether an input requires grad
        hidden, weight = hidden.detach(), weight.detach()
    return HeadLoss(*_HeadLoss.apply(hidden.flatten(0, 1), weight, targets.flatten(), z_loss))


def chunk_tokens(vocab_size: int) -> int:
    return max(MIN_CHUNK_TOKENS, CHUNK_LOGITS // vocab_size)


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, z_loss: float
    ) -> tuple[Tensor, Tensor]:
        device, exact = hidden.device.type, torch.promote_types(weight.dtype, torch.float32)
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else weight.dtype
        ignored, with_gradients = (targets == IGNORED).unsqueeze(1), any(ctx.needs_input_grad)
        nats = objective = torch.zeros((), dtype=torch.float64, device=hidden.device)
        with torch.autocast(device, enabled=False):
            # A row of zeros adds nothing to the weight's gradient, whatever that of its logits is.
            rows, table = hidden.to(dtype).masked_fill(ignored, 0), weight.to(dtype)
            if with_gradients:
                by_hidden, by_weight = torch.empty_like(rows), torch.zeros_like(weight, dtype=exact)
            size = chunk_tokens(len(weight))
            for chunk in (slice(start, start + size) for start in range(0, len(rows), size)):
                logits = rows[chunk] @ table.T
                chunk_nats, squares, by_logits = _chunk_loss(logits, targets[chunk], z_loss, exact)
                nats = nats + chunk_nats
                objective = objective + chunk_nats + z_loss * squares
                if with_gradients:
                    by_logits = by_logits.to(dtype)
                    torch.mm(by_logits, table, out=by_hidden[chunk])
                    _add_product(by_weight, by_logits.T, rows[chunk])
        if with_gradients:
            ctx.save_for_backward(by_hidden.masked_fill_(ignored, 0).to(hidden.dtype), by_weight)
        ctx.mark_non_differentiable(nats)
        return objective.to(exact), nats

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        by_hidden, by_weight = ctx.saved_tensors
        return by_hidden * upstream, by_weight * upstream, None, None


def _chunk_loss(
    logits: Tensor, targets: Tensor, z_loss: float, exact: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums over logits (n, V) of the nats and the squared log-partitions, in float64.

    And the gradient of nats + z_loss squares by the logits, in `exact`; that of ignored targets is
    without meaning.
    """
    scored = targets != IGNORED
    target = targets.where(scored, 0).unsqueeze(1)
    log_p = logits.log_softmax(dim=-1, dtype=exact)
    log_p_target = log_p.gather(1, target)
    log_partition = logits.gather(1, target) - log_p_target
    by_logits = log_p.exp_()
    if z_loss:
        by_logits *= 1 + 2 * z_loss * log_partition
    by_logits.scatter_add_(1, target, torch.full_like(log_partition, -1))
    nats = -log_p_target.squeeze(1).where(scored, 0).double().sum()
    squares = log_partition.squeeze(1).where(scored, 0).double().square().sum()
    return nats, squares, by_logits


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right
