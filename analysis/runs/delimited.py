"""Read text whose values a delimiter separates: CSV and its relatives, with decimal points or commas."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from typing import Any

import pandas as pd

from analysis.formatting import count
from analysis.runs.validate import is_no_number

DELIMITERS = (",", "\t", ";", "|")
NEWLINE = re.compile(r"\r\n|\r|\n")  # not str.splitlines, which splits text at U+2028 too
EXCEL_SEPARATOR = re.compile(r"sep=.\s*$", re.MULTILINE | re.IGNORECASE)
THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}([.,]\d{3})+")
DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+(e[+-]?\d+)?", re.IGNORECASE)
POINTS_OF_THOUSANDS = re.compile(r"[+-]?\d{1,3}(\.\d{3})*(,\d+)?")
NO_DECIMAL_POINT = re.compile(r"\..*[.,]")  # a point before another one or a comma


def read_delimited(text: str, loss: str) -> tuple[pd.DataFrame, list[str]]:
    """Read values that a delimiter separates, the one that splits the header into the most columns, and return notes.

    `loss`: name of the column of losses.

    Raises:
        ValueError: if a row has more values than the header has names, or a quote is not closed.
    """
    start, delimiter = _header_start(text)
    reader = csv.reader(io.StringIO(text[start:], newline=""), delimiter=delimiter, strict=True)
    before = len(NEWLINE.findall(text[:start]))
    lines, rows = [], []
    try:
        names = distinct_names(next(reader))
        last = reader.line_num
        for cells in reader:
            if any(cell.strip() for cell in cells):
                rows.append(_fitted(cells, len(names), before + last + 1))
                lines.append(f"line {before + last + 1}")
            last = reader.line_num
    except csv.Error as error:
        raise ValueError(f"line {before + reader.line_num}: {error}") from None
    table = _typed(rows, names)
    notes: list[str] = []
    if delimiter != ",":
        table, notes = _without_decimal_commas(table, loss)
    table.index = pd.Index(lines, dtype=object)
    return table.dropna(how="all"), notes


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


def _typed(rows: list[list[str]], names: list[str]) -> pd.DataFrame:
    """Return a table of text as numbers where all cells of a column are numbers, empty, or words such as NA.

    In a column of text these words are kept, because they may be labels.
    """
    if not rows:
        return pd.DataFrame(columns=pd.Index(names))
    stream = io.StringIO()
    csv.writer(stream, delimiter="\t", lineterminator="\n").writerows(rows)
    stream.seek(0)
    options: dict[str, Any] = {"sep": "\t", "header": None, "names": range(len(names))}
    options |= {"index_col": False, "skip_blank_lines": False, "low_memory": False}
    numbers = pd.read_csv(stream, **options)
    text = pd.DataFrame(rows, columns=range(len(names)), dtype=object)
    text = text.mask(text == "")
    table = pd.DataFrame({name: _numbers_or_text(numbers[name], text[name]) for name in numbers})
    table.columns = pd.Index(names)
    return table.infer_objects()


def _numbers_or_text(numbers: pd.Series, text: pd.Series) -> pd.Series:
    has_only_words = numbers.isna().all() and text.notna().any()
    return numbers if pd.api.types.is_numeric_dtype(numbers) and not has_only_words else text


def distinct_names(header: Iterable[str]) -> list[str]:
    """Return the names of a header; one that is empty or occurs more than once gets the number of its column."""
    composed = (unicodedata.normalize("NFC", name.strip()) for name in header)
    names = [re.sub(r"\s*[\r\n]\s*", " ", name) for name in composed]
    times = Counter(names)
    return [
        name if name and times[name] == 1 else f"{name} (column {number})".strip()
        for number, name in enumerate(names, start=1)
    ]


def _without_decimal_commas(table: pd.DataFrame, loss: str) -> tuple[pd.DataFrame, list[str]]:
    """Return a table with decimal commas as one with numbers, and a note if it has points of thousands too."""
    if not any(_has_decimal_comma(table[name], is_loss=name == loss) for name in table):
        return table, []
    table = table.apply(_with_decimal_point)
    grouped = [name for name in table if name != loss and _has_points_of_thousands(table[name])]
    if not grouped:
        return table, []
    example = _number_cells(table[grouped[0]])[0]
    numbers = {str(name): _with_decimal_point(table[name].str.replace(".", "")) for name in grouped}
    listed = ", ".join(map(str, grouped))
    note = f"column {listed}: points are read as thousands separators, as in {example}"
    return table.assign(**numbers), [note]


def _number_cells(column: pd.Series) -> list[str]:
    return [str(cell).strip() for cell in column.dropna() if not is_no_number(cell)]


def _has_decimal_comma(column: pd.Series, *, is_loss: bool) -> bool:
    """Return whether all numbers of a column have a decimal comma.

    A column whose numbers may all be thousands, as in `20,000`, has none, except the loss.
    """
    cells = _number_cells(column)
    may_be_thousands = not is_loss and all(map(THOUSANDS.fullmatch, cells))
    return bool(cells) and all(map(DECIMAL_COMMA.fullmatch, cells)) and not may_be_thousands


def _has_points_of_thousands(column: pd.Series) -> bool:
    """Return whether the numbers of a column have points between thousands, which in one of them is no decimal point."""
    cells = _number_cells(column)
    return all(map(POINTS_OF_THOUSANDS.fullmatch, cells)) and any(
        map(NO_DECIMAL_POINT.search, cells)
    )


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
