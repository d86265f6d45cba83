"""Streams of documents, built from the rows of a streaming dataset of the library `datasets`.

A stream yields documents in a fixed order. Its state can be saved and restored, so that an interrupted
preparation reads no row twice. The corpus does not have to fit in memory.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from slm.config.schema import DataConfig
from slm.data.corpus.identity import common_parent
from slm.errors import DataError

MAX_QUOTED_CHARACTERS = 40
MISSING: Final = object()
BYTE_ORDER_MARKS = {  # UTF-32 first: its little-endian mark starts with that of UTF-16
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
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
        value = find_column(row, self._column)
        if value is MISSING or isinstance(value, Mapping):
            raise missing_column_error(self._column, self._current_source(), row)
        text = _as_text(value)
        if text is not None or self._config.skip_bad_rows:
            return text
        shown = "null" if value is None else f"{type(value).__name__} {value!r}"
        rule = "UTF-8" if isinstance(value, bytes) else "text"
        fix = "fix the row" if value is None else "fix the row, set data.column to a column of text"
        raise DataError(
            f"data.column={self._column}: row {self._row:,} (counted over all files; in "
            f"{self._current_source()}) is {shown[:MAX_QUOTED_CHARACTERS]}, not {rule}; {fix}, or leave such rows out "
            "with data.skip_bad_rows=true"
        )

    def _read_error(self, error: Exception) -> DataError:
        for path in self._files:
            is_text = self._config.source != "parquet" and path.suffix not in COMPRESSED_SUFFIXES
            offset = _find_bad_byte(path) if is_text else None
            if offset is not None:
                encoding = _marked_encoding(path)
                if encoding is not None:
                    return DataError(
                        f"{path}: is {encoding}, not UTF-8; convert the file with "
                        f"`iconv -f {encoding} -t UTF-8`"
                    )
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


def _as_text(value: object) -> str | None:
    """Return a value that is text, as str or as UTF-8 in a binary column of Parquet, and None for any other."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return None
    return value if isinstance(value, str) else None


def printable(name: str) -> str:
    """Return a file name with escapes for bytes that are not UTF-8, as names of old archives have."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def find_column(row: Mapping[str, Any], column: str) -> Any:
    """Return the value of a column, or of a nested field such as `data.text`; MISSING if there is none.

    The fields of a null are null.
    """
    if column in row:
        return row[column]
    for name, value in row.items():
        if column.startswith(f"{name}."):
            if isinstance(value, Mapping):
                return find_column(value, column.removeprefix(f"{name}."))
            return MISSING if value is not None else None
    return MISSING


def missing_column_error(column: str, source: str, columns: Mapping[str, Any]) -> DataError:
    """Return the error for rows in which the column of the text is missing or has nested fields."""
    rule = "has no such column"
    if isinstance(find_column(columns, column), Mapping):
        rule = "has fields in this column, not text"
    names = ", ".join(_column_names(columns))
    return DataError(f"data.column={column}: {source} {rule}; set it to one of: {names}")


def _column_names(columns: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names of all columns; those of nested fields as `data.text`."""
    for name, value in columns.items():
        if isinstance(value, Mapping):
            yield from (f"{name}.{field}" for field in _column_names(value))
        else:
            yield name


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


def _marked_encoding(path: Path) -> str | None:
    """Return the encoding that a byte order mark at the start of a file names, or None without a mark."""
    with path.open("rb") as stream:
        start = stream.read(4)
    return next((name for mark, name in BYTE_ORDER_MARKS.items() if start.startswith(mark)), None)


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
