"""Execute the pages: python -m analysis.examples.pages [NAME ...]

A page is a source in jupytext percent format, written as a .md file beside it with the outputs of its cells. The pages
on published claims read public tables from the user's clone of their repositories or from $SLM_TEST_DATA.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from analysis.notebooks.execute import execute
from slm.errors import DataError

HERE = Path(__file__).parent
PAGES = {
    "micro": HERE / "micro" / "answer.py",
    "mobilellm": HERE / "published" / "mobilellm.py",
    "gemstones": HERE / "published" / "gemstones.py",
    "inverse_depth": HERE / "published" / "inverse_depth.py",
}


def to_markdown(source: Path) -> str:
    """Execute a page, which writes its figures and its results, and return it as Markdown without the code.

    Raises:
        DataError: if the extra `notebooks` is not installed, or a table is missing.
        nbclient.exceptions.CellExecutionError: if a cell fails for another reason.
    """
    try:
        from nbclient.exceptions import CellExecutionError
        from nbconvert import MarkdownExporter
        from traitlets.config import Config
    except ImportError as error:
        fix = "pip install -e '.[notebooks]'"
        raise DataError(f"the extra `notebooks` is not installed ({error}); run {fix}") from None
    try:
        notebook = execute(source)
    except CellExecutionError as error:
        if error.ename == "DataError":
            raise DataError(error.evalue) from None
        raise
    shown = {"display_data_priority": ["text/markdown", "text/plain"]}
    exporter = MarkdownExporter(config=Config(NbConvertBase=shown), exclude_input=True)
    body, _ = exporter.from_notebook_node(notebook)
    return _single_blank_lines(body)


def _single_blank_lines(text: str) -> str:
    lines: list[str] = []
    for line in map(str.rstrip, text.strip().splitlines()):
        if line or (lines and lines[-1]):
            lines.append(line)
    return "\n".join(lines) + "\n"


def main() -> None:
    """Execute the named pages, and write their .md files."""
    parser = argparse.ArgumentParser(prog="python -m analysis.examples.pages")
    listed = ", ".join(PAGES)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{listed}; default: all")
    names = parser.parse_args().names or list(PAGES)
    unknown = [name for name in names if name not in PAGES]
    if unknown:
        raise SystemExit(f"unknown page {unknown[0]}; pages: {listed}")
    for name in names:
        target = PAGES[name].with_suffix(".md")
        try:
            target.write_text(to_markdown(PAGES[name]), encoding="utf-8")
        except DataError as error:
            raise SystemExit(f"{name}: {error}") from None
        print(target)


if __name__ == "__main__":
    main()
