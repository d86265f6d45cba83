"""The notebooks run, on the shipped results and on others, and their .ipynb are those of their text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from analysis.notebooks.execute import HERE, execute, sources

jupytext = pytest.importorskip("jupytext", reason="needs the extra: pip install -e '.[notebooks]'")
pytest.importorskip("nbclient", reason="needs the extra: pip install -e '.[notebooks]'")
pytest.importorskip("ipykernel", reason="needs the extra: pip install -e '.[notebooks]'")
pytestmark = pytest.mark.slow


def said(notebook: Any) -> str:
    """All text that the cells printed or returned."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "\n".join(o.get("text", "") or o.get("data", {}).get("text/plain", "") for o in outputs)


def test_all_five_are_here() -> None:
    assert [source.stem[:2] for source in sources()] == ["01", "02", "03", "04", "05"]


@pytest.mark.parametrize("source", sources(), ids=lambda source: source.stem)
def test_the_twin_has_the_cells_of_the_text(source: Path) -> None:
    text, twin = jupytext.read(source), jupytext.read(source.with_suffix(".ipynb"))
    assert [cell.source for cell in text.cells] == [cell.source for cell in twin.cells]
    code = [cell for cell in twin.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)


@pytest.mark.parametrize(
    "source",
    [source for source in sources() if not source.stem.startswith("03")],  # its numbers are below
    ids=lambda source: source.stem,
)
def test_it_runs_on_the_shipped_results(source: Path) -> None:
    assert said(execute(source))


@pytest.mark.parametrize(
    "name", ["01_first_look", "02_exponents_by_family", "05_write_your_own_contrast"]
)
def test_it_runs_on_other_runs(name: str) -> None:
    told = said(execute(HERE / f"{name}.py", HERE / "data" / "aa.jsonl"))
    assert "arm_a" in told and "deep_thin" not in told
    if name.startswith("02"):
        assert "not identified" in told and "no number" in told


def test_the_seed_is_corrected_three_times() -> None:
    told = said(execute(HERE / "03_seed_reanalysis.py"))
    for number in (
        "0.2457 [0.1852, 0.3062]", "5.970 [5.175, 6.886]", "0.0068", "0.0079",  # not too wide
        "-0.1105 [-0.1269, -0.0941]", "1.45x", "1.38x", "-0.1976",  # not three times steeper
        "3.7x in total", "6.7x per parameter", "25.0%", "8.5%",  # no knee
        "UNIDENTIFIED", "REFUSED",
    ):  # fmt: skip
        assert number in told


def test_without_the_published_points_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLM_TEST_DATA", "/nowhere")
    assert "set SLM_TEST_DATA" in said(execute(HERE / "04_chinchilla_replication.py"))
