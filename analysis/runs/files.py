"""Read a table of runs from a file: CSV and its relatives, JSON, JSON lines or Parquet, also compressed.

All readers return text labels of the columns, and an index that says where each row is in the file, such as
`line 17`, for messages. Nested JSON and Parquet fields become columns with dots, such as `config.lr`.
"""

from __future__ import annotations

import ast
import csv
import io
import json
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

import pandas as pd

from analysis.runs import compressed
from analysis.runs.delimited import NEWLINE, distinct_names, read_delimited
from slm.errors import DataError

TEXT, JSON, PARQUET = "text", "json", "parquet"
FORMATS = {
    ".csv": TEXT,
    ".tsv": TEXT,
    ".parquet": PARQUET,
    ".jsonl": JSON,
    ".ndjson": JSON,
    ".json": JSON,
}
SUPPORTED = f"{', '.join(FORMATS)}, also with {', '.join(compressed.SUFFIXES)}"
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
PARQUET_MARK = b"PAR1"
LOSS = "loss_nats_per_token"
UNREADABLE = (OSError, ValueError, ImportError, csv.Error, *compressed.ERRORS)


def table_format(name: str) -> str | None:
    """Return the format by the suffix in any case, without that of a compression; None if it is no table."""
    return FORMATS.get(PurePath(compressed.bare_name(name)).suffix.lower())


def is_supported(path: Path) -> bool:
    """Return whether a file may be a table, by its suffix; the format in a zip archive is not known by it."""
    return table_format(path.name) is not None or path.suffix.lower() == compressed.ZIP


def read_file(path: Path, loss: str = LOSS) -> tuple[pd.DataFrame, list[str]]:
    """Read all rows and columns of a file, and return notes on how numbers are read.

    `loss`: name of the column of losses, which decides whether `4,183` has a decimal comma.

    Raises:
        DataError: if the file is damaged, empty, or no table of its format.
    """
    try:
        return _read(path, loss)
    except RecursionError:
        raise DataError(f"{path}: not a readable table (objects are nested too deeply)") from None
    except UNREADABLE as error:
        raise DataError(f"{path}: not a readable table ({_first_line(error)})") from None


def _read(path: Path, loss: str) -> tuple[pd.DataFrame, list[str]]:
    content = path.read_bytes()
    if not content.strip():
        raise DataError(f"{path}: the file is empty")
    name, content = compressed.decompressed(
        path.name, content, lambda each: table_format(each) is not None
    )
    is_parquet = content.startswith(PARQUET_MARK) and content.endswith(PARQUET_MARK)
    kind = PARQUET if is_parquet else table_format(name)
    if kind == PARQUET:
        return _read_parquet(content), []
    text = _decode(content)
    if not text.strip():
        raise DataError(f"{path}: the file is empty")
    if kind == JSON:
        return _read_json(text), []
    table, notes = read_delimited(text, loss)
    return _expanded(table), notes


def _decode(content: bytes) -> str:
    """Decode UTF-8, UTF-16 (Excel's Unicode text; without a byte order mark it has NUL bytes), or else Windows-1252."""
    if content.startswith(UTF16_MARKS):
        return content.decode("utf-16")
    if content[:2].count(0) == 1:
        return content.decode("utf-16-be" if content[0] == 0 else "utf-16-le")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252", errors="replace")


def _read_json(text: str) -> pd.DataFrame:
    """Read one object per line, an array of objects, or an object that holds either rows or columns."""
    rows: Iterable[tuple[str, Any]]
    try:
        content = json.loads(text)
    except ValueError as error:
        if text.lstrip().startswith("["):
            raise ValueError(f"invalid JSON: {error}") from None
        rows = list(_json_lines(text))
    else:
        rows = [(f"entry {number}", row) for number, row in enumerate(_rows_of(content), start=1)]
    for place, row in rows:
        if not isinstance(row, dict):
            raise ValueError(
                f"{place}: {str(row)[:40]!r} is not an object with the fields of a run"
            )
    flat = [dict(flatten(row)) for _, row in rows]
    names = list(dict.fromkeys(name for row in flat for name in row))
    if not names:
        raise ValueError("there are no runs in it")
    table = pd.DataFrame(
        {name: pd.Series([row.get(name) for row in flat], dtype=object) for name in names}
    ).infer_objects()
    table.index = pd.Index([place for place, _ in rows], dtype=object)
    return table


