"""Read a table of runs from a file: CSV and its relatives, JSON, JSON lines or Parquet, also compressed.

All readers return text labels of the columns, and an index that says where each row is in the file, such as
`line 17`, for messages. Nested JSON and Parquet fields become columns with dots, such as `config.lr`.
"""

from __future__ import annotations

import ast
import bz2
import csv
import gzip
import io
import json
import lzma
import re
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.formatting import count
from analysis.runs.validate import is_no_number
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
DECOMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.decompress,
    ".bz2": bz2.decompress,
    ".xz": lzma.decompress,
}
SUPPORTED = f"{', '.join(FORMATS)}, also with {', '.join(DECOMPRESS)}"
DELIMITERS = (",", "\t", ";", "|")
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
NEWLINE = re.compile(r"\r\n|\r|\n")  # not str.splitlines, which splits text at U+2028 too
EXCEL_SEPARATOR = re.compile(r"sep=.\s*$", re.MULTILINE | re.IGNORECASE)
THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}([.,]\d{3})+")
DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+(e[+-]?\d+)?", re.IGNORECASE)
UNREADABLE = (
    OSError,
    EOFError,
    ValueError,
    zlib.error,
    lzma.LZMAError,
    ImportError,
    csv.Error,
)


def table_format(path: Path) -> str | None:
    """Return the format by the suffix in any case, without that of a compression; None if it is no table."""
    return FORMATS.get(_suffixes(path)[0])


def _suffixes(path: Path) -> tuple[str, str]:
    """Return the suffix of the format and that of the compression, in lower case."""
    last = path.suffix.lower()
    if last in DECOMPRESS:
        return Path(path.stem).suffix.lower(), last
    return last, ""


def read_file(path: Path) -> pd.DataFrame:
    """Read all rows and columns of a file.

    Raises:
        DataError: if the file is damaged, empty, or no table of its format.
    """
    try:
        content = path.read_bytes()
        if not content.strip():
            raise DataError(f"{path}: the file is empty")
        if (compression := _suffixes(path)[1]) != "":
            content = DECOMPRESS[compression](content)
        kind = table_format(path)
        if kind == PARQUET:
            table = _read_parquet(content)
        else:
            text = _decode(content)
            table = _expanded(_read_text(text)) if kind == TEXT else _read_json(text)
    except UNREADABLE as error:
        raise DataError(f"{path}: not a readable table ({_first_line(error)})") from None
    return table


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


def _read_text(text: str) -> pd.DataFrame:
    """Read values that a delimiter separates: the one that splits the header into the most columns."""
    start, delimiter = _header_start(text)
    reader = csv.reader(io.StringIO(text[start:], newline=""), delimiter=delimiter, strict=True)
    before = len(NEWLINE.findall(text[:start]))
    lines, rows = [], []
    try:
        names = _distinct(next(reader))
        last = reader.line_num
        for cells in reader:
            if any(cell.strip() for cell in cells):
                rows.append(_fitted(cells, len(names), before + last + 1))
                lines.append(f"line {before + last + 1}")
            last = reader.line_num
    except csv.Error as error:
        raise ValueError(f"line {before + reader.line_num}: {error}") from None
    table = _typed(rows, names, may_have_decimal_comma=delimiter != ",")
    table.index = pd.Index(lines, dtype=object)
    return table.dropna(how="all")


def _header_start(text: str) -> tuple[int, str]:
    """Return the place of the header and its delimiter, after empty lines, comments, titles and Excel's `sep=;`.

    A line that starts with # is a comment, unless the next line has as many columns. A line of one column is a title if
    the next one has several.
    """
    starts = [0, *(match.end() for match in NEWLINE.finditer(text))]
    ends = [*starts[1:], len(text)]
    places = [start for start, end in zip(starts, ends, strict=True) if text[start:end].strip()]
    lines = [_first_row(text[start:]) for start in places[:1]]
    for place, following in zip(places, [*places[1:], None], strict=True):
        delimiter, columns = lines[-1]
        if following is None:
            return place, delimiter
        is_comment = text.startswith("#", place)
        if not (is_comment or columns == 1 or EXCEL_SEPARATOR.match(text, place)):
            return place, delimiter
        lines.append(_first_row(text[following:]))
        if (is_comment and 1 < columns == lines[-1][1]) or (
            not is_comment and columns == lines[-1][1] == 1
        ):
            return place, delimiter
    raise ValueError("no header")


