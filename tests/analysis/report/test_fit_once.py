"""One analysis fits each law to each set of runs only once."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from analysis.fit import levenberg_marquardt
from analysis.fit.law import Floats
from analysis.fit.levenberg_marquardt import Minima, Problem
from analysis.report.study_report import analyze_study
from tests.full_study import full_study


@pytest.fixture
def full_grid_fits(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[object, ...]]:
    """Count minimizations from the full grid of starts, by law and data."""
    counts: Counter[tuple[object, ...]] = Counter()
    minimise = levenberg_marquardt._minimise

    def counting(problem: Problem, starts: Floats) -> Minima:
        points = problem.points
        if points.family.ndim == points.y.ndim == 1 and np.array_equal(
            starts, levenberg_marquardt.start_grid(problem.law, points)
        ):
            data = tuple(column.tobytes() for column in (points.x, points.z, points.y))
            counts[problem.law.model, problem.law.tied, *data] += 1
        return minimise(problem, starts)

    monkeypatch.setattr(levenberg_marquardt, "_minimise", counting)
    return counts


def test_each_law_is_fitted_once_to_each_set_of_runs(
    full_grid_fits: Counter[tuple[object, ...]],
) -> None:
    sizes = tuple(np.geomspace(1e7, 3.16e8, 6))
    table = full_study(families=("deep_thin", "wide_shallow"), sizes=sizes, anchor_seeds=0)
    report = analyze_study(table, bootstrap=0)
    fitted = report.comparison.exponents.fitted
    assert fitted is not None and fitted.solution is report.comparison.exponents.fit.solution  # type: ignore[union-attr]
    points = fitted.problem.points
    data = tuple(column.tobytes() for column in (points.x, points.z, points.y))
    assert full_grid_fits["M2", None, *data] == 1
    assert set(full_grid_fits.values()) == {1}
    on_all_runs = [key for key in full_grid_fits if key[0] == "M2" and key[4] == data[2]]
    assert len(on_all_runs) == 1  # n_flop only
