"""Notebooks run on the shipped results and on other runs, and each .ipynb has the cells of its .py file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from analysis.notebooks.execute import HERE, execute, sources

jupytext = pytest.importorskip("jupytext", reason="needs the extra: pip install -e '.[notebooks]'")
pytest.importorskip("nbclient", reason="needs the extra: pip install -e '.[notebooks]'")
pytest.importorskip("ipykernel", reason="needs the extra: pip install -e '.[notebooks]'")
pytestmark = pytest.mark.slow


def output_text(notebook: Any) -> str:
    """Return all text that the cells printed or returned."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "\n".join(o.get("text", "") or o.get("data", {}).get("text/plain", "") for o in outputs)


def test_there_are_five_notebooks() -> None:
    assert [source.stem[:2] for source in sources()] == ["01", "02", "03", "04", "05"]


@pytest.mark.parametrize("source", sources(), ids=lambda source: source.stem)
def test_ipynb_has_the_cells_of_the_py_file(source: Path) -> None:
    text, notebook = jupytext.read(source), jupytext.read(source.with_suffix(".ipynb"))
    assert [cell.source for cell in text.cells] == [cell.source for cell in notebook.cells]
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)


@pytest.mark.parametrize(
    "source",
    [source for source in sources() if not source.stem.startswith("03")],  # tested below
    ids=lambda source: source.stem,
)
def test_notebook_runs_on_the_shipped_results(source: Path) -> None:
    assert output_text(execute(source))


@pytest.mark.parametrize("name", ["02_exponents_by_family", "05_write_your_own_contrast"])
def test_notebook_runs_on_other_runs(name: str) -> None:
    output = output_text(execute(HERE / f"{name}.py", HERE / "data" / "aa.jsonl"))
    assert "arm_a" in output and "deep_thin" not in output
    if name.startswith("02"):
        assert "not identified" in output and "no value" in output


def test_seed_reanalysis_has_the_reference_numbers() -> None:
    output = output_text(execute(HERE / "03_seed_reanalysis.py"))
    interval = ("0.2457 [0.1852, 0.3062]", "5.970 [5.175, 6.886]", "0.0068", "0.0079")
    slope = ("-0.1105 [-0.1269, -0.0941]", "1.45x", "1.38x", "-0.1976")
    gain = ("3.7x in total", "6.7x per parameter", "25.0%", "8.5%")
    for expected in (*interval, *slope, *gain, "UNIDENTIFIED", "REFUSED"):
        assert expected in output


def test_chinchilla_notebook_names_the_missing_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLM_TEST_DATA", "/nowhere")
    assert "set SLM_TEST_DATA" in output_text(execute(HERE / "04_chinchilla_replication.py"))
