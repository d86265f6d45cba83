"""Find zero-shot tasks, on the hub or in a local folder, and score a model on them.

The prompts, choices and accuracies are those of lm-eval. The bits per byte of the gold answer are computed here, as
in OLMES, which DataDecide (2504.11393) uses: -log2 p(answer | question) / UTF-8 bytes of the scored answer, which
begins with a space, and then the mean over the examples.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2s
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

from slm.data.tokenizers.tokenizer import Tokenizer
from slm.errors import NO_VALUE, ConfigError, DataError, Problem, nearest
from slm.evaluation.zero_shot.definitions import DEFINITIONS, NAMES, Definition
from slm.evaluation.zero_shot.local_files import find_file, read_examples
from slm.evaluation.zero_shot.score import TaskScore
from slm.evaluation.zero_shot.standard_error import clustered_mean
from slm.model.loss import perplexity
from slm.model.transformer import Transformer

LOCAL_DEFINITIONS = Path(__file__).with_name("local_definitions")
ACCURACIES = ("acc", "acc_norm")
ROLLING = "loglikelihood_rolling"
LOGGERS = ("lm_eval", "datasets", "huggingface_hub", "httpx")


@dataclass(frozen=True)
class Task:
    """A task with its examples. `definition` is lm-eval's task object."""

    name: str
    definition: Any
    source: str
    """Local file, or name of the data set on the hub."""
    cluster: str | None = None
    """Field that examples with common text share."""

    @property
    def examples(self) -> int:
        return len(self.definition.eval_docs)


def find_tasks(names: Sequence[str], folder: Path | None) -> list[Task]:
    """Return the tasks with all their examples, from JSONL files in `folder`, or from the hub if it is None.

    Raises:
        ConfigError: for an unknown task, a missing file, or if lm-eval is not installed.
        DataError: if a file is damaged, or a data set cannot be downloaded.
    """
    known = _known_names(names)
    files = _local_files(known, folder) if folder is not None else {}
    require_lm_eval()
    with quiet():
        return [
            _task_from_hub(name) if folder is None else _task_from_file(name, files[name])
            for name in known
        ]


def score_tasks(
    model: Transformer, tokenizer: Tokenizer, tasks: Sequence[Task], *, limit: int | None = None
) -> list[TaskScore]:
    """Score a model in eval mode on each task; `limit`: only the first examples of each.

    Raises:
        DataError: if an answer is longer than the model's seq_len; the message names the task.
    """
    require_lm_eval()
    from slm.evaluation.zero_shot.adapter import SlmLM

    lm = SlmLM(model, tokenizer)
    scores = []
    for task in tasks:
        try:
            with quiet():
                scores.append(score_task(lm, task, limit=limit))
        except DataError as error:
            raise DataError(f"tasks={task.name}: {error}") from None
    return scores


def score_task(lm: Any, task: Task, *, limit: int | None = None) -> TaskScore:
    """Score any model of lm-eval on a task."""
    rows, requests = [], []
    for index, row in enumerate(islice(task.definition.eval_docs, limit)):
        context = task.definition.fewshot_context(row, num_fewshot=0)
        made = task.definition.construct_requests(
            row, context, metadata=(task.name, index, 1), doc_id=index
        )
        rows.append(row)
        requests.append(made if isinstance(made, list) else [made])
    kind = requests[0][0].request_type
    answers = iter(getattr(lm, kind)([one for each in requests for one in each]))
    samples = [
        _sample(task, index, row, each, [next(answers) for _ in each])
        for index, (row, each) in enumerate(zip(rows, requests, strict=True))
    ]
    is_rolling = kind == ROLLING
    metrics = _text_metrics(samples) if is_rolling else _answer_metrics(task, samples)
    bits, bits_se = clustered_mean(
        [sample["bits_per_byte"] for sample in samples],
        _clusters(samples),
        weights=[sample["bytes"] for sample in samples] if is_rolling else None,
    )
    counts = [len(sample["loglikelihoods"]) for sample in samples]
    has_choices = task.definition.OUTPUT_TYPE == "multiple_choice"
    return TaskScore(
        task=task.name,
        examples=len(samples),
        bits_per_byte=bits,
        bits_per_byte_se=None if math.isnan(bits_se) else bits_se,
        metrics={key: value for key, value in metrics.items() if not math.isnan(value)},
        chance=math.fsum(1 / count for count in counts) / len(counts) if has_choices else None,
        samples=samples,
    )


def _sample(
    task: Task,
    index: int,
    row: Mapping[str, Any],
    requests: Sequence[Any],
    answers: Sequence[Any],
) -> dict[str, Any]:
    """Return the record of one example: its log-likelihoods in nats, and its scores."""
    lm_scores = task.definition.process_results(row, list(answers))
    shared = None if task.cluster is None else row.get(task.cluster)
    cluster = str(index) if shared is None else _short_hash(str(shared))
    sample: dict[str, Any] = {"example": index, "cluster": cluster}
    if requests[0].request_type == ROLLING:
        (nats,) = answers
        _, text_bytes = lm_scores["bits_per_byte"]
        _, words = lm_scores["word_perplexity"]
        gold, sample["words"], sample["loglikelihoods"] = 0, words, [nats]
    else:
        gold = _gold(task.definition, row)
        # The text as scored, with the space before it. In winogrande it is the text after the blank.
        text_bytes = len(requests[gold].args[1].encode())
        sample["loglikelihoods"] = [nats for nats, _ in answers]
        sample |= {name: float(lm_scores[name]) for name in ACCURACIES if name in lm_scores}
    sample |= {"gold": gold, "bytes": text_bytes}
    sample["bits_per_byte"] = -sample["loglikelihoods"][gold] / math.log(2) / text_bytes
    return sample


