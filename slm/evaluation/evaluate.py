"""Evaluate several models: perplexity of a text, zero-shot tasks, speed and memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from slm import __version__
from slm.errors import ConfigError, DataError, Problem, RunError, SlmError
from slm.evaluation.load import LoadedModel, load_with_tokenizer
from slm.evaluation.models import Model, find_models
from slm.evaluation.outputs import check_out, remove_earlier, write_page, write_tables
from slm.evaluation.perplexity import score_texts
from slm.evaluation.protocols import Settings, check_lengths, resolve_settings, split_names
from slm.evaluation.result import Evaluation, Failure, ModelScores, TextScore
from slm.evaluation.speed_process import measure_in_process
from slm.evaluation.texts import read_texts
from slm.evaluation.zero_shot.score import FINGERPRINT_DIGITS, TaskScore
from slm.files import canonical_hash
from slm.formatting import count
from slm.model.out_of_memory import is_out_of_memory
from slm.tracking.environment import cpu_name

log = logging.getLogger(__name__)
Texts = Sequence[tuple[str, str]]


def evaluate_models(
    models: Sequence[str | Path] | str | Path,
    *,
    text: str | None = None,
    tasks: str | Sequence[str] | None = None,
    speed: bool = False,
    protocol: str | None = None,
    window: int | None = None,
    stride: int | None = None,
    document: str | None = None,
    column: str | None = None,
    start_token: bool | None = None,
    task_data: str | Path | None = None,
    limit: int | None = None,
    prompt_tokens: int | None = None,
    new_tokens: int | None = None,
    rounds: int | None = None,
    dtype: str | None = None,
    out: str | Path | None = None,
) -> Evaluation:
    """Evaluate models with the same settings; None takes the value of the protocol, else the default.

    A model that cannot be loaded or computed is recorded in `failures`, and the others continue.

    Args:
        models: run directories, Llama-format folders, or folders of them such as that of a study, which stands for
            its finished runs.
        text: path or pattern of text files, or `wikitext2` for the raw test split from the hub.
        tasks: names of zero-shot tasks, as a list or separated by commas.
        speed: measure decoding and prefill speed and peak memory, each model in a process of its own.
        protocol: `seed` (WikiText-2, window 1024, stride 512) or `mobilellm` (eight zero-shot tasks).
        window: length of a window in tokens; default: the seq_len of each model.
        stride: distance of two windows in tokens; default: half a window.
        document: unit that is scored as one document (`slm.evaluation.texts.read_texts`); default: file.
        column: column of .jsonl and .parquet files with the text; default: text.
        start_token: put the end-of-text token before each document; default: True.
        task_data: folder with TASK.jsonl files, instead of the hub.
        limit: number of examples per task; default: all.
        prompt_tokens: length of the prompt in the measurement of speed; default: 64.
        new_tokens: number of tokens that it generates; default: 128.
        rounds: timed repetitions; default: 3.
        dtype: fp32 or bf16, for the measurement of speed; default: fp32.
        out: folder for models.csv, results.json, samples/ and page.html.

    Raises:
        ConfigError, DataError, RunError: if a setting, a folder, a text or a task is invalid; nothing is computed then.
    """
    folders = [models] if isinstance(models, str | Path) else list(models)
    settings = resolve_settings(
        protocol,
        {
            "text": text,
            "window": window,
            "stride": stride,
            "document": document,
            "column": column,
            "start_token": start_token,
            "tasks": split_names(tasks or ()),
            "task_data": None if task_data is None else Path(task_data),
            "limit": limit,
            "speed": speed or None,
            "prompt_tokens": prompt_tokens,
            "new_tokens": new_tokens,
            "rounds": rounds,
            "dtype": dtype,
        },
    )
    if not folders:
        raise ConfigError([Problem("models", "", "no models", "give run or checkpoint folders")])
    folder = None if out is None else Path(out)
    needs_tokenizer = settings.text is not None or bool(settings.tasks)
    found = find_models([Path(each) for each in folders], needs_tokenizer=needs_tokenizer)
    check_lengths(settings, {model.label: model.shape for model in found})
    if folder is not None:
        check_out(folder)
    score = _task_scorer(settings)
    texts = () if settings.text is None else read_texts(settings.text, document=settings.document, column=settings.column)  # fmt: skip
    return _evaluate_each(found, settings, texts, score, folder)


TaskScorer = Callable[[LoadedModel], Sequence[TaskScore]]


def _task_scorer(settings: Settings) -> TaskScorer | None:
    """Return the function that scores the tasks of the settings, which it finds first; None without tasks."""
    if not settings.tasks:
        return None
    from slm.evaluation.zero_shot.tasks import find_tasks, score_tasks  # needs lm-eval

    tasks = find_tasks(settings.tasks, settings.task_data)
    return lambda loaded: score_tasks(loaded.model, loaded.tokenizer, tasks, limit=settings.limit)


def _evaluate_each(
    models: Sequence[Model],
    settings: Settings,
    texts: Texts,
    score: TaskScorer | None,
    out: Path | None,
) -> Evaluation:
    """Evaluate the models one after another, and write the tables after each."""
    if out is not None and remove_earlier(out):
        log.info("replaces the evaluation in %s", out)
    done: list[ModelScores] = []
    failures: list[Failure] = []
    evaluation = Evaluation(
        settings=settings,
        device=device_name(),
        models=(),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        slm_version=__version__,
    )
    for number, model in enumerate(models, start=1):
        log.info("%d/%d %s", number, len(models), model.label)
        try:
            with _errors_of_model():
                done.append(_evaluate_one(model, settings, texts, score))
        except SlmError as error:
            failures.append(Failure(model, str(error)))
        except KeyboardInterrupt:
            kept = "give out=DIR to keep finished ones" if out is None else f"they are in {out}"
            log.warning("stopped after %d of %d models; %s", number - 1, len(models), kept)
            if out is not None and done:
                write_page(evaluation, out)
            raise
        evaluation = replace(evaluation, models=tuple(done), failures=tuple(failures))
        if out is not None:
            write_tables(evaluation, out)
    if out is not None:
        write_page(evaluation, out)
    return evaluation


@contextmanager
def _errors_of_model() -> Iterator[None]:
    """Convert errors of the system and of the memory to an `SlmError`, so that the other models continue."""
    try:
        yield
    except (OSError, MemoryError, RuntimeError) as error:
        if not isinstance(error, OSError) and not is_out_of_memory(error):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RunError(f"stopped by the system: {reason}") from error


def _evaluate_one(
    model: Model, settings: Settings, texts: Texts, score: TaskScorer | None
) -> ModelScores:
    values: dict[str, Any] = {}
    if texts or score is not None:
        loaded = load_with_tokenizer(model.path)
        loaded.model.to("cuda" if torch.cuda.is_available() else "cpu")
        if texts:
            values["text"] = _score_text(loaded, settings, texts)
        if score is not None:
            values["tasks"] = tuple(score(loaded))
        del loaded
    if settings.speed:
        values["speed"] = measure_in_process(model.path, settings)
    return ModelScores(model=model, **values)


def _score_text(loaded: LoadedModel, settings: Settings, texts: Texts) -> TextScore:
    seq_len = loaded.model.shape.seq_len
    window, stride = settings.window_of(seq_len), settings.stride_of(seq_len)
    scores = score_texts(
        loaded.model,
        loaded.tokenizer,
        texts,
        window=window,
        stride=stride,
        start_token=settings.start_token,
    )
    scored = [[text for _, text in texts], settings.document, window, stride, settings.start_token]
    return TextScore(
        documents=tuple(scores),
        window=window,
        stride=stride,
        fingerprint=canonical_hash(scored)[:FINGERPRINT_DIGITS],
    )


def device_name() -> str:
    """Return the name of the GPU, or of the CPU with its number of threads."""
    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    return f"{cpu_name()}, {count(torch.get_num_threads(), 'thread')}"


def failure_error(evaluation: Evaluation) -> DataError:
    """Return the error of a command with failed models."""
    total = len(evaluation.models) + len(evaluation.failures)
    return DataError(f"{len(evaluation.failures)} of {total} models could not be evaluated")
