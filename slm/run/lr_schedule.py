"""Learning rate schedules as pure functions of the tokens seen. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from slm.config.schema import ScheduleConfig


def lr_multiplier(
    tokens: float, total_tokens: float, warmup_tokens: float, schedule: ScheduleConfig
) -> float:
    """Return the learning rate after `tokens` of `total_tokens`, as a fraction of its peak.

    wsd: linear warmup, constant, linear decay over the last `decay_fraction` (arXiv 2405.18392).
    cosine: linear warmup, then half a cosine period (arXiv 2203.15556).
    Both end at `final_lr_fraction`.
    """
    if tokens < warmup_tokens:
        return tokens / warmup_tokens
    final = schedule.final_lr_fraction
    if schedule.kind == "cosine":
        progress = (tokens - warmup_tokens) / max(total_tokens - warmup_tokens, 1)
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    decay_tokens = schedule.decay_fraction * total_tokens
    remaining = total_tokens - tokens
    if (
        remaining >= decay_tokens or decay_tokens == 0
    ):  # after the last step `remaining` is negative
        return 1.0
    return final + (1 - final) * max(remaining, 0.0) / decay_tokens


def step_lr_multiplier(
    step: int, steps: int, batch_tokens: int, warmup_tokens: float, schedule: ScheduleConfig
) -> float:
    """Return the fraction of the peak learning rate for step `step` (from 0).

    It is evaluated at the middle of the step's tokens: at their start the first step would have a rate of 0,
    at their end the last one.
    """
    return lr_multiplier((step + 0.5) * batch_tokens, steps * batch_tokens, warmup_tokens, schedule)


def steps_before_decay(steps: int, batch_tokens: int, schedule: ScheduleConfig) -> int:
    """Count the steps before the decay of wsd starts, which branches of several token budgets share.

    Return 0 for cosine: right after the warmup its rate depends on the token budget.
    """
    if schedule.kind != "wsd":
        return 0

    def decays(step: int) -> bool:
        remaining = steps * batch_tokens - (step + 0.5) * batch_tokens
        return remaining < schedule.decay_fraction * steps * batch_tokens

    near = round(steps * (1 - schedule.decay_fraction))
    return next((step for step in range(max(0, near - 2), steps) if decays(step)), steps)


def is_decayed(schedule: Mapping[str, Any]) -> bool:
    """Return whether the learning rate had decayed, to at most half its peak, when the final loss was measured.

    `schedule` has `decay_tokens`, as in a result, or `decay_fraction`, as in a config; without both it decays.
    """
    decay = schedule.get("decay_tokens", schedule.get("decay_fraction", 1.0))
    return bool(decay != 0 and schedule.get("final_lr_fraction", 0.0) <= 0.5)
