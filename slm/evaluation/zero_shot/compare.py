"""Compare two models, or two families of models, example by example.

A difference between two models on the same examples varies less than the two scores do, so it is computed for each
example first (Miller, 2411.00640). Examples that share a passage or question are one cluster.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import special

from slm.console import Column, FittedTable, console, print_lines
from slm.errors import NO_VALUE, ConfigError, DataError, Problem
from slm.evaluation.zero_shot.score import TaskScore
from slm.evaluation.zero_shot.standard_error import clustered_mean
from slm.formatting import count
from slm.rounding import exceeds
from slm.tracking.result import RunResult

PRIMARY = ("bits_per_byte",)
MIN_BITS_PER_BYTE = (
    0.005  # smallest difference to call a model better: that of two number formats is smaller
)
MAX_TOKENS_RATIO = 1.05  # of a pair of runs: tokens per parameter are rounded to whole batches
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
        standard_error: over clusters of examples, with the runs fixed; None with one cluster.
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

    @property
    def better(self) -> Literal["first", "second"] | None:
        """The better side: None if the interval contains 0, or the bits per byte differ by less than 0.005."""
        is_bits = self.metric == "bits_per_byte"
        if not self.is_significant or (
            is_bits and exceeds(MIN_BITS_PER_BYTE, abs(self.difference))
        ):
            return None
        return "second" if (self.difference < 0) == is_bits else "first"


def compare_models(
    first: Scores, second: Scores, metrics: Sequence[str] = PRIMARY
) -> list[Difference]:
    """Return the differences, second minus first, on all tasks that both models have."""
    return compare_families([first], [second], metrics)


def compare_families(
    first: Sequence[Scores], second: Sequence[Scores], metrics: Sequence[str] = PRIMARY
) -> list[Difference]:
    """Return the differences between two families, given the scores of each of their runs.

    The value of a family on an example is the mean over its runs, so that examples and not runs are resampled.
    `metrics`: of bits_per_byte, acc and acc_norm; those that a task does not have are left out.

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
            for metric in metrics
            if metric in sides[0][0].samples[0]
        ]
    return differences


def print_comparison(
    models: Sequence[tuple[str, Scores]], runs: Sequence[RunResult | None] | None = None
) -> None:
    """Print the differences of each model to the first one in bits per byte, by task.

    Args:
        models: label and scores of each model.
        runs: result of each model, None if it is not a run. With runs of two or more families, pairs of equal rung,
            tokens per parameter and seed are compared too.
    """
    (base, base_scores), *others = models
    compared = [(name, compare_models(base_scores, scores)) for name, scores in others]
    if not compared:
        return
    out = console()
    for name, differences in compared:
        out.print()
        columns = [*_columns(differences), Column("better", list(map(_better, differences)), is_left=True)]  # fmt: skip
        out.print(FittedTable(columns, f"{name} minus {base}, bits/byte"))
    families = [] if runs is None else list(_family_tables(models, runs))
    for table in families:
        out.print()
        out.print(table)
    comparisons = sum(len(differences) for _, differences in compared)
    comparisons += sum(len(table.columns[0].cells) for table in families)
    out.print()
    print_lines(out, [
        f"{count(comparisons, 'comparison')} on the same examples; lower bits/byte is better. The intervals are over "
        "examples, clustered by common text, with the runs fixed: they do not cover another seed, and they are not "
        f"adjusted for the number of comparisons. better: the interval excludes 0 and the difference is at least {MIN_BITS_PER_BYTE} bits/byte."
    ])  # fmt: skip


def _columns(differences: Sequence[Difference]) -> list[Column]:
    return [
        Column("task", [each.task for each in differences], is_left=True),
        Column("difference", [f"{each.difference:+.4f}" for each in differences]),
        Column("95% interval", [_interval_text(each) for each in differences]),
    ]


def _interval_text(each: Difference) -> str:
    if each.interval is None:
        return "-"
    low, high = each.interval
    return f"{low:+.4f} to {high:+.4f}"


def _better(each: Difference) -> str:
    return {"first": "first", "second": "this", None: "-"}[each.better]


def _family_tables(
    models: Sequence[tuple[str, Scores]], runs: Sequence[RunResult | None]
) -> Iterator[FittedTable]:
    """Yield a table for each family after the first: its differences to the first one over pairs of runs."""
    by_family: dict[str, list[tuple[RunResult, Scores]]] = {}
    for (_, scores), run in zip(models, runs, strict=True):
        if run is not None:
            by_family.setdefault(run.family, []).append((run, scores))
    (base, first), *others = by_family.items() or [("", [])]
    for family, second in others:
        pairs = _pairs(first, second)
        if not pairs:
            continue
        differences = compare_families([a for a, _ in pairs], [b for _, b in pairs])
        single = [{each.task: each.difference for each in compare_models(a, b)} for a, b in pairs]
        lower = [sum(each[d.task] < 0 for each in single) for d in differences]
        columns = [
            *_columns(differences),
            Column("lower in", [f"{n} of {count(len(pairs), 'pair')}" for n in lower]),
        ]
        title = f"{family} minus {base}, bits/byte: mean over pairs of equal rung, tokens/parameter and seed"
        yield FittedTable(columns, title)


def _pairs(
    first: Sequence[tuple[RunResult, Scores]], second: Sequence[tuple[RunResult, Scores]]
) -> list[tuple[Scores, Scores]]:
    """Pair runs of equal rung (or size), seed and nearly equal tokens per parameter; each run is used once."""
    remaining = list(second)
    pairs = []
    for run, scores in first:
        for other in remaining:
            ratio = run.tokens_per_param / other[0].tokens_per_param
            if _rung(run) == _rung(other[0]) and max(ratio, 1 / ratio) < MAX_TOKENS_RATIO:
                pairs.append((scores, other[1]))
                remaining.remove(other)
                break
    return pairs


def _rung(run: RunResult) -> tuple[object, ...]:
    return run.study, run.rung or run.size, run.seed


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
        # Adds the variance between runs. The run means also vary with the examples, so that this part of the variance is
        # counted twice: the sum overestimates slightly.
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
