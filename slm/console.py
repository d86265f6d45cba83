"""Output for people on stdout: its width, wrapped lines, and tables that fit the width without a cut number."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, JustifyMethod, RenderableType
from rich.table import Table
from rich.text import Text

# Width if stdout is no terminal and COLUMNS is not set: that of the help texts. Files, logs of clusters and
# chat windows show 100 columns without wrapping.
PIPE_WIDTH = 100
GAP = 2  # spaces between two columns
MIN_TEXT_WIDTH = 12  # of a column that wraps
DURATION_SPACE = re.compile(r"(?<=\d) (?=(s|min|h|d)\b)")
NO_BREAK_SPACE = "\N{NO-BREAK SPACE}"


def console() -> Console:
    """Return the console of stdout: as wide as COLUMNS, else as the terminal, else `PIPE_WIDTH`."""
    if Console().is_terminal:
        return Console()
    return Console(width=shutil.get_terminal_size((PIPE_WIDTH, 24)).columns)


def print_lines(target: Console, lines: Iterable[str]) -> None:
    """Print each line wrapped at words, with the continuation indented; long words such as paths stay whole."""
    for line in lines:
        indent = line[: len(line) - len(line.lstrip())] + "  "
        text = textwrap.fill(
            DURATION_SPACE.sub(NO_BREAK_SPACE, line),
            target.width,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        ).replace(NO_BREAK_SPACE, " ")
        target.print(text, markup=False, highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Column:
    """Column of a `FittedTable`; a cell may have several lines."""

    heading: str
    cells: Sequence[str | Text]
    rank: int = 0
    """Columns of the highest rank are left out first, those of rank 0 never."""
    is_left: bool = False
    wraps: bool = False
    """Whether the cells are sentences, which may be broken between words."""

    @property
    def name(self) -> str:
        return self.heading.replace("_\n", "_").replace("\n", " ")

    @property
    def width(self) -> int:
        return max(cell_len(line) for cell in self._texts() for line in cell.split("\n"))

    @property
    def min_width(self) -> int:
        if not self.wraps:
            return self.width
        words = (word for cell in self._texts() for word in cell.split())
        return min(self.width, max(MIN_TEXT_WIDTH, *map(cell_len, words)))

    def _texts(self) -> Iterator[str]:
        yield self.heading
        yield from map(str, self.cells)


@dataclass(frozen=True)
class FittedTable:
    """Table for rich that leaves out whole columns until it fits, and says below which ones."""

    columns: Sequence[Column]
    title: str = ""
    note: str = field(default="", kw_only=True)
    """Line below the table."""

    def __rich_console__(
        self, target: Console, options: ConsoleOptions
    ) -> Iterator[RenderableType]:
        if self.title:
            yield Text(self.title, style="bold")
        shown = fitting_columns(self.columns, options.max_width)
        yield _draw(shown, options.max_width)
        if self.note:
            yield Text(self.note, style="dim")
        left_out = [column.name for column in self.columns if column not in shown]
        if left_out:
            width = _total([column.min_width for column in self.columns])
            hint = f"Left out: {', '.join(left_out)}. COLUMNS={width} or a wider terminal shows all columns."
            yield Text(hint, style="dim")


def fitting_columns(columns: Sequence[Column], width: int) -> list[Column]:
    """Leave out the columns of the highest rank, the last one first, until the others fit."""
    shown = list(columns)
    while _total([column.min_width for column in shown]) > width:
        rank = max(column.rank for column in shown)
        if rank == 0:
            break
        shown.remove([column for column in shown if column.rank == rank][-1])
    return shown


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + GAP * (len(widths) - 1)


def _draw(columns: Sequence[Column], width: int) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, GAP - 1, 0, 0))
    spare = width - _total([column.min_width for column in columns])
    for column in columns:
        # If not even the columns of rank 0 fit, rich chooses the widths and continues a cell on the next line.
        own = min(column.width, column.min_width + spare) if spare >= 0 else None
        spare -= 0 if own is None else own - column.min_width
        justify: JustifyMethod = "left" if column.is_left or column.wraps else "right"
        table.add_column(column.heading, justify=justify, width=own, overflow="fold")
    for row in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    return table
