"""The Pareto frontier, and the labels of its chart."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from slm.charts import ParetoPoint, pareto
from slm.charts.pareto import frontier


def random_points(count: int) -> list[ParetoPoint]:
    values = np.random.default_rng(count).integers(1, 30, size=(count, 2))
    return [
        ParetoPoint(float(x), float(y), "ab"[i % 2], f"m{i}") for i, (x, y) in enumerate(values)
    ]


def place(point: ParetoPoint) -> tuple[float, float]:
    return point.x, point.y


def test_frontier_has_the_points_that_no_other_beats_in_both() -> None:
    for count in (1, 2, 5, 40, 200):
        points = random_points(count)
        best = {
            point.label
            for point in points
            if not any(
                other.x <= point.x
                and other.y <= point.y
                and (other.x, other.y) != (point.x, point.y)
                for other in points
            )
        }
        assert {point.label for point in frontier(points, place)} == best


def test_rounding_does_not_remove_an_equal_model() -> None:
    points = [ParetoPoint(1e5, 20.0, "a", "run"), ParetoPoint(1e5, 20.0000001, "a", "exported")]
    assert len(frontier(points, place, tolerance=(0, 1e-6))) == 2


def test_differences_within_the_tolerance_do_not_decide() -> None:
    run, exported = ParetoPoint(2.57, 20.0, "a", "run"), ParetoPoint(2.42, 20.0, "a", "exported")
    assert frontier([run, exported], place) == [exported]
    assert frontier([run, exported], place, tolerance=(0.1, 0.01)) == [exported, run]
    worse = ParetoPoint(2.45, 21.0, "a", "worse")
    assert worse not in frontier([run, exported, worse], place, tolerance=(0.1, 0.01))


def test_chart_is_drawn_for_one_and_for_many_models(tmp_path: Path) -> None:
    for count in (1, 3, 30):
        figure = pareto(
            random_points(count),
            ["a", "b"],
            name="chart",
            title="Loss against memory",
            caption="",
            x_title="memory",
            y_title="loss",
        )
        figure.save(tmp_path / "chart.svg")
        drawn = (tmp_path / "chart.svg").read_text()
        assert "Loss against memory" in drawn and ">m" in drawn
