"""Compare two models, or two families of models, example by example.

A difference between two models on the same examples varies less than the two scores do, so it is computed for each
example first (Miller, 2411.00640). Examples that share a passage or question are one cluster.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from slm.console import Column, FittedTable, console
from slm.errors import NO_VALUE, ConfigError, DataError, Problem
from slm.evaluation.zero_shot.score import TaskScore, low_signal_note
from slm.evaluation.zero_shot.standard_error import clustered_mean

COMPARED = ("bits_per_byte", "acc", "acc_norm")
LONG_TEXT = "words"  # key of the samples of texts, which are weighted by their bytes
CONFIDENCE = 0.95

Scores = Sequence[TaskScore]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Score of the second model or family minus that of the first, on the same examples.

    Attributes:
        metric: bits_per_byte (lower is better), acc or acc_norm.
        first, second: scores, as means over the runs of the family.
        difference: second minus first.
        standard_error: over clusters of examples, for these very runs; None with one cluster.
        standard_error_of_families: also over runs, as random members of their families; None unless both families
            have at least two runs.
        examples, clusters: their numbers.
        runs: numbers of runs of the first and of the second family.
    """

    task: str
    metric: str
    first: float
    second: float
    difference: float
    standard_error: float | None
    standard_error_of_families: float | None
    examples: int
    clusters: int
    runs: tuple[int, int]

    @property
    def interval(self) -> tuple[float, float] | None:
        """95% interval over examples, by Student's t with clusters - 1 degrees of freedom."""
        if self.standard_error is None:
            return None
        half = special.stdtrit(self.clusters - 1, (1 + CONFIDENCE) / 2) * self.standard_error
        return self.difference - half, self.difference + half

    @property
    def is_significant(self) -> bool:
        return self.interval is not None and not self.interval[0] <= 0 <= self.interval[1]


def compare_models(first: Scores, second: Scores) -> list[Difference]:
    """Return the differences, second minus first, on all tasks that both models have."""
    return compare_families([first], [second])


def compare_families(first: Sequence[Scores], second: Sequence[Scores]) -> list[Difference]:
    """Return the differences between two families, given the scores of each of their runs.

    The value of a family on an example is the mean over its runs, so that examples and not runs are resampled.

    Raises:
        ConfigError: if the runs have no common task.
        DataError: if they were scored on different examples of a task.
    """
    if not first or not second:
        raise ConfigError([Problem("models", NO_VALUE, "each family needs at least one run")])
    runs = [[{score.task: score for score in run} for run in side] for side in (first, second)]
    tasks = [task for task in runs[0][0] if all(task in run for side in runs for run in side)]
    if not tasks:
        raise ConfigError([Problem("tasks", NO_VALUE, "the models have no common task")])
    differences = []
    for task in tasks:
        sides = [[run[task] for run in side] for side in runs]
        _check_examples(task, [score for side in sides for score in side])
        differences += [
            _difference(task, metric, sides)
            for metric in COMPARED
            if metric in sides[0][0].samples[0]
        ]
    return differences


def print_comparison(models: Sequence[tuple[str, Scores]]) -> None:
    """Print the difference of each model to the first one, by task."""
    (base, base_scores), *others = models
    rows = [(name, each) for name, scores in others for each in compare_models(base_scores, scores)]
    if not rows:
        return
    columns = [
        # With one other model, the title names it.
        *([Column("model", [name for name, _ in rows], is_left=True)] if len(others) > 1 else []),
        Column("task", [each.task for _, each in rows], is_left=True),
        Column("score", [each.metric for _, each in rows], is_left=True),
        Column("examples", [f"{each.examples:,}" for _, each in rows], rank=2),
        Column("first model", [f"{each.first:.4f}" for _, each in rows], rank=1),
        Column("this model", [f"{each.second:.4f}" for _, each in rows], rank=1),
        Column("difference", [f"{each.difference:+.4f}" for _, each in rows]),
        Column("95% interval", [_interval_text(each) for _, each in rows]),
        Column("better", [_better(each, base, name) for name, each in rows], is_left=True),
    ]
    notes = [
        "Intervals: over examples, clustered by common text; they do not cover another seed.",
        low_signal_note(each.task for _, each in rows),
    ]
    name = others[0][0] if len(others) == 1 else "each model"
    title = f"Scores of {name} minus those of {base}, the first model, on the same examples"
    console().print(FittedTable(columns, title, note=" ".join(filter(None, notes))))


def _interval_text(each: Difference) -> str:
    if each.interval is None:
        return "-"
    low, high = each.interval
    return f"{low:+.4f} to {high:+.4f}"


def _better(each: Difference, base: str, name: str) -> str:
    if not each.is_significant:
        return "not shown"
    is_second = (each.difference < 0) == (each.metric == "bits_per_byte")
    return name if is_second else base


def _difference(task: str, metric: str, sides: Sequence[Sequence[TaskScore]]) -> Difference:
    samples = sides[0][0].samples
    # (runs, examples) for each family
    first, second = (
        np.array([[sample[metric] for sample in score.samples] for score in side], dtype=float)
        for side in sides
    )
    clusters = [sample["cluster"] for sample in samples]
    weights = [float(s["bytes"]) if LONG_TEXT in s else 1.0 for s in samples]
    gaps: list[float] = (second.mean(0) - first.mean(0)).tolist()
    difference, se = clustered_mean(gaps, clusters, weights)
    shares = np.array(weights) / sum(weights)
    run_means = first @ shares, second @ shares
    counts = len(first), len(second)
    family_se = None
    if min(counts) > 1 and not math.isnan(se):
        # Runs of a family are random too: their variance between run means, which also contains a part of that over
        # examples. The sum is therefore slightly too large rather than too small.
        family_se = math.sqrt(se**2 + sum(m.var(ddof=1) / len(m) for m in run_means))
    return Difference(
        task=task,
        metric=metric,
        first=float(run_means[0].mean()),
        second=float(run_means[1].mean()),
        difference=difference,
        standard_error=None if math.isnan(se) else se,
        standard_error_of_families=family_se,
        examples=len(samples),
        clusters=len(set(clusters)),
        runs=counts,
    )


def _check_examples(task: str, scores: Scores) -> None:
    """Raise DataError unless all runs were scored on the same examples."""
    keys = [
        [(s["example"], s["cluster"], s["gold"], s["bytes"]) for s in score.samples]
        for score in scores
    ]
    if any(key != keys[0] for key in keys):
        raise DataError(
            f"tasks={task}: the models were scored on different examples, so they cannot be compared one by one; "
            "score them with the same task_data and limit"
        )
