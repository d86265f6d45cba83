"""Paired differences: standard errors against simulation, families of runs, and the printed table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from slm.errors import ConfigError, DataError
from slm.evaluation.zero_shot.compare import compare_families, compare_models, print_comparison
from slm.evaluation.zero_shot.score import TaskScore, low_signal_note
from slm.evaluation.zero_shot.standard_error import clustered_mean
from slm.tracking.result import RunResult

pytestmark = pytest.mark.numeric


def task_score(
    values: Sequence[float],
    clusters: Sequence[Any] | None = None,
    *,
    task: str = "arc_easy",
    byte_counts: Sequence[int] | None = None,
) -> TaskScore:
    samples: list[dict[str, Any]] = []
    for index, value in enumerate(values):
        sample = {
            "example": index,
            "cluster": str(index if clusters is None else clusters[index]),
            "gold": 0,
            "bytes": 10 if byte_counts is None else byte_counts[index],
            "bits_per_byte": float(value),
        }
        if byte_counts is not None:
            sample["words"] = 1
        samples.append(sample)
    return TaskScore(
        task=task,
        examples=len(samples),
        bits_per_byte=float(np.mean(values)),
        bits_per_byte_se=None,
        metrics={},
        chance=None,
        samples=samples,
    )


def test_without_clusters_it_is_the_usual_standard_error() -> None:
    values = [3.0, 1.0, 4.0, 1.0, 5.0]
    mean, se = clustered_mean(values)
    assert mean == pytest.approx(2.8)
    assert se == pytest.approx(np.std(values, ddof=1) / math.sqrt(5))
    assert clustered_mean(values, "abcde", [2] * 5) == pytest.approx((mean, se))
    assert math.isnan(clustered_mean(values, "aaaaa")[1])


def test_a_ratio_of_sums_has_the_linearised_standard_error() -> None:
    bits, sizes = np.array([10.0, 40.0, 22.0]), np.array([5.0, 30.0, 10.0])
    mean, se = clustered_mean(bits / sizes, weights=sizes)
    assert mean == pytest.approx(bits.sum() / sizes.sum())
    residual = (bits - mean * sizes) / sizes.sum()
    assert se == pytest.approx(math.sqrt(3 / 2 * (residual**2).sum()))


def test_clustered_standard_error_equals_the_spread_of_repeated_samples() -> None:
    generator = np.random.default_rng(0)
    groups, repeats = 60, 2000
    sizes = np.arange(groups) % 5 + 1
    clusters = np.repeat(np.arange(groups), sizes)
    means, squares, naive = [], [], []
    for _ in range(repeats):
        values = generator.normal(size=groups)[clusters] + 0.5 * generator.normal(
            size=len(clusters)
        )
        mean, se = clustered_mean(values, clusters.tolist())
        means.append(mean)
        squares.append(se**2)
        naive.append(clustered_mean(values)[1] ** 2)
    true_variance = np.var(means)
    assert np.mean(squares) == pytest.approx(true_variance, rel=0.12)
    assert np.mean(naive) < 0.5 * true_variance  # examples are not independent


def test_the_difference_is_paired_and_clustered() -> None:
    first = [1.0, 2.0, 3.0, 8.0]
    second = [1.5, 2.5, 3.0, 8.0]
    (found,) = compare_models([task_score(first, "aabb")], [task_score(second, "aabb")])
    assert (found.task, found.metric, found.examples, found.clusters) == (
        "arc_easy",
        "bits_per_byte",
        4,
        2,
    )
    assert found.difference == pytest.approx(0.25)
    # Cluster sums of (d - mean) / n: +-0.125; variance 2 / 1 * 2 * 0.125^2.
    assert found.standard_error == pytest.approx(0.25)
    assert found.standard_error_of_families is None


def test_texts_are_weighted_by_their_bytes() -> None:
    sizes = [10, 30]
    scores = [
        [task_score(bits, byte_counts=sizes, task="wikitext")] for bits in ([1.0, 2.0], [2.0, 2.0])
    ]
    (found,) = compare_models(*scores)
    assert (found.first, found.second) == (pytest.approx(70 / 40), pytest.approx(2.0))
    assert found.difference == pytest.approx(10 / 40)


def test_standard_error_of_families_covers_runs_and_examples() -> None:
    generator = np.random.default_rng(1)
    examples, runs, repeats = 150, 3, 600
    differences, squares, fixed = [], [], []
    for _ in range(repeats):
        hard = generator.normal(size=examples)  # common to all runs, cancels in the pairs
        sides = []
        for _ in range(2):
            family = 0.6 * generator.normal(size=examples)  # examples that suit this family
            sides.append([
                [task_score(hard + family + 0.1 * generator.normal() + 0.3 * generator.normal(size=examples))]
                for _ in range(runs)
            ])  # fmt: skip
        (found,) = compare_families(*sides)
        assert found.standard_error is not None and found.standard_error_of_families is not None
        differences.append(found.difference)
        squares.append(found.standard_error_of_families**2)
        fixed.append(found.standard_error**2)
    true_variance = float(np.var(differences))
    # The part of the examples that the run means contain is counted twice: 2 * 0.3^2 / (150 * 3).
    assert np.mean(squares) == pytest.approx(true_variance + 2 * 0.09 / 450, rel=0.15)
    assert np.mean(fixed) < 0.8 * true_variance


def test_other_examples_are_refused() -> None:
    first = [task_score([1.0, 2.0, 3.0])]
    with pytest.raises(
        DataError, match="tasks=arc_easy: the models were scored on different examples"
    ):
        compare_models(first, [task_score([1.0, 2.0])])
    with pytest.raises(ConfigError, match="no common task"):
        compare_models(first, [task_score([1.0, 2.0, 3.0], task="piqa")])


def test_printed_comparison_names_the_better_model(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    first = [task_score([2.0, 3.0, 4.0, 5.0]), task_score([1.0, 5.0], task="boolq")]
    second = [task_score([1.0, 1.9, 3.1, 4.0]), task_score([1.5, 4.0], task="boolq")]
    print_comparison([("deep", first), ("wide", second), ("worse", [task_score([5.0, 6.0, 7.1, 8.0])])])  # fmt: skip
    shown = capsys.readouterr().out
    assert "wide minus deep, bits/byte" in shown
    lines = [line.split() for line in shown.splitlines() if line.startswith(("arc", "boolq"))]
    assert [line[-1] for line in lines] == ["this", "-", "first"]
    assert lines[0][1] == "-1.0000"
    assert "3 comparisons" in shown and "not adjusted" in " ".join(shown.split())
    assert max(map(len, shown.splitlines())) <= 80
    print_comparison([("deep", first)])
    assert capsys.readouterr().out == ""


def test_a_difference_below_the_threshold_has_no_winner() -> None:
    """An export in bf16 differs from the run by less than 0.005 bits/byte on every example alike."""
    base = [2.0, 3.0, 4.0, 5.0]
    for gap, better in ((0.002, None), (0.006, "first"), (-0.006, "second")):
        values = [value + gap + 1e-5 * index for index, value in enumerate(base)]
        (found,) = compare_models([task_score(base)], [task_score(values)])
        assert found.is_significant and found.better == better


def test_runs_of_two_families_are_paired(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(family: str, rung: str, seed: int, tokens_per_param: float = 20.0) -> RunResult:
        known = {"family": family, "rung": rung, "seed": seed, "tokens_per_param": tokens_per_param}
        return RunResult(**dict.fromkeys(each.name for each in fields(RunResult)) | known)  # type: ignore[arg-type]

    runs = [run("wide", "s", 0), run("deep", "s", 0, 20.3), run("wide", "m", 0), run("deep", "m", 0),
            run("deep", "m", 1), run("wide", "s", 2), run("deep", "s", 2, 40.0), None]  # fmt: skip
    means = [2.0, 1.8, 1.0, 1.1, 9.0, 9.0, 9.0, 9.0]
    models = [(f"m{i}", [task_score([mean, mean + 0.1, mean])]) for i, mean in enumerate(means)]
    print_comparison(models, runs)
    shown = " ".join(capsys.readouterr().out.split())
    table = shown[shown.index("deep minus wide, bits/byte: mean over pairs") :]
    assert "arc_easy -0.0500" in table and "1 of 2 pairs" in table


def test_note_names_only_the_tasks_that_are_printed() -> None:
    assert low_signal_note(["arc_easy", "hellaswag"]) == ""
    assert "on boolq, winogrande decides" in low_signal_note(["winogrande", "arc_easy", "boolq"])
