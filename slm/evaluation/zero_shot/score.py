"""Scores of a model on a zero-shot task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class TaskScore:
    """Scores of one model on one task.

    Attributes:
        task: name of the task, such as arc_easy.
        examples: number of scored examples.
        bits_per_byte: bits per UTF-8 byte of the gold answer given the question, the primary score; None if the task
            has no gold answer.
        bits_per_byte_se: its standard error over examples.
        metrics: other metrics by name, such as acc, acc_norm, and their standard errors as acc_se, acc_norm_se.
        chance: accuracy of guessing; None if the task has no choices.
        samples: one record per example, in the order of the task.
    """

    task: str
    examples: int
    bits_per_byte: float | None
    bits_per_byte_se: float | None
    metrics: Mapping[str, float]
    chance: float | None
    samples: Sequence[Mapping[str, Any]]
