"""Tables and notes of an evaluation, for the screen and the page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from rich.console import Console

from slm.architecture.memory import format_bytes
from slm.console import Column, FittedTable, print_lines
from slm.evaluation.perplexity import Score
from slm.evaluation.protocols import Settings
from slm.evaluation.result import MIN_PARAMS_ADDED, Evaluation, Gain, ModelScores
from slm.evaluation.zero_shot.score import low_signal_note
from slm.formatting import count, short_count
from slm.tracking.speeds import InferenceSpeed

NONE = "-"
TASK_TITLE = "Zero-shot tasks: bits/byte of the gold answer, and accuracy ± standard error"
SCORE_NAMES = {"bits_per_byte": "bits/byte"}
ACCURACIES = ("acc", "acc_norm")  # metrics with a column of their own on the screen


def print_tables(evaluation: Evaluation, target: Console, *, documents: bool) -> None:
    """Print the tables of an evaluation, and with `documents` one row for each document of the text."""
    for number, table in enumerate(tables(evaluation, documents=documents)):
        if number:
            target.print()
        target.print(table)
    lines = list(notes(evaluation))
    if lines:
        target.print()
    print_lines(target, lines)


def tables(evaluation: Evaluation, *, documents: bool = False) -> list[FittedTable]:
    """Return the tables of what was measured."""
    models = evaluation.models
    found = [_model_table(evaluation)] if models else []
    if documents:
        found += [
            _document_table(scores.model.label, scores.text.documents)
            for scores in models
            if scores.text is not None
        ]
    gains = evaluation.gains()
    if gains:
        found.append(_gain_table(gains))
    if any(scores.tasks for scores in models):
        found.append(_task_table(models))
    if any(scores.speed is not None for scores in models):
        found.append(_speed_table(evaluation))
    return found


def _model_table(evaluation: Evaluation) -> FittedTable:
    def column(heading: str, cell: Callable[[ModelScores], str], rank: int = 0) -> Column:
        return Column(heading, [cell(scores) for scores in evaluation.models], rank)

    columns = [
        Column("model", [scores.model.label for scores in evaluation.models], is_left=True),
        column("seed", lambda s: NONE if s.model.seed is None else str(s.model.seed), 7),
        column("params", lambda s: short_count(s.params_total)),
        column("without\nembeddings", lambda s: short_count(s.params_non_embedding), 3),
    ]
    if evaluation.settings.text is None:
        return FittedTable(columns)

    def of_text(form: Callable[[Score], str]) -> Callable[[ModelScores], str]:
        return lambda scores: NONE if scores.text is None else form(scores.text.all)

    columns += [
        column("perplexity", of_text(lambda score: f"{score.perplexity:.3f}")),
        column("nats/token", of_text(lambda score: f"{score.nats_per_token:.4f}"), 5),
        column("bits/byte", of_text(lambda score: f"{score.bits_per_byte:.4f}")),
        column("SE", _standard_error, 1),
        column("window/stride", _windows, 2),
        column("tokens", of_text(lambda score: f"{score.tokens:,}"), 4),
        column("bytes", of_text(lambda score: f"{score.text_bytes:,}"), 6),
    ]
    return FittedTable(columns, note=" ".join(_text_notes(evaluation)))


def _standard_error(scores: ModelScores) -> str:
    error = None if scores.text is None else scores.text.bits_per_byte_se
    return NONE if error is None else f"{error:.4f}"


def _windows(scores: ModelScores) -> str:
    return NONE if scores.text is None else f"{scores.text.window}/{scores.text.stride}"


def _document_table(label: str, scores: Sequence[Score]) -> FittedTable:
    columns = [
        Column("document", [score.name for score in scores], is_left=True, wraps=True),
        Column("tokens", [f"{score.tokens:,}" for score in scores], rank=1),
        Column("bytes", [f"{score.text_bytes:,}" for score in scores], rank=2),
        Column("nats/token", [f"{score.nats_per_token:.4f}" for score in scores]),
        Column("perplexity", [f"{score.perplexity:.3f}" for score in scores]),
        Column("bits/byte", [f"{score.bits_per_byte:.4f}" for score in scores]),
    ]
    return FittedTable(columns, f"Documents of {label}")


def _gain_table(gains: Sequence[Gain]) -> FittedTable:
    columns = [
        Column("from", [gain.smaller for gain in gains], is_left=True),
        Column("to", [gain.larger for gain in gains], is_left=True),
        Column("params added", [f"+{short_count(gain.params_added)}" for gain in gains]),
        Column("perplexity gain", [f"{gain.perplexity_gain:.4g}" for gain in gains]),
        Column("gain per 100M", [_per_100m(gain) for gain in gains]),
    ]
    return FittedTable(columns, "Perplexity gain between neighbours in size")


def _per_100m(gain: Gain) -> str:
    return f"{gain.per_100m:.3g}" if gain.params_added >= MIN_PARAMS_ADDED else NONE


def _task_table(models: Sequence[ModelScores]) -> FittedTable:
    names = dict.fromkeys(task.task for scores in models for task in scores.tasks)
    rows = [
        (task, scores.model.label)
        for name in names
        for scores in models
        for task in scores.tasks
        if task.task == name
    ]
    columns = [
        Column("task", [task.task for task, _ in rows], is_left=True),
        Column("model", [label for _, label in rows], is_left=True),
        Column("bits/byte", [_number(task.bits_per_byte) for task, _ in rows]),
        Column("SE", [_number(task.bits_per_byte_se) for task, _ in rows], 2),
    ]
    for metric in ACCURACIES:
        if any(metric in task.metrics for task, _ in rows):
            cells = [_percent(task.metrics, metric) for task, _ in rows]
            columns.append(Column(metric, cells, 0 if metric == "acc" else 1))
    columns += [
        Column("chance", [_share(task.chance) for task, _ in rows], 3),
        Column("examples", [f"{task.examples:,}" for task, _ in rows], 4),
    ]
    return FittedTable(columns, TASK_TITLE)


def comparison_table(evaluation: Evaluation) -> FittedTable | None:
    """Return the differences of the models to the first one on the same tasks; None for one model."""
    rows = evaluation.comparisons()
    if not rows:
        return None
    intervals = [difference.interval for _, difference in rows]
    columns = [
        Column("model", [label for label, _ in rows], is_left=True),
        Column("task", [each.task for _, each in rows], is_left=True),
        Column(
            "score", [SCORE_NAMES.get(each.metric, each.metric) for _, each in rows], is_left=True
        ),
        Column("first model", [f"{each.first:.4f}" for _, each in rows]),
        Column("this model", [f"{each.second:.4f}" for _, each in rows]),
        Column("difference", [f"{each.difference:+.4f}" for _, each in rows]),
        Column(
            "95% interval",
            [NONE if i is None else f"{i[0]:+.4f} to {i[1]:+.4f}" for i in intervals],
        ),
        Column(
            "better",
            [{"first": "first", "second": "this", None: NONE}[each.better] for _, each in rows],
            is_left=True,
        ),
    ]
    base = next(scores.model.label for scores in evaluation.models if scores.tasks)
    title = f"Scores of each model minus those of {base}, the first model, on the same examples"
    note = "Intervals: over examples, clustered by common text; they do not contain the variance over seeds."
    return FittedTable(columns, title, note=note)


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:.4f}"


def _share(value: float | None) -> str:
    return NONE if value is None else f"{value:.1%}"


def _percent(metrics: Mapping[str, float], name: str) -> str:
    """Return a metric with its standard error, in percent."""
    if name not in metrics:
        return NONE
    error = metrics.get(f"{name}_se")
    return f"{metrics[name]:.1%}" + ("" if error is None else f" ± {100 * error:.1f}")


def _speed_table(evaluation: Evaluation) -> FittedTable:
    def column(heading: str, cell: Callable[[InferenceSpeed], str], rank: int = 0) -> Column:
        cells = [NONE if s.speed is None else cell(s.speed) for s in evaluation.models]
        return Column(heading, cells, rank)

    columns = [
        Column("model", [scores.model.label for scores in evaluation.models], is_left=True),
        column("decode\ntokens/s", lambda speed: f"{speed.decode_tokens_per_second:,.1f}"),
        column("prefill\ntokens/s", lambda speed: f"{speed.prefill_tokens_per_second:,.0f}", 2),
        column(
            "first token\nms", lambda speed: f"{1e3 * speed.time_to_first_token_seconds:.2f}", 1
        ),
        column("peak\nmemory", _memory),
    ]
    return FittedTable(columns, _speed_title(evaluation), note=_speed_note(evaluation))


def _speed_title(evaluation: Evaluation) -> str:
    settings = evaluation.settings
    return (
        f"Speed: batch 1, greedy, {settings.prompt_tokens} prompt tokens, {settings.new_tokens} new tokens, "
        f"{settings.dtype}, median of {count(settings.rounds, 'round')}"
    )


def _speed_note(evaluation: Evaluation) -> str:
    settings = evaluation.settings
    needed = settings.prompt_tokens + settings.new_tokens
    lengths = sorted({scores.model.shape.seq_len for scores in evaluation.models})
    short = [str(length) for length in lengths if length < needed]
    if not short:
        return ""
    return (
        f"seq_len={', '.join(short)} is shorter than prompt and new tokens: measured with a longer RoPE table, which "
        "changes no parameter."
    )


def _memory(speed: InferenceSpeed) -> str:
    return NONE if speed.peak_memory_bytes is None else format_bytes(speed.peak_memory_bytes)


def conditions(evaluation: Evaluation) -> Iterator[str]:
    """Yield what was measured and how, one line per kind of measurement."""
    settings = evaluation.settings
    if settings.text is not None:
        texts = [scores.text for scores in evaluation.models if scores.text is not None]
        windows = ", ".join(dict.fromkeys(f"{text.window}/{text.stride}" for text in texts))
        number = f", {count(len(texts[0].documents), 'document')}" if texts else ""
        token = "before each document" if settings.start_token else "not added"
        yield (
            f"Text: {settings.text}{number} (document={settings.document}), window/stride {windows or NONE} tokens, "
            f"start token {token}"
        )
    if settings.tasks:
        source = settings.task_data or "Hugging Face hub"
        limit = (
            "all examples" if settings.limit is None else f"limit={settings.limit} examples each"
        )
        yield f"Tasks: {', '.join(settings.tasks)}, {limit}, from {source}"
    if settings.speed:
        yield _speed_title(evaluation)
    yield f"{evaluation.date}, slm {evaluation.slm_version}, {evaluation.device}"


def notes(evaluation: Evaluation) -> Iterator[str]:
    """Yield the protocol, the limits of the tasks, and the failures."""
    settings, models = evaluation.settings, evaluation.models
    if settings.protocol:
        yield f"Protocol {settings.protocol}" + _changes(settings) + "."
    if note := low_signal_note(task.task for scores in models for task in scores.tasks):
        yield note
    if any(scores.speed is not None for scores in models):
        yield f"Device: {evaluation.device}."
    for failure in evaluation.failures:
        yield f"FAILED {failure.model.path}: {failure.reason}"


def _text_notes(evaluation: Evaluation) -> Iterator[str]:
    """Yield notes on the comparability of the scores of the text."""
    models = evaluation.models
    texts = [scores.text for scores in models if scores.text is not None]
    if texts and len({(text.window, text.stride) for text in texts}) > 1:
        yield "Windows differ between models, so part of a difference is due to the context; set window=TOKENS."
    if texts and not evaluation.same_tokens:
        yield "Tokenizers differ: compare bits/byte, not perplexity or nats/token."
    if texts and any(text.bits_per_byte_se is None for text in texts):
        yield "SE: none, because the text is one document; set document=article, paragraph or line."
    for scores in models:
        if scores.text is not None and not scores.text.is_lossless:
            yield (
                f"{scores.model.label}: the tokens do not decode to exactly the text, so its bits/byte are approximate."
            )


def _changes(settings: Settings) -> str:
    return f" with {', '.join(settings.changes)}" if settings.changes else ""
