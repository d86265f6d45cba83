"""Cross-entropy in nats, and what may be added to it."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

IGNORED = -100  # a target that is not scored and counts as 0 nats


def token_nats(logits: Tensor, targets: Tensor) -> Tensor:
    """-log p(target) at each position of logits (B, T, V) and targets (B, T), as fp32 (B * T,)."""
    flat = logits.flatten(0, 1).float()
    return F.cross_entropy(flat, targets.flatten(), ignore_index=IGNORED, reduction="none")


def squared_log_partition(logits: Tensor) -> Tensor:
    """(log sum exp)^2 at each position of logits (B, T, V); its mean is the z-loss of 2204.02311 §5."""
    return logits.flatten(0, 1).float().logsumexp(dim=-1).square()
