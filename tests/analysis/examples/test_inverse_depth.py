"""The page on inverse depth scaling: its laws on simulated runs, and its published numbers. The table is not shipped."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from analysis.arrays import Floats
from analysis.examples.published.claims import HERE, find_table
from analysis.examples.published.width_depth_designs import (
    best_aspect,
    crossed_runs,
    planned_error,
)
from analysis.examples.published.width_depth_inference import LawFit, Noise, accepted, profile
from analysis.examples.published.width_depth_law import (
    LossLaw,
    Runs,
    aspect_law,
    joint_law,
    minimise,
    width_depth_law,
)
from analysis.fit.joint import fit_joint
from analysis.fit.profile_likelihood import quantile_t
from slm.errors import DataError

pytestmark = pytest.mark.numeric

SIZES, ASPECTS, BUDGETS = (3e7, 1e8, 3e8, 1e9), (16.0, 64.0, 256.0), (8.0, 24.0, 72.0)
E, TERMS, EXPONENTS = 1.8, (300.0, 6.0, 500.0), (0.9, 1.2, 0.3)
USUAL = "without the 5 largest losses"


def additive_loss(runs: Runs) -> Floats:
    units = (runs.width, runs.depth, runs.tokens)
    return np.asarray(E + sum(c * x**-p for c, x, p in zip(TERMS, units, EXPONENTS, strict=True)))


@pytest.fixture
def runs() -> Runs:
    """Runs of the additive law without noise, with independent width and depth."""
    planned = crossed_runs(SIZES, ASPECTS, BUDGETS)
    return replace(planned, loss=additive_loss(planned))


@pytest.mark.parametrize("delta", [math.inf, 1e-3])
def test_known_exponents_are_recovered(runs: Runs, delta: float) -> None:
    law = width_depth_law(runs)
    found = minimise(law, law.starts(6), delta=delta)
    assert found.best[4:] == pytest.approx(EXPONENTS, abs=1e-5)
    assert math.exp(found.best[0]) == pytest.approx(E, abs=1e-5)


@pytest.mark.parametrize("build", [width_depth_law, joint_law, aspect_law])
def test_jacobian_is_the_derivative(runs: Runs, build: Callable[[Runs], LossLaw]) -> None:
    law = build(runs)
    theta = law.starts(1, seed=3)[0]
    step = 1e-6
    numeric = [
        (law.predict(theta + step * unit)[0] - law.predict(theta - step * unit)[0]) / (2 * step)
        for unit in np.eye(len(theta))
    ]
    assert pytest.approx(np.array(numeric), abs=1e-8) == law.predict(theta)[1].T


def test_the_huber_objective_is_a_sum(runs: Runs) -> None:
    noise = np.random.default_rng(0).normal(0, 0.01, len(runs))
    law = joint_law(replace(runs, loss=runs.loss * np.exp(noise)))
    found = minimise(law, law.starts(2), delta=1e-3)
    size = np.abs(law.residuals(found.best))
    huber = np.where(size <= 1e-3, size**2 / 2, 1e-3 * (size - 1e-3 / 2))
    assert found.lowest == pytest.approx(float(huber.sum()), rel=1e-9)


def test_the_joint_law_is_that_of_the_package(runs: Runs) -> None:
    law = joint_law(runs)
    found = dict(zip(law.names, minimise(law, law.starts(4)).best, strict=True))
    package = fit_joint(runs.size, runs.tokens, runs.loss).params
    assert (found["alpha"], found["beta"]) == pytest.approx(
        (package["alpha"], package["beta"]), abs=1e-5
    )


def test_a_profile_gives_the_interval_of_a_nearly_linear_parameter(runs: Runs) -> None:
    noise = np.random.default_rng(1).normal(0, 1e-4, len(runs))
    law = width_depth_law(replace(runs, loss=runs.loss * np.exp(noise)))
    theta = minimise(law, law.starts(4)).best
    se = float(np.sqrt(law.covariance(theta)[5, 5]))
    values = theta[5] + se * np.arange(-4, 5)
    excess = profile(law, theta, "b", values)
    found = accepted(values, excess, float(theta[5]), law.df)
    half = quantile_t(law.df) * se
    assert (found.high - theta[5], theta[5] - found.low) == pytest.approx((half, half), rel=0.02)


def test_an_interval_is_widened_and_can_be_open() -> None:
    values = np.linspace(0, 2, 21)
    excess = ((values - 1) / 0.1) ** 2
    narrow, wide = (accepted(values, excess, 1.0, 50, inflation) for inflation in (1.0, 4.0))
    assert wide.width == pytest.approx(2 * narrow.width) == 4 * 0.1 * quantile_t(50)
    assert accepted(values, 0 * excess, 1.0, 50).open_low


def test_noise_is_split_into_runs_and_shapes() -> None:
    generator = np.random.default_rng(0)
    shape = np.repeat(np.arange(400), 6)
    residual = generator.normal(0, 0.006, 2400) + generator.normal(0, 0.003, 400)[shape]
    noise = Noise.of(residual, shape)
    assert (noise.sigma, noise.tau) == pytest.approx((0.006, 0.003), rel=0.1)


def test_one_aspect_ratio_does_not_identify_the_depth_exponent(runs: Runs) -> None:
    noise = Noise(0.005, 0.01)
    theta = minimise(width_depth_law(runs), width_depth_law(runs).starts(4)).best
    line = crossed_runs(SIZES, (64.0,), BUDGETS)
    assert planned_error(width_depth_law(line), theta, line, "b", noise) == math.inf
    assert planned_error(width_depth_law(runs), theta, runs, "b", noise) < 0.1


def test_the_best_aspect_ratio_minimises_the_law(runs: Runs) -> None:
    law = width_depth_law(runs)
    theta = minimise(law, law.starts(4)).best
    aspects = np.geomspace(5, 500, 2001)
    tried = crossed_runs([1e9], aspects.tolist(), [20.0])
    best = aspects[int(np.argmin(additive_loss(tried)))]
    assert best_aspect(theta, runs, 1e9) == pytest.approx(best, rel=0.005)


@pytest.fixture(scope="module")
def published() -> pd.DataFrame:
    try:
        path = find_table(
            "DEPTH_SCALING",
            "Scaling/get_fitting_data_chinchilla.csv",
            "scaling/chinchilla_shapes.csv",
        )
    except DataError as error:
        pytest.skip(str(error))
    return pd.read_csv(path)


def test_the_shipped_numbers_are_those_of_the_table(published: pd.DataFrame) -> None:
    results = json.loads((HERE / "inverse_depth" / "results.json").read_text(encoding="utf-8"))
    for name, runs in Runs.selections(published).items():
        shipped = results["depth_exponent"][name]
        law = width_depth_law(runs)
        theta = minimise(law, law.starts(3)).best
        se = float(np.sqrt(law.covariance(theta)[5, 5]))
        assert len(runs) == shipped["runs"]
        assert (theta[5], se) == pytest.approx((shipped["b"], shipped["se_runs"]), rel=1e-4)
    runs = Runs.selections(published)[USUAL]
    for law_name, build in (("additive", width_depth_law), ("joint", joint_law)):
        fit = LawFit.of(build(runs), runs.shape, starts=3)
        shipped = results["laws"][USUAL][law_name]
        assert (fit.rss, fit.rms_error) == pytest.approx(
            (shipped["rss"], shipped["rms_error"]), rel=1e-4
        )
