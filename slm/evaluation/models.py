"""Find the models to evaluate and check their files, without loading weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from slm.architecture.shapes import ModelShape
from slm.data.tokenizers.hf_files import TOKENIZER_FILE
from slm.errors import DataError, RunError, SlmError, nearest_name
from slm.evaluation.load import has_run_config
from slm.formatting import count, short_count
from slm.logs import log
from slm.model.hf import is_llama_folder, llama_shape
from slm.tracking.checkpoints import saved_checkpoints
from slm.tracking.result import RunResult
from slm.tracking.run_dir import RunDirectory

MAX_DEPTH = 3  # of run directories below a given folder
CHECKPOINT = "checkpoint"  # family and state of a model that is not a run


@dataclass(frozen=True, kw_only=True)
class Model:
    """A run directory or a folder with a Llama-format checkpoint.

    Attributes:
        path: the folder.
        name: unique name of the model: that of the folder, with its parent's if two are equal.
        label: short unique name for tables and charts.
        family: family of a run; `checkpoint` for a Llama-format folder.
        shape: dimensions.
        state: state of the run; `checkpoint` for a Llama-format folder.
        seed: seed of the run; None for a Llama-format folder.
        result: result of a finished run, else None.
    """

    path: Path
    name: str
    label: str
    family: str
    shape: ModelShape
    state: str
    seed: int | None
    result: RunResult | None


def find_models(folders: Sequence[Path], *, needs_tokenizer: bool) -> list[Model]:
    """Return the models of folders in their order; another folder stands for the finished models below it.

    Args:
        folders: run directories, Llama-format folders, or folders of them, such as that of a study.
        needs_tokenizer: whether a run without a tokenizer is an error.

    Raises:
        DataError: if a folder is missing or has no model, or a model lacks a file; all problems together.
    """
    found: dict[Path, Model] = {}
    problems: list[str] = []
    for folder in folders:
        try:
            for path in _expand(folder):
                found.setdefault(path.resolve(), _read(path, needs_tokenizer=needs_tokenizer))
        except SlmError as error:
            problems.append(str(error))
    if len(problems) == 1:
        raise DataError(problems[0])
    if problems:
        lines = "".join(f"\n  - {problem}" for problem in problems)
        raise DataError(f"{len(problems)} models cannot be evaluated:{lines}")
    return _labelled(list(found.values()))


def _expand(folder: Path) -> list[Path]:
    if has_run_config(folder) or is_llama_folder(folder):
        return [folder]
    if not folder.exists():
        raise DataError(f"{folder}: no such folder{_near(folder)}")
    if folder.suffix == ".gguf":
        raise DataError(
            f"{folder}: GGUF files cannot be read back; give the run, or a folder exported with format=hf"
        )
    if not folder.is_dir():
        raise DataError(f"{folder}: a file; give the folder of a model")
    below = list(_below(folder, MAX_DEPTH))
    usable = [
        path
        for path in below
        if not has_run_config(path) or RunDirectory(path).state() == "finished"
    ]
    if usable:
        if left_out := len(below) - len(usable):
            log.info("%s: %s left out", folder, count(left_out, "unfinished run"))
        return usable
    if below:
        unfinished = count(len(below), "run")
        raise DataError(f"{folder}: none of {unfinished} has finished; train them first")
    raise DataError(
        f"{folder}: no model; a run directory has config.yaml, a Llama-format folder has config.json"
    )


def _below(folder: Path, depth: int) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if not path.is_dir() or path.name.startswith("."):
            continue
        if has_run_config(path) or is_llama_folder(path):
            yield path
        elif depth > 1:
            yield from _below(path, depth - 1)


def _near(folder: Path) -> str:
    siblings = (
        [path.name for path in folder.parent.iterdir() if path.is_dir()]
        if folder.parent.is_dir()
        else []
    )
    near = nearest_name(folder.name, siblings)
    return f"; did you mean {folder.parent / near}?" if near else ""


def _read(path: Path, *, needs_tokenizer: bool) -> Model:
    if not has_run_config(path):
        return Model(
            path=path,
            name=path.resolve().name,
            label="",
            family=CHECKPOINT,
            shape=llama_shape(path),
            state=CHECKPOINT,
            seed=None,
            result=None,
        )
    run = RunDirectory(path)
    spec = run.spec()
    if not saved_checkpoints(run.checkpoints):
        raise RunError(f"{path}: no checkpoint yet; train the run first")
    if needs_tokenizer and spec.config.tokenizer.kind == "symbols":
        raise RunError(
            f"{path}: trained on data=khop, which has no text; it can be evaluated with --speed only"
        )
    if needs_tokenizer and not (path / TOKENIZER_FILE).is_file():
        raise RunError(f"{path / TOKENIZER_FILE}: no such file; copy it from the training machine")
    return Model(
        path=path,
        name=path.resolve().name,
        label="",
        family=spec.config.family.name,
        shape=spec.shape,
        state=run.state(),
        seed=spec.config.seed,
        result=run.result(),
    )


def _labelled(models: Sequence[Model]) -> list[Model]:
    """Give every model a unique name, and a label that is as short as possible."""
    repeated = Counter(model.name for model in models)
    named = [
        model
        if repeated[model.name] == 1
        else replace(model, name=f"{model.path.resolve().parent.name}-{model.name}")
        for model in models
    ]
    named = [
        model if names == 1 else replace(model, name=f"{model.name}-{index}")
        for index, (model, names) in enumerate(zip(named, _repeats(named), strict=True))
    ]
    candidates = [_labels(model) for model in named]
    for level in range(max(map(len, candidates), default=0)):
        labels = [each[min(level, len(each) - 1)] for each in candidates]
        if len(set(labels)) == len(labels):
            break
    return [replace(model, label=label) for model, label in zip(named, labels, strict=True)]


def _repeats(models: Sequence[Model]) -> list[int]:
    counts = Counter(model.name for model in models)
    return [counts[model.name] for model in models]


def _labels(model: Model) -> list[str]:
    """Return labels of a model, from the shortest to its unique name."""
    if model.state == CHECKPOINT:
        return [model.name]
    first = f"{model.family} {model.shape.label}"
    tokens = "" if model.result is None else f", {short_count(model.result.tokens)} tokens"
    return [first, first + tokens, f"{first}{tokens}, s{model.seed}", model.name]
