"""Coordinate checks: growth of updates with width (8-fold) and with depth (16-fold), per parametrization."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from analysis.controls.coordinate_check import growth, write_coordinate_report
from slm.errors import DataError
from slm.files import read_json
from slm.training.coordinate_check import coordinate_check, write_coordinates

pytestmark = pytest.mark.numeric

# Whether the growth exponent of the residual stream's update after 3 steps is below 1/4, which is a factor of
# less than 1.7 over 8-fold width and 2 over 16-fold depth. Without the multipliers it is about 1/2.
IS_STABLE = {
    ("standard", "width"): False,
    ("standard", "depth"): False,
    ("mup", "width"): True,
    ("mup", "depth"): False,
    ("completep", "width"): True,
    ("completep", "depth"): True,
}


@pytest.mark.parametrize(("kind", "axis"), IS_STABLE, ids=str)
def test_updates_are_stable_in_the_axes_of_the_parametrization(kind: str, axis: str) -> None:
    rows = pd.DataFrame(coordinate_check(kind, axis, steps=3))  # type: ignore[arg-type]
    exponent = growth(rows, axis, "update", 3)[kind]
    assert abs(exponent) < 0.25 if IS_STABLE[kind, axis] else exponent > 0.4
    start = rows[rows["step"] == 0]
    # At step 0 the residual stream is at least as large as the embedding and at most twice its size at the
    # base shape.
    assert (start["stream"] >= start["embedding"]).all()
    assert start["stream"].max() <= 2 * start["stream"].iloc[0]


def test_report_is_written_from_the_file(tmp_path: Path) -> None:
    write_coordinates(tmp_path / "coordinates.json", seeds=(0,))
    rows = read_json(tmp_path / "coordinates.json")
    assert {row["kind"] for row in rows} == {"standard", "mup", "completep"}
    write_coordinate_report(tmp_path / "coordinates.json", tmp_path / "out")
    assert (tmp_path / "out" / "coordinates.png").stat().st_size > 10_000
    with pytest.raises(DataError, match="not a coordinate check"):
        write_coordinate_report(tmp_path / "absent.json", tmp_path / "out")
