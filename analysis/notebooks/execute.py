"""Execute the notebooks: python -m analysis.notebooks.execute [--runs RUNS] [--out DIR] [NAME ...]

The sources are the 0*.py files in this folder. Without --out, the .ipynb files beside them are overwritten.
Without --runs, the notebooks read the shipped results.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from slm.errors import DataError

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def sources() -> list[Path]:
    """Return the .py sources of the notebooks, in reading order."""
    return sorted(HERE.glob("0*.py"))


def execute(source: Path, runs: Path | None = None) -> Any:
    """Execute a notebook, and return it with its outputs as an nbformat node.

    Args:
        source: a .py file in jupytext percent format.
        runs: a folder of runs or a file of results; None: the shipped results.

    Raises:
        DataError: if the extra `notebooks` is not installed.
        nbclient.exceptions.CellExecutionError: if a cell fails.
    """
    try:
        import jupytext
        from nbclient import NotebookClient
    except ImportError as error:
        fix = "pip install -e '.[notebooks]'"
        raise DataError(f"the extra `notebooks` is not installed ({error}); run {fix}") from None
    notebook = jupytext.read(source)
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    if runs is not None:
        environment["SLM_RUNS"] = str(runs.resolve())
    client = NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}
    )
    client.execute(env=environment)
    for cell in notebook.cells:  # keep times and random ids out of diffs
        cell.metadata.pop("execution", None)
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
    notebook.metadata.pop("language_info", None)
    return notebook


def main() -> None:
    """Execute the named notebooks, and write their .ipynb files."""
    parser = argparse.ArgumentParser(prog="python -m analysis.notebooks.execute")
    parser.add_argument(
        "names", nargs="*", help="notebooks to execute, such as 01_first_look; default: all"
    )
    parser.add_argument(
        "--runs", type=Path, help="folder of runs or file of results; default: the shipped results"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=HERE,
        help="folder to write the .ipynb files to; default: beside the sources",
    )
    arguments = parser.parse_args()
    import nbformat

    arguments.out.mkdir(parents=True, exist_ok=True)
    for source in sources():
        if arguments.names and source.stem not in arguments.names:
            continue
        target = arguments.out / f"{source.stem}.ipynb"
        nbformat.write(execute(source, arguments.runs), target)
        print(target)


if __name__ == "__main__":
    main()
