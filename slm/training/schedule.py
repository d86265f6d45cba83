"""Learning rate as a pure function of tokens seen."""

from __future__ import annotations

import math

from slm.schema import ScheduleConfig


def lr_multiplier(
    tokens: float, total_tokens: float, warmup_tokens: float, schedule: ScheduleConfig
) -> float:
    """Share of the peak learning rate after `tokens` of `total_tokens`.

    wsd: linear warmup, constant, linear decay over the last `decay_fraction` (2405.18392).
    cosine: linear warmup, then half a cosine to the end (2203.15556).
    Both end at `final_lr_fraction`.
    """
    if tokens < warmup_tokens:
        return tokens / warmup_tokens
    final = schedule.final_lr_fraction
    if schedule.kind == "cosine":
        progress = (tokens - warmup_tokens) / max(total_tokens - warmup_tokens, 1)
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    decay_tokens = schedule.decay_fraction * total_tokens
    left = total_tokens - tokens
    if left >= decay_tokens:
        return 1.0
    return final + (1 - final) * max(left, 0.0) / decay_tokens
