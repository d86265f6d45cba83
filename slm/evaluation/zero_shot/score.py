"""Scores of a model on a zero-shot task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slm.files import canonical_hash

IDENTITY = ("example", "cluster", "gold", "bytes", "words")  # fields of a sample, not of a model
FINGERPRINT_DIGITS = 12
LOW_SIGNAL_TASKS = ("boolq", "winogrande", "social_iqa", "openbookqa")


@dataclass(frozen=True, kw_only=True)
class TaskScore:
    """Scores of one model on one task.

    Attributes:
        task: name of the task, such as arc_easy.
        examples: number of scored examples.
        bits_per_byte: bits per UTF-8 byte of the gold answer given the question, the primary score; None if the task
            has no gold answer.
        bits_per_byte_se: its standard error over examples, clustered by common text.
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

    @property
    def fingerprint(self) -> str:
        """Short hash that differs between scores of different examples, which cannot be compared."""
        found = [[sample.get(field) for field in IDENTITY] for sample in self.samples]
        return canonical_hash([self.task, found])[:FINGERPRINT_DIGITS]


def low_signal_note(tasks: Iterable[str]) -> str:
    """Return the sentence to print beside accuracies that decide little below 1B parameters; empty if there is none.

    Source: DataDecide (2504.11393) and Signal and Noise (2508.13144).
    """
    present = set(tasks)
    names = [name for name in LOW_SIGNAL_TASKS if name in present]
    if not names:
        return ""
    return (
        f"Accuracy on {', '.join(names)} decides little at this size: at 150M parameters it ranks two models correctly "
        "in 48 to 65% of cases, and guessing in 50% (DataDecide, 2504.11393; Signal and Noise, 2508.13144)."
    )
