"""Documents made of the rows that a reader of `datasets` yields, and what may be wrong with a row.

A stream yields them in a fixed order and can tell a place to go on from, so that nothing is read twice
after a kill and no corpus need fit in memory.
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

SHOWN_CHARACTERS = 40
COMPRESSED = {".gz", ".bz2", ".xz", ".zst", ".zip"}


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
        with closing(iter(self._dataset)) as rows:  # or its threads may outlive an error
            while True:
                try:
                    row = next(rows)
                except StopIteration:
                    return
                except Exception as error:  # datasets wraps what its readers raise in many types
                    raise self._unreadable(error) from error
                self._row += 1
                yield self._text_of(row)

    def _text_of(self, row: Mapping[str, Any]) -> str | None:
        if self._column not in row:
            raise no_column(self._column, self._origin(), row)
        text = row[self._column]
        if isinstance(text, str):
            return text
        if self._config.skip_bad_rows:
            return None
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
        said = f"not readable after row {self._row:,} ({reason_of(error)})"
        return DataError(f"{self._origin()}: {said}")

    def _origin(self) -> str:
        if not self._files:
            return f"data.repo={self._config.repo}"
        number = _shard_of(self._dataset.state_dict())
        return str(self._files[number if number < len(self._files) else 0])


def no_column(column: str, origin: str, names: Iterable[str]) -> DataError:
    return DataError(
        f"data.column={column}: {origin} has no such column; there are: {', '.join(names)}"
    )


def _shard_of(state: object) -> int:
    """Which of its files an iterable dataset has got to, from somewhere in its state."""
    if not isinstance(state, Mapping):
        return 0
    return int(state.get("shard_idx") or max(map(_shard_of, state.values()), default=0))


def reason_of(error: BaseException) -> str:
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