def _json_lines(text: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(NEWLINE.split(text), start=1):
        if not line.strip():
            continue
        try:
            yield f"line {number}", json.loads(line)
        except ValueError as error:
            raise ValueError(f"line {number}: invalid JSON: {error}") from None


def _rows_of(content: Any) -> list[Any]:
    if isinstance(content, list):
        return content
    if not isinstance(content, dict):
        raise ValueError(f"{str(content)[:40]!r} is not a table")
    lists = {name: value for name, value in content.items() if isinstance(value, list)}
    tables = [v for v in lists.values() if v and all(isinstance(row, dict) for row in v)]
    if len(tables) == 1:  # such as {"runs": [{...}, ...]}
        return tables[0]
    lengths = {len(value) for value in lists.values()}
    if lists and len(lists) == len(content) and len(lengths) == 1:  # one list per column
        return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]
    if {"columns", "data"} <= set(lists):  # tables of W&B, and pandas with orient="split"
        names = [str(name) for name in content["columns"]]
        return [dict(zip(names, row, strict=True)) for row in content["data"]]
    objects = [value for value in content.values() if isinstance(value, dict)]
    if 1 < len(objects) == len(content) and len({frozenset(value) for value in objects}) == 1:
        return _rows_of_objects(content)
    return [content]  # one run


def _rows_of_objects(content: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of one object per column, with numbers of rows as keys (pandas), or of one object per run."""
    rows = list(next(iter(content.values())))
    if all(key.isdecimal() for key in rows):
        return [{name: column[key] for name, column in content.items()} for key in rows]
    return [dict(row) for row in content.values()]


def flatten(row: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of a nested object by their keys joined with dots, and the inner objects themselves.

    W&B stores a value of a config as {"value": ..., "desc": ...}: the name of such an object stands for its value. A
    text that holds an object, as in a table of W&B's export example, counts as the object.
    """
    for key, given in row.items():
        name, value = unicodedata.normalize("NFC", f"{prefix}{key}"), _parsed(given)
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{name}.")
            value = value["value"] if {"value"} <= set(value) <= {"value", "desc"} else value
        yield name, value


def _parsed(value: Any) -> Any:
    """Return the object that a text holds, in the notation of JSON or Python; any other value as it is."""
    if not (isinstance(value, str) and value.startswith("{") and value.endswith("}")):
        return value
    for parse in (json.loads, ast.literal_eval):
        try:
            found = parse(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(found, dict):
            return {str(key): inner for key, inner in found.items()}
    return value


def _expanded(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table with the fields of columns that hold objects as text, such as `config.lr`, after the others."""
    parts = [table]
    for name in table:
        cells = table[name].map(_parsed)
        if any(isinstance(cell, dict) for cell in cells):
            fields = [dict(flatten({str(name): cell})) for cell in cells]
            parts.append(pd.DataFrame(fields, index=table.index).drop(columns=name))
    if len(parts) == 1:
        return table
    expanded = pd.concat(parts, axis=1)
    return expanded.loc[:, ~expanded.columns.duplicated()]


def _read_parquet(content: bytes) -> pd.DataFrame:
    import pyarrow.parquet

    table = pyarrow.parquet.ParquetFile(io.BytesIO(content)).read()
    while any(pyarrow.types.is_struct(field.type) for field in table.schema):
        table = table.flatten()
    table = table.rename_columns(distinct_names(table.column_names))
    frame = table.to_pandas(ignore_metadata=True)
    frame.index = pd.Index([f"row {row + 1}" for row in range(len(frame))], dtype=object)
    return frame


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
