"""Coordinate checks: whose updates grow with width (8-fold) and with depth (16-fold)."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from analysis.controls.coordinate_check import growth, write_coordinate_report
from slm.errors import DataError
from slm.files import read_json
from slm.training.coordinates import coordinate_check, write_coordinates

# Growth of the stream's change after 3 steps, as an exponent of the size. A quarter means less than
# a factor 1.7 over 8-fold width and 2 over 16-fold depth; without the multipliers it is about a half.
STAYS = {
    ("standard", "width"): False,
    ("standard", "depth"): False,
    ("mup", "width"): True,
    ("mup", "depth"): False,
    ("completep", "width"): True,
    ("completep", "depth"): True,
}


@pytest.mark.parametrize(("kind", "axis"), STAYS, ids=str)
def test_updates_keep_their_size_where_they_should(kind: str, axis: str) -> None:
    rows = pd.DataFrame(coordinate_check(kind, axis, steps=3))  # type: ignore[arg-type]
    exponent = growth(rows, axis, "update", 3)[kind]
    assert abs(exponent) < 0.25 if STAYS[kind, axis] else exponent > 0.4
    start = rows[rows["step"] == 0]
    # The stream starts between the embedding, its floor once branches shrink, and twice its size at
    # the base shape: it neither grows nor vanishes.
    assert (start["stream"] >= start["embedding"]).all()
    assert start["stream"].max() <= 2 * start["stream"].iloc[0]


def test_the_figure_is_drawn_from_the_file(tmp_path: Path) -> None:
    write_coordinates(tmp_path / "coordinates.json", seeds=(0,))
    rows = read_json(tmp_path / "coordinates.json")
    assert {row["kind"] for row in rows} == {"standard", "mup", "completep"}
    write_coordinate_report(tmp_path / "coordinates.json", tmp_path / "out")
    assert (tmp_path / "out" / "coordinates.png").stat().st_size > 10_000
    with pytest.raises(DataError, match="not a coordinate check"):
        write_coordinate_report(tmp_path / "absent.json", tmp_path / "out")
