"""What the four MobileLLM points identify: laws with a given irreducible loss, and simulated intervals of the slope."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import least_squares
from scipy.special import stdtrit

from analysis.notebooks.mobilellm import MODELS

DRAWS = 10_000
CHI2_95 = 3.841  # 95% quantile of chi-squared with one degree of freedom
E_STEP = 0.01  # nats


@dataclass(frozen=True)
class LawWithE:
    """Loss = E + A N^-alpha in nats, with E given; `chi2` is its misfit in units of the known noise."""

    E: float
    A: float
    alpha: float
    chi2: float

    def loss(self, n: ArrayLike) -> np.ndarray:
        return np.asarray(self.E + self.A * np.asarray(n, float) ** -self.alpha)


@dataclass(frozen=True)
class SimulatedIntervals:
    """Naive 95% intervals of the slope of ln loss on ln N, in tables of four points whose law and noise are known.

    Attributes:
        slope: slope of the line through the points without noise.
        sd: standard deviation of the estimated slopes.
        half_widths: 2.5%, 50% and 97.5% quantiles of half the width of the intervals.
        coverage: share of the intervals that contain `slope`.
        includes_kaplan: share of the intervals that contain Kaplan's -0.076.
    """

    slope: float
    sd: float
    half_widths: tuple[float, float, float]
    coverage: float
    includes_kaplan: float


def sizes() -> np.ndarray:
    """Return the numbers of parameters without embeddings."""
    return np.array([model.params_non_embedding for model in MODELS], float)


def losses() -> np.ndarray:
    """Return the losses in nats per token."""
    return np.array([model.loss for model in MODELS])


def fit_given_e(e: float, noise: float) -> LawWithE:
    """Fit A and alpha by least squares of the loss, with E = `e` and noise of the standard deviation `noise` in nats."""
    n, loss = sizes(), losses()
    slope, start = np.polyfit(np.log(n), np.log(loss - e), 1)

    def residuals(theta: np.ndarray) -> np.ndarray:
        return np.asarray((loss - e - np.exp(theta[0] - theta[1] * np.log(n))) / noise)

    found = least_squares(residuals, [start, -slope], xtol=1e-12, ftol=1e-12, gtol=1e-12)
    return LawWithE(e, math.exp(found.x[0]), float(found.x[1]), 2 * float(found.cost))


def laws_by_e(noise: float) -> list[LawWithE]:
    """Return the best law for each E from 0 to just below the smallest loss."""
    return [fit_given_e(float(e), noise) for e in np.arange(0, losses().min() - E_STEP, E_STEP)]


def accepted(laws: list[LawWithE]) -> list[LawWithE]:
    """Return the laws that a likelihood-ratio test with known noise does not reject at 5%."""
    best = min(law.chi2 for law in laws)
    return [law for law in laws if law.chi2 - best <= CHI2_95]


def simulate_intervals(law: LawWithE, noise: float, seed: int = 0) -> SimulatedIntervals:
    """Draw tables of four losses around a law, and compute the naive interval of each."""
    x = np.log(sizes())
    centred = x - x.mean()
    squares = float(centred @ centred)
    exact = law.loss(sizes())
    slope = float(centred @ np.log(exact)) / squares
    drawn = exact + noise * np.random.default_rng(seed).normal(size=(DRAWS, len(x)))
    y = np.log(drawn)
    slopes = y @ centred / squares
    residual = y - y.mean(axis=1, keepdims=True) - slopes[:, None] * centred
    df = len(x) - 2
    half = stdtrit(df, 0.975) * np.sqrt((residual**2).sum(axis=1) / df / squares)
    quantiles = np.quantile(half, [0.025, 0.5, 0.975])
    return SimulatedIntervals(
        slope=slope,
        sd=float(slopes.std()),
        half_widths=(float(quantiles[0]), float(quantiles[1]), float(quantiles[2])),
        coverage=float((np.abs(slopes - slope) <= half).mean()),
        includes_kaplan=float((np.abs(slopes + 0.076) <= half).mean()),
    )
