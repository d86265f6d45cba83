"""Execute the pages: python -m analysis.examples.published.pages [NAME ...]

A page is a source in jupytext percent format. It reads a public table from the user's clone of its repository or
from $SLM_TEST_DATA, and is written as NAME.md with all outputs; its figures and results.json are in the folder NAME.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from analysis.notebooks.execute import execute
from slm.errors import DataError

HERE = Path(__file__).parent
NAMES = ("mobilellm", "gemstones", "inverse_depth")


def to_markdown(name: str) -> str:
    """Execute a page, which writes its figures and results.json, and return it as Markdown.

    Raises:
        DataError: if the extra `notebooks` is not installed.
        nbclient.exceptions.CellExecutionError: if a cell fails.
    """
    notebook = execute(HERE / f"{name}.py")
    from nbconvert import MarkdownExporter
    from traitlets.config import Config

    shown = {"display_data_priority": ["text/markdown", "text/plain"]}
    exporter = MarkdownExporter(config=Config(NbConvertBase=shown), exclude_input=True)
    body, _ = exporter.from_notebook_node(notebook)
    lines = (line.rstrip() for line in body.strip().splitlines())
    return "\n".join(lines) + "\n"


def main() -> None:
    """Execute the named pages, and write their .md files."""
    parser = argparse.ArgumentParser(prog="python -m analysis.examples.published.pages")
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"{', '.join(NAMES)}; default: all"
    )
    names = parser.parse_args().names or NAMES
    unknown = sorted(set(names) - set(NAMES))
    if unknown:
        raise SystemExit(f"unknown page {unknown[0]}; pages: {', '.join(NAMES)}")
    for name in names:
        target = HERE / f"{name}.md"
        try:
            target.write_text(to_markdown(name), encoding="utf-8")
        except DataError as error:
            raise SystemExit(str(error)) from None
        print(target)


if __name__ == "__main__":
    main()
