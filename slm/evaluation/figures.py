"""Charts of an evaluation: quality against size, latency and memory, and scores of each task."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from slm.architecture.decoding import decoding_memory_bytes
from slm.charts import Axis, Figure, ParetoPoint, Series, forest, pareto
from slm.charts.encodings import Kind
from slm.evaluation.models import CHECKPOINT
from slm.evaluation.result import Evaluation, ModelScores, TextScore
from slm.evaluation.zero_shot.score import TaskScore
from slm.formatting import short_count
from slm.tracking.speeds import InferenceSpeed

NO_FAMILY = "checkpoint, no family"
TOLERANCE = 0.01  # relative difference of two models that decides nothing
CONFIDENCE_95 = 1.96  # standard errors, normal approximation
COSTS: tuple[tuple[str, str, str, Kind, Callable[[ModelScores], float | None]], ...] = (
    ("params", "parameters", "parameters (total)", "count", lambda s: float(s.params_total)),
    (
        "latency",
        "decode latency",
        "decode latency (ms per token, batch 1)",
        "number",
        lambda s: None if s.speed is None else 1e3 / s.speed.decode_tokens_per_second,
    ),
    (
        "memory",
        "decoding memory",
        "weights and KV cache, computed from the shape (MB)",
        "number",
        lambda s: None if s.speed is None else _decoding_memory_bytes(s, s.speed) / 1e6,
    ),
)  # fmt: skip

TASK_METRICS = ("bits_per_byte", "acc")
FIGURES = (*(f"pareto_{cost[0]}" for cost in COSTS), *(f"tasks_{name}" for name in TASK_METRICS))
"""Names of all charts."""


def evaluation_figures(evaluation: Evaluation) -> list[Figure]:
    """Return the charts whose numbers were measured."""
    families = list(dict.fromkeys(_family(scores) for scores in evaluation.models))
    figures = []
    quality = _quality(evaluation)
    if quality is not None:
        figures += _pareto_figures(evaluation, families, *quality)
    for metric in TASK_METRICS:
        figure = _task_figure(evaluation.models, families, metric)
        if figure is not None:
            figures.append(figure)
    return figures


def _family(scores: ModelScores) -> str:
    """Return the family, or the name of the group of checkpoints that are no runs."""
    return NO_FAMILY if scores.model.state == CHECKPOINT else scores.model.family


def _decoding_memory_bytes(scores: ModelScores, speed: InferenceSpeed) -> int:
    return decoding_memory_bytes(
        scores.model.shape,
        tokens=speed.prompt_tokens + speed.new_tokens,
        batch_size=speed.batch_size,
        dtype=speed.dtype,
    )


Quality = Callable[[ModelScores], tuple[float, float | None] | None]
"""Returns a value and its standard error, None if unknown."""


def _quality(evaluation: Evaluation) -> tuple[str, Quality] | None:
    """Return the measure of quality: perplexity if comparable, else bits per byte of the text, or of the tasks."""
    if evaluation.settings.text is not None:
        if evaluation.same_tokens:
            return "perplexity", lambda s: None if s.text is None else _perplexity(s.text)
        return (
            "bits/byte",
            lambda s: (
                None if s.text is None else (s.text.all.bits_per_byte, s.text.bits_per_byte_se)
            ),
        )
    if any(task.bits_per_byte is not None for s in evaluation.models for task in s.tasks):
        return "bits/byte of the gold answers, mean of the tasks", _mean_of_tasks
    return None


def _perplexity(text: TextScore) -> tuple[float, float | None] | None:
    """Return the perplexity and its standard error, which is that of bits/byte by the delta method.

    None if the perplexity is too large for a float.
    """
    whole, error = text.all, text.bits_per_byte_se
    if not math.isfinite(whole.perplexity):
        return None
    if error is None:
        return whole.perplexity, None
    nats_error = error * math.log(2) * whole.text_bytes / whole.tokens
    return whole.perplexity, whole.perplexity * nats_error


def _mean_of_tasks(scores: ModelScores) -> tuple[float, float | None] | None:
    tasks = [task for task in scores.tasks if task.bits_per_byte is not None]
    if not tasks:
        return None
    mean = sum(task.bits_per_byte or 0.0 for task in tasks) / len(tasks)
    errors = [task.bits_per_byte_se for task in tasks if task.bits_per_byte_se is not None]
    return mean, math.hypot(*errors) / len(tasks) if len(errors) == len(tasks) else None


def _tolerance(name: str, models: Sequence[ModelScores]) -> tuple[float, float]:
    """Return the relative differences in cost and quality that decide nothing.

    A measured latency varies by the range of its rounds.
    """
    ranges = [
        (max(times) - min(times)) / median(times)
        for scores in models
        if name == "latency"
        and scores.speed is not None
        and (times := scores.speed.decode_seconds_per_token)
    ]
    return max([TOLERANCE, *ranges]), TOLERANCE


def _pareto_figures(
    evaluation: Evaluation, families: Sequence[str], y_name: str, quality: Quality
) -> list[Figure]:
    figures = []
    for name, short, x_title, kind, cost in COSTS:
        found = [
            ParetoPoint(x, y[0], _family(scores), _label(scores), _tip(scores), y[1])
            for scores in evaluation.models
            if (x := cost(scores)) is not None and (y := quality(scores)) is not None
        ]
        tolerance = _tolerance(name, evaluation.models)
        if found:
            figures.append(
                pareto(
                    found,
                    families,
                    name=f"pareto_{name}",
                    title=f"{y_name[0].upper()}{y_name[1:]} against {short}",
                    caption=_caption(found, tolerance),
                    tolerance=tolerance,
                    x_title=x_title,
                    y_title=y_name,
                    x_kind=kind,
                )
            )
    return figures


def _caption(found: Sequence[ParetoPoint], tolerance: tuple[float, float]) -> str:
    cost, quality = tolerance
    bars = any(point.y_error is not None for point in found)
    return (
        f"Outlined: the Pareto frontier, models that no other beats; differences up to {cost:.0%} in cost and "
        f"{quality:.0%} in quality count as equal. "
        + (
            "Bars: ±1 standard error over documents or examples, without that over seeds. "
            if bars
            else ""
        )
        + "A point without a label has it in its tooltip."
    )


def _label(scores: ModelScores) -> str:
    """Return the label without the family, which the colour shows."""
    model = scores.model
    return model.label if model.state == CHECKPOINT else model.label.removeprefix(model.family + " ")  # fmt: skip


def _tip(scores: ModelScores) -> dict[str, str]:
    """Return the same titles for all models, as tooltips need."""
    text, speed = scores.text, scores.speed
    memory = None if speed is None else speed.peak_memory_bytes
    return {
        "parameters": short_count(scores.params_total),
        "perplexity": "-" if text is None else f"{text.all.perplexity:.3f}",
        "bits/byte": "-" if text is None else f"{text.all.bits_per_byte:.4f}",
        "decode tokens/s": "-" if speed is None else f"{speed.decode_tokens_per_second:,.1f}",
        "peak memory": "-" if memory is None else f"{memory / 1e6:,.0f} MB",
    }


def _task_figure(
    models: Sequence[ModelScores], families: Sequence[str], metric: str
) -> Figure | None:
    """Return the scores of all tasks and models with 95% intervals; None if no task has the metric."""
    series = Series(tuple(families))
    is_accuracy = metric != "bits_per_byte"
    words = "accuracy" if is_accuracy else "bits/byte of the gold answer"
    form = "{:.1%}" if is_accuracy else "{:.4f}"
    rows: list[dict[str, Any]] = []
    names = dict.fromkeys(task.task for scores in models for task in scores.tasks)
    for name in names:
        for scores in models:
            for task in scores.tasks:
                value, error = _score(task, metric)
                if task.task != name or value is None:
                    continue
                half = None if error is None else CONFIDENCE_95 * error
                colour = series.colour(_family(scores))
                chance = "-" if task.chance is None else f"{task.chance:.1%}"
                rows.append(
                    {
                        "group": task.task,
                        "row": scores.model.label,
                        "reference": task.chance if is_accuracy else None,
                        "x": value,
                        "low": None if half is None else value - half,
                        "high": None if half is None else value + half,
                        "colour": colour,
                        "mark": colour,
                        "shape": series.shape(_family(scores)),
                        "tip": {
                            "task": task.task,
                            "model": scores.model.label,
                            words: form.format(value),
                            "standard error": "-" if error is None else form.format(error),
                            "chance": chance,
                        },
                    }
                )
    if not rows:
        return None
    places: list[float | None] = [
        row[key] for row in rows for key in ("low", "high", "x", "reference")
    ]
    axis = Axis.around(places, words, kind="percent" if is_accuracy else "number")
    title = f"Zero-shot tasks: {words}"
    caption = "Bars: 95% intervals over examples. " + (
        "Higher is better; grey ticks: accuracy of guessing." if is_accuracy else "Lower is better."
    )
    name = f"tasks_{metric}"
    height = 30 + 24 * (len(rows) + len(names))
    return Figure(name, title, caption, forest(rows, axis, {}), height)


def _score(task: TaskScore, metric: str) -> tuple[float | None, float | None]:
    if metric == "bits_per_byte":
        return task.bits_per_byte, task.bits_per_byte_se
    return task.metrics.get(metric), task.metrics.get(f"{metric}_se")
