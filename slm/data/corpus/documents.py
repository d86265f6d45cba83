"""Streams of documents, built from the rows of a streaming dataset of the library `datasets`.

A stream yields documents in a fixed order. Its state can be saved and restored, so that an interrupted
preparation reads no row twice. The corpus does not have to fit in memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from slm.config.schema import DataConfig
from slm.data.corpus.identity import common_parent
from slm.errors import DataError

MAX_QUOTED_CHARACTERS = 40
COMPRESSED_SUFFIXES = {".gz", ".bz2", ".xz", ".zst", ".zip"}


@dataclass(frozen=True)
class Document:
    """Text with an `id` that is unique within its source and the same on every machine."""

    source: str
    id: str
    text: str | None
    """None for a row without text if `data.skip_bad_rows` is true."""


class Stream(Protocol):
    """Documents in a fixed order, with a position that can be saved and restored."""

    def __iter__(self) -> Iterator[Document]: ...

    def state(self) -> Any:
        """Return the position after the last yielded document, as a JSON value."""

    def restore(self, state: Any) -> None:
        """Continue from a position that `state()` returned."""


class RowStream:
    """Stream of documents built from the rows of an iterable dataset.

    Each row is one document, or rows are joined up to the next match of `data.new_document`.

    Raises:
        DataError: on iteration, if a file cannot be read or a row holds no text.
    """

    def __init__(
        self,
        dataset: Any,
        config: DataConfig,
        part: str,
        *,
        column: str = "text",
        files: Sequence[Path] = (),
        one_document_per_file: bool = False,
    ):
        self._dataset = dataset
        self._config = config
        self._part = part
        self._column = column
        self._files = files
        self._id_folder = common_parent(files) if one_document_per_file else None
        self._document_start = re.compile(config.new_document) if config.new_document else None
        self._row = 0
        self._document = 0
        self._pending: list[str] = []

    def __iter__(self) -> Iterator[Document]:
        for text in self._texts():
            if self._document_start is None or text is None:
                yield self._next_document(text)
            elif self._document_start.search(text) and self._pending:
                joined, self._pending = "".join(self._pending), [text]
                yield self._next_document(joined)
            else:
                self._pending.append(text)
        if self._pending:
            joined, self._pending = "".join(self._pending), []
            yield self._next_document(joined)

    def state(self) -> dict[str, Any]:
        return {
            "dataset": self._dataset.state_dict(),
            "row": self._row,
            "document": self._document,
            "pending": list(self._pending),  # a copy: iteration appends to the list
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self._dataset.load_state_dict(state["dataset"])
        self._row, self._document = state["row"], state["document"]
        self._pending = list(state["pending"])

    def _next_document(self, text: str | None) -> Document:
        name = str(self._document)
        if self._id_folder is not None:
            if self._document >= len(self._files):
                raise DataError(
                    f"{self._current_source()}: more documents than files, but data.document=file "
                    "requires one document per file; unpack archives first"
                )
            name = printable(self._files[self._document].relative_to(self._id_folder).as_posix())
        self._document += 1
        return Document(self._config.source, f"{self._part}/{name}", text)

    def _texts(self) -> Iterator[str | None]:
        with closing(iter(self._dataset)) as rows:  # without it, reader threads survive an error
            while True:
                try:
                    row = next(rows)
                except StopIteration:
                    return
                except Exception as error:  # `datasets` raises many exception types
                    raise self._read_error(error) from error
                self._row += 1
                yield self._read_text(row)

    def _read_text(self, row: Mapping[str, Any]) -> str | None:
        if self._column not in row:
            raise missing_column_error(self._column, self._current_source(), row)
        text = row[self._column]
        if isinstance(text, str):
            return text
        if self._config.skip_bad_rows:
            return None
        value = "null" if text is None else f"{type(text).__name__} {text!r}"
        raise DataError(
            f"data.column={self._column}: row {self._row:,} (counted over all files; in "
            f"{self._current_source()}) is {value[:MAX_QUOTED_CHARACTERS]}, not text; fix the row, or "
            "leave such rows out with data.skip_bad_rows=true"
        )

    def _read_error(self, error: Exception) -> DataError:
        for path in self._files:
            is_text = self._config.source != "parquet" and path.suffix not in COMPRESSED_SUFFIXES
            offset = _find_bad_byte(path) if is_text else None
            if offset is not None:
                return DataError(
                    f"{path}: byte {offset:,} is not UTF-8; convert the file, for example with "
                    "`iconv -f LATIN1 -t UTF-8`"
                )
        fix = "fix or remove the file" if self._files else "run the same command again to continue"
        return DataError(
            f"{self._current_source()}: cannot be read after row {self._row:,} "
            f"({root_cause(error)}); {fix}"
        )

    def _current_source(self) -> str:
        """Return the path of the file being read, or the name of the hub dataset."""
        if not self._files:
            return f"data.repo={self._config.repo}"
        index = _shard_index(self._dataset.state_dict())
        return str(self._files[index if index < len(self._files) else 0])


def printable(name: str) -> str:
    """Return a file name with escapes for bytes that are not UTF-8, as names of old archives have."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def missing_column_error(column: str, source: str, names: Iterable[str]) -> DataError:
    """Return the error for rows without the column that holds the text."""
    return DataError(
        f"data.column={column}: {source} has no such column; set it to one of: {', '.join(names)}"
    )


def _shard_index(state: object) -> int:
    """Return the index of the file being read, from the nested state of an iterable dataset."""
    if not isinstance(state, Mapping):
        return 0
    return int(state.get("shard_idx") or max(map(_shard_index, state.values()), default=0))


def root_cause(error: BaseException) -> str:
    """Return the first line of the innermost error in a chain of causes."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _find_bad_byte(path: Path) -> int | None:
    """Return the offset of the first byte that is not UTF-8, or None if there is none."""
    offset = 0
    with path.open("rb") as stream:
        for line in stream:
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                return offset + error.start
            offset += len(line)
    return None
