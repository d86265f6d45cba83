"""Reading and checking of the examples of a task in a local folder."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from slm.errors import DataError, nearest_name
from slm.evaluation.zero_shot.definitions import Definition, Layout

PAGE_TITLE = re.compile(r"^ = [^=\n]+ = *$")


def find_file(folder: Path, definition: Definition) -> Path | None:
    """Return the file of a task in a folder; None if there is none."""
    found = (folder / name for name in definition.files if (folder / name).is_file())
    return next(found, None)


def read_examples(path: Path, definition: Definition) -> tuple[Layout, list[dict[str, Any]]]:
    """Read all examples of a task, and return them with the layout of their fields.

    A text file holds the pages of WikiText, each after its title ` = TITLE = `.

    Raises:
        DataError: if a line is damaged, or a field is missing or invalid; it names the file, line and field.
    """
    if path.suffix != ".jsonl":
        pages = [{"page": page} for page in _pages(_text_of(path))]
        if not pages:
            raise DataError(f"{path}: the file contains no text")
        return definition.layouts[0], pages
    lines = [(n, line) for n, line in enumerate(_text_of(path).split("\n"), 1) if line.strip()]
    if not lines:
        raise DataError(f"{path}: the file contains no examples")
    rows = [_parse(line, f"{path}:{number}") for number, line in lines]
    layout = _layout_of(rows[0], definition)
    for (number, _), row in zip(lines, rows, strict=True):
        _check(row, layout, f"{path}:{number}")
    return layout, rows


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error})") from None


def _parse(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: invalid JSON ({error})") from None
    if not isinstance(row, dict):
        raise DataError(f"{where}: must be a JSON object with one example")
    return row


def _layout_of(row: dict[str, Any], definition: Definition) -> Layout:
    """Return the layout of which the fewest fields are missing; the hub's if several are equal."""
    return min(definition.layouts, key=lambda layout: len(set(layout.fields) - set(row)))


def _check(row: dict[str, Any], layout: Layout, where: str) -> None:
    for name, rule in layout.fields.items():
        if name not in row:
            near = nearest_name(name, row)
            hint = f"; did you mean {near}?" if near else f"; its fields are {', '.join(row)}"
            raise DataError(f"{where}: the field {name} is missing{hint}")
        if problem := rule(row[name], row):
            raise DataError(f"{where}: {name}={row[name]!r:.60} {problem}")


def _pages(text: str) -> Iterator[str]:
    """Yield the pages of a WikiText file; text before the first title is a page of its own."""
    page: list[str] = []
    for line in text.splitlines(keepends=True):
        if PAGE_TITLE.match(line) and any(map(str.strip, page)):
            yield "".join(page)
            page = []
        page.append(line)
    if any(map(str.strip, page)):
        yield "".join(page)