def _gold(definition: Any, row: Mapping[str, Any]) -> int:
    """Return the index of the request with the gold answer."""
    if definition.OUTPUT_TYPE != "multiple_choice":
        return 0
    # Tasks with one context per choice, such as winogrande, give the index where others give the text.
    gold = (
        definition.doc_to_text(row) if definition.multiple_input else definition.doc_to_target(row)
    )
    return gold if isinstance(gold, int) else definition.doc_to_choice(row).index(gold)


def _clusters(samples: Sequence[Mapping[str, Any]]) -> list[str]:
    return [sample["cluster"] for sample in samples]


def _answer_metrics(task: Task, samples: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    metrics = {}
    for name in ACCURACIES:
        if name in samples[0]:
            values = [each[name] for each in samples]
            metrics[name], metrics[f"{name}_se"] = clustered_mean(values, _clusters(samples))
    if task.definition.OUTPUT_TYPE == "loglikelihood":
        nats = [-each["loglikelihoods"][0] for each in samples]
        mean, se = clustered_mean(nats, _clusters(samples))
        metrics["perplexity"], metrics["perplexity_se"] = _perplexity(mean, se)
    return metrics


def _text_metrics(samples: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the perplexities of all texts together."""
    metrics = {}
    for name, unit in (("word_perplexity", "words"), ("byte_perplexity", "bytes")):
        nats = [-each["loglikelihoods"][0] / each[unit] for each in samples]
        mean, se = clustered_mean(nats, weights=[each[unit] for each in samples])
        metrics[name], metrics[f"{name}_se"] = _perplexity(mean, se)
    return metrics


def _perplexity(mean: float, se: float) -> tuple[float, float]:
    """Return exp(mean) and its standard error; infinite if they are too large for a float."""
    value = perplexity(mean)
    return value, value * se


def _short_hash(text: str) -> str:
    return blake2s(text.encode(), digest_size=6).hexdigest()


def require_lm_eval() -> None:
    """Check that lm-eval is installed.

    Raises:
        ConfigError: if it is not; the message names the extra that installs it.
    """
    if find_spec("lm_eval") is None:
        fix = "run pip install -e '.[eval]' in the repository"
        raise ConfigError([Problem("tasks", NO_VALUE, "lm-eval is not installed", fix)])


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the warnings and progress bars of lm-eval and of the libraries that it loads data with."""
    import datasets

    levels = {name: logging.getLogger(name).level for name in LOGGERS}
    had_bars = datasets.are_progress_bars_disabled()
    try:
        for name in LOGGERS:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        datasets.disable_progress_bars()
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        if not had_bars:
            datasets.enable_progress_bars()


def _known_names(names: Sequence[str]) -> list[str]:
    """Return the tasks without their aliases, in the given order."""
    problems = [
        Problem("tasks", name, "unknown task", nearest(name, NAMES))
        for name in names
        if name not in NAMES
    ]
    known = [NAMES[name] for name in names if name in NAMES]
    problems += [
        Problem("tasks", name, "given twice", "give each task once")
        for name, count in Counter(known).items()
        if count > 1
    ]
    if problems:
        raise ConfigError(problems)
    return known


def _local_files(names: Sequence[str], folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise ConfigError([Problem("task_data", folder, "no such folder")])
    found = {name: find_file(folder, DEFINITIONS[name]) for name in names}
    present = sorted(path.name for path in folder.iterdir() if path.suffix == ".jsonl")
    problems = [
        Problem(
            "task_data",
            folder / DEFINITIONS[name].files[0],
            f"no such file, needed for tasks={name}",
            f"the folder has {', '.join(present) or 'no .jsonl file'}",
        )
        for name, path in found.items()
        if path is None
    ]
    if problems:
        raise ConfigError(problems)
    return {name: path for name, path in found.items() if path is not None}


def _task_from_file(name: str, path: Path) -> Task:
    import datasets

    definition = DEFINITIONS[name]
    layout, rows = read_examples(path, definition)
    columns = [*layout.fields, *([definition.cluster] if definition.cluster in rows[0] else [])]
    columns = list(dict.fromkeys(columns))
    try:
        examples = datasets.Dataset.from_list(
            [{key: row.get(key) for key in columns} for row in rows]
        )
    except (TypeError, ValueError) as error:  # those of pyarrow
        raise DataError(f"{path}: a field holds values of different types ({error})") from None
    changes = {
        "custom_dataset": lambda **_: datasets.DatasetDict(test=examples),
        "training_split": None,
        "validation_split": None,
        "test_split": "test",
    }
    built = _build(
        name, LOCAL_DEFINITIONS if layout.is_ours else _lm_eval_folder(definition), changes
    )
    return Task(name, built, str(path), definition.cluster)


def _task_from_hub(name: str) -> Task:
    definition = DEFINITIONS[name]
    folder = _lm_eval_folder(definition)
    try:
        built = _build(name, folder, {})
    except Exception as error:  # of datasets, huggingface_hub, httpx or requests
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]:.100}"
        raise DataError(
            f"tasks={name}: its data set is neither in the cache nor can it be downloaded ({reason}); give "
            f"task_data=DIR, a folder with {definition.files[0]}"
        ) from None
    return Task(name, built, built.DATASET_PATH, definition.cluster)


def _build(name: str, folder: Path, changes: Mapping[str, Any]) -> Any:
    """Build lm-eval's task from the definitions in one folder: a scan of all of them takes many seconds."""
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder), include_defaults=False)
    # Settings beside the name of a task change its definition only within a group.
    return manager.load([{"group": "slm", "task": [{"task": name, **changes}]}])["tasks"][name]


def _lm_eval_folder(definition: Definition) -> Path:
    import lm_eval

    return Path(lm_eval.__file__).parent / "tasks" / definition.folder
