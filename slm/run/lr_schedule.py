"""The learning rate as a pure function of the tokens seen. Torch-free."""

from __future__ import annotations

import math

from slm.config.schema import ScheduleConfig


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


def step_lr_multiplier(
    step: int, steps: int, batch_tokens: int, warmup_tokens: float, schedule: ScheduleConfig
) -> float:
    """The share that step `step` (from 0) is taken at: that in the middle of its tokens.

    Neither end of a step would do: one wastes the first step at a rate of 0, the other the last.
    """
    return lr_multiplier((step + 0.5) * batch_tokens, steps * batch_tokens, warmup_tokens, schedule)


def steps_before_decay(steps: int, batch_tokens: int, schedule: ScheduleConfig) -> int:
    """How many steps of wsd are taken before its rate first falls: the trunk of its branches.

    0 for cosine, whose rate depends on the end from the first step after its warmup.
    """
    if schedule.kind != "wsd":
        return 0

    def decays(step: int) -> bool:
        left = steps * batch_tokens - (step + 0.5) * batch_tokens
        return left < schedule.decay_fraction * steps * batch_tokens

    near = round(steps * (1 - schedule.decay_fraction))
    return next((step for step in range(max(0, near - 2), steps) if decays(step)), steps)