def _first_row(text: str) -> tuple[str, int]:
    """Return the delimiter that splits the first row into the most columns, and their number."""
    columns = {
        each: len(next(csv.reader(io.StringIO(text, newline=""), delimiter=each), ()))
        for each in DELIMITERS
    }
    delimiter = max(DELIMITERS, key=columns.__getitem__)
    return delimiter, columns[delimiter]


def _fitted(cells: list[str], columns: int, line: int) -> list[str]:
    """Return the cells of a row with as many values as there are columns; empty ones are added or removed at its end."""
    if any(cell.strip() for cell in cells[columns:]):
        raise ValueError(
            f"line {line}: {count(len(cells), 'value')}, but the header has {count(columns, 'name')}; quote values that "
            "contain the delimiter"
        )
    return [*cells[:columns], *[""] * (columns - len(cells))]


def _typed(
    rows: list[list[str]], names: list[str], *, may_have_decimal_comma: bool
) -> pd.DataFrame:
    """Return a table of text as numbers where all cells of a column are numbers."""
    stream = io.StringIO()
    csv.writer(stream, delimiter="\t", lineterminator="\n").writerows(rows)
    options: dict[str, Any] = {"sep": "\t", "header": None, "names": range(len(names))}
    options |= {"index_col": False, "skip_blank_lines": False}
    if not rows:
        return pd.DataFrame(columns=pd.Index(names))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pd.errors.DtypeWarning)
        table = pd.read_csv(io.StringIO(stream.getvalue()), **options)
        if may_have_decimal_comma and any(_has_decimal_comma(table[name]) for name in table):
            table = table.apply(_with_decimal_point)
    table.columns = pd.Index(names)
    return table


def _distinct(header: Iterable[str]) -> list[str]:
    """Return the names of a header; one that is empty or occurs more than once gets the number of its column."""
    names = [re.sub(r"\s*[\r\n]\s*", " ", name.strip()) for name in header]
    times = Counter(names)
    return [
        name if name and times[name] == 1 else f"{name} (column {number})".strip()
        for number, name in enumerate(names, start=1)
    ]


def _has_decimal_comma(column: pd.Series) -> bool:
    """Return whether all numbers of a column have a decimal comma, and not all may be thousands, as in `20,000`."""
    cells = [str(cell).strip() for cell in column.dropna() if not is_no_number(cell)]
    return all(map(DECIMAL_COMMA.fullmatch, cells)) and not all(map(THOUSANDS.fullmatch, cells))


def _with_decimal_point(column: pd.Series) -> pd.Series:
    """Return a column of numbers with decimal commas as floats; any other column as it is."""
    if pd.api.types.is_numeric_dtype(column):
        return column
    cells = column.astype(object).map(
        lambda cell: str(cell).strip().replace(",", "."), na_action="ignore"
    )
    numbers = pd.to_numeric(cells, errors="coerce")
    is_number = numbers.notna()
    if not (is_number | cells.isna() | cells.map(is_no_number)).all():
        return column
    return cells.where(~is_number, numbers).infer_objects()


def _read_json(text: str) -> pd.DataFrame:
    """Read one object per line, an array of objects, or an object that holds either rows or columns."""
    rows: Iterable[tuple[str, Any]]
    try:
        content = json.loads(text)
    except ValueError as error:
        if text.lstrip().startswith("["):
            raise DataError(f"invalid JSON: {error}") from None
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
        name, value = f"{prefix}{key}", _parsed(given)
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
    table = table.rename_columns(_distinct(table.column_names))
    frame = table.to_pandas(ignore_metadata=True)
    frame.index = pd.Index([f"row {row + 1}" for row in range(len(frame))], dtype=object)
    return frame


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
