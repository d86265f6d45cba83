"""Execute the notebooks: python -m analysis.notebooks.execute [--runs RUNS] [--out DIR] [NAME ...]

The text files beside this one are the source. Without --out their .ipynb twins are written anew, with the
shipped results.
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
    """The notebooks as text, in the order to read them."""
    return sorted(HERE.glob("0*.py"))


def execute(source: Path, runs: Path | None = None) -> Any:
    """The executed notebook (an nbformat node). `runs`: instead of the shipped results.

    Raises:
        DataError: if the extra that executes notebooks is missing.
        nbclient.exceptions.CellExecutionError: if a cell fails.
    """
    try:
        import jupytext
        from nbclient import NotebookClient
    except ImportError as error:
        fix = "pip install -e '.[notebooks]'"
        raise DataError(f"notebooks need the extra of that name ({error}): {fix}") from None
    notebook = jupytext.read(source)
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    if runs is not None:
        environment["SLM_RUNS"] = str(runs.resolve())
    client = NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}
    )
    client.execute(env=environment)
    for cell in notebook.cells:  # times and identities are not what a diff should show
        cell.metadata.pop("execution", None)
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
    notebook.metadata.pop("language_info", None)
    return notebook


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m analysis.notebooks.execute")
    parser.add_argument("names", nargs="*", help="such as 01_first_look; default: all")
    parser.add_argument("--runs", type=Path, help="a folder of runs or a file of results")
    parser.add_argument("--out", type=Path, default=HERE, help="where the .ipynb are written")
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
