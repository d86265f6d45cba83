"""Charts of an evaluation: quality against size, latency and memory, and scores of each task."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from slm.charts import Axis, Figure, ParetoPoint, Series, forest, pareto
from slm.charts.encodings import Kind
from slm.evaluation.models import CHECKPOINT
from slm.evaluation.result import Evaluation, ModelScores
from slm.evaluation.zero_shot.score import TaskScore
from slm.formatting import short_count

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
        "peak memory",
        "peak memory (MB)",
        "number",
        lambda s: None if s.speed is None or s.speed.peak_memory_bytes is None else s.speed.peak_memory_bytes / 1e6,
    ),
)  # fmt: skip

TASK_METRICS = ("bits_per_byte", "acc")
FIGURES = (*(f"pareto_{cost[0]}" for cost in COSTS), *(f"tasks_{name}" for name in TASK_METRICS))
"""Names of all charts."""


def evaluation_figures(evaluation: Evaluation) -> list[Figure]:
    """Return the charts whose numbers were measured."""
    families = list(dict.fromkeys(scores.model.family for scores in evaluation.models))
    figures = []
    quality = _quality(evaluation)
    if quality is not None:
        figures += _pareto_figures(evaluation, families, *quality)
    for metric in TASK_METRICS:
        figure = _task_figure(evaluation.models, families, metric)
        if figure is not None:
            figures.append(figure)
    return figures


Quality = Callable[[ModelScores], float | None]


def _quality(evaluation: Evaluation) -> tuple[str, Quality] | None:
    """Return the measure of quality: perplexity if comparable, else bits per byte of the text, or of the tasks."""
    if evaluation.settings.text is not None:
        if evaluation.same_tokens:
            return "perplexity", lambda s: None if s.text is None else s.text.all.perplexity
        return "bits/byte", lambda s: None if s.text is None else s.text.all.bits_per_byte
    if any(task.bits_per_byte is not None for s in evaluation.models for task in s.tasks):
        return "bits/byte of the gold answers, mean of the tasks", _mean_of_tasks
    return None


def _mean_of_tasks(scores: ModelScores) -> float | None:
    values = [task.bits_per_byte for task in scores.tasks if task.bits_per_byte is not None]
    return sum(values) / len(values) if values else None


def _pareto_figures(
    evaluation: Evaluation, families: Sequence[str], y_name: str, quality: Quality
) -> list[Figure]:
    figures = []
    for name, short, x_title, kind, cost in COSTS:
        found = [
            ParetoPoint(x, y, scores.model.family, _label(scores), _tip(scores))
            for scores in evaluation.models
            if (x := cost(scores)) is not None and (y := quality(scores)) is not None
        ]
        if found:
            figures.append(
                pareto(
                    found,
                    families,
                    name=f"pareto_{name}",
                    title=f"{y_name[0].upper()}{y_name[1:]} against {short}",
                    caption="Outlined: the Pareto frontier, models that no other beats in both. A point without a label has it in its tooltip.",
                    x_title=x_title,
                    y_title=y_name,
                    x_kind=kind,
                )
            )
    return figures


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
    rows = []
    names = dict.fromkeys(task.task for scores in models for task in scores.tasks)
    for name in names:
        for scores in models:
            for task in scores.tasks:
                value, error = _score(task, metric)
                if task.task != name or value is None:
                    continue
                half = None if error is None else CONFIDENCE_95 * error
                colour = series.colour(scores.model.family)
                chance = "-" if task.chance is None else f"{task.chance:.1%}"
                rows.append(
                    {
                        "row": f"{task.task}: {scores.model.label}",
                        "x": value,
                        "low": None if half is None else value - half,
                        "high": None if half is None else value + half,
                        "colour": colour,
                        "mark": colour,
                        "shape": series.shape(scores.model.family),
                        "tip": {
                            "task": task.task,
                            "model": scores.model.label,
                            metric: f"{value:.4f}",
                            "standard error": "-" if error is None else f"{error:.4f}",
                            "chance": chance,
                        },
                    }
                )
    if not rows:
        return None
    words = "bits per byte of the gold answer" if metric == "bits_per_byte" else "accuracy"
    axis = Axis.around([row[key] for row in rows for key in ("low", "high", "x")], words)  # type: ignore[misc]
    title = f"Zero-shot tasks: {words}"
    caption = "Bars: 95% intervals over examples. " + (
        "Lower is better."
        if metric == "bits_per_byte"
        else "Higher is better; compare with the chance level in the table."
    )
    name = f"tasks_{metric}"
    return Figure(name, title, caption, forest(rows, axis, {}), 30 + 24 * len(rows))


def _score(task: TaskScore, metric: str) -> tuple[float | None, float | None]:
    if metric == "bits_per_byte":
        return task.bits_per_byte, task.bits_per_byte_se
    return task.metrics.get(metric), task.metrics.get(f"{metric}_se")
