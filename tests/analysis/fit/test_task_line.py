"""Bits per byte of a task against loss: estimates of a known line, and tests of its families."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import analysis
from analysis.charts.task import task_against_loss
from slm.errors import DataError

pytestmark = pytest.mark.numeric


def table(
    offset: float = 0.0,
    extra_slope: float = 0.0,
    noise: float = 0.01,
    seed: int = 0,
    runs: int = 12,
) -> pd.DataFrame:
    """Return runs of two families; the second lies `offset` above the line 0.2 + 0.4 loss."""
    generator = np.random.default_rng(seed)
    family = np.arange(runs) % 2
    loss = np.linspace(2.5, 4.0, runs)
    y = (
        0.2
        + (0.4 + extra_slope * family) * loss
        + offset * family
        + noise * generator.normal(size=runs)
    )
    names = np.where(family == 1, "wide", "deep")
    return pd.DataFrame({"family": names, "loss_nats_per_token": loss, "arc_easy_bits_per_byte": y})


def test_a_known_line_is_found() -> None:
    fit = analysis.fit_task(table(), "arc_easy")
    assert fit.slope == pytest.approx(0.4, abs=4 * fit.slope_se)
    assert fit.slope_se < 0.02
    assert fit.intercept == pytest.approx(0.2 + 0.4 * fit.centre, abs=4 * fit.intercept_se)
    assert fit.residual_sd == pytest.approx(0.01, rel=0.6)
    assert fit.predict([3.0]) == pytest.approx([1.4], abs=0.02)
    assert fit.is_one_line
    assert "no difference between the families" in fit.summary()


def test_estimates_equal_those_of_statsmodels() -> None:
    statsmodels = pytest.importorskip("statsmodels.formula.api")
    data = table(offset=0.02, extra_slope=0.01)
    fit = analysis.fit_task(data, "arc_easy_bits_per_byte")
    data["x"] = data["loss_nats_per_token"] - fit.centre
    line = statsmodels.ols("arc_easy_bits_per_byte ~ x", data).fit()
    assert (fit.intercept, fit.slope) == pytest.approx(tuple(line.params))
    assert (fit.intercept_se, fit.slope_se) == pytest.approx(tuple(line.bse))
    shifted = statsmodels.ols("arc_easy_bits_per_byte ~ x + C(family)", data).fit()
    free = statsmodels.ols("arc_easy_bits_per_byte ~ x * C(family)", data).fit()
    assert fit.p_family == pytest.approx(shifted.compare_f_test(line)[1])
    assert fit.p_slope == pytest.approx(free.compare_f_test(shifted)[1])
    gap = fit.families["wide"][0] - fit.families["deep"][0]
    assert gap == pytest.approx(shifted.params["C(family)[T.wide]"])
    assert 2 * fit.families["wide"][1] == pytest.approx(shifted.bse["C(family)[T.wide]"])


def test_families_beside_the_line_are_told_from_families_on_it() -> None:
    assert analysis.fit_task(table(offset=0.05), "arc_easy").is_one_line is False
    steeper = analysis.fit_task(table(extra_slope=0.05, noise=0.002), "arc_easy")
    assert steeper.p_slope is not None and steeper.p_slope < 0.001
    assert "the families differ" in steeper.summary()
    refused = [
        analysis.fit_task(table(seed=seed), "arc_easy").is_one_line is False for seed in range(200)
    ]
    assert 1 <= sum(refused) <= 25  # 5% of 200


def test_one_family_has_no_test() -> None:
    fit = analysis.fit_task(table().assign(family="deep"), "arc_easy")
    assert (fit.p_family, fit.p_slope, fit.is_one_line, fit.families) == (None, None, None, {})


@pytest.mark.parametrize(
    ("data", "task", "message"),
    [
        (table(), "arc_esay", "no column arc_esay_bits_per_byte; did you mean arc_easy"),
        (table().drop(columns="family"), "arc_easy", "no column family"),
        (
            table(runs=3),
            "arc_easy",
            "3 runs with loss and arc_easy_bits_per_byte; a line needs at least 4",
        ),
        (table().assign(loss_nats_per_token=3.0), "arc_easy", "all runs have the same loss"),
    ],
)
def test_bad_tables_are_refused(data: pd.DataFrame, task: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        analysis.fit_task(data, task)


def test_the_chart_has_every_run_and_the_line() -> None:
    figure = task_against_loss(analysis.fit_task(table(), "arc_easy"))
    spec = str(figure.file_spec())
    assert "arc_easy (bits/byte of the gold answer)" in spec and "deep" in spec
