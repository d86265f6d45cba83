"""Layout of help texts: a fixed width, so that the documentation shows what every terminal shows."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterable, Mapping

WIDTH = 100
COLUMN = 24  # where the second column of a listing begins


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Formatter of argparse that does not depend on the width of the terminal."""

    def __init__(self, prog: str):
        super().__init__(prog, width=WIDTH, max_help_position=COLUMN)


def fill(text: str) -> str:
    """Wrap a paragraph."""
    return textwrap.fill(text, WIDTH, break_on_hyphens=False)


def examples(lines: Iterable[str]) -> str:
    """Format example commands as the last section of a help text."""
    return "\n".join(["examples:", *(f"  {line}" for line in lines)])


def listing(title: str, rows: Mapping[str, str], column: int = COLUMN) -> str:
    """Format a titled list of names and their texts in two columns; a text is below a name that is too long."""
    return "\n".join([f"{title}:", *(_row(name, text, column) for name, text in rows.items())])


def _row(name: str, text: str, column: int) -> str:
    margin = " " * column
    body = textwrap.fill(
        text, WIDTH, initial_indent=margin, subsequent_indent=margin, break_on_hyphens=False
    )
    name = f"  {name}"
    return f"{name}\n{body}" if len(name) > column - 2 else name.ljust(column) + body[column:]
