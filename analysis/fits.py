"""A power law per family, with a status that says what may be read from it.

ln L = ln A - alpha ln N_flop - beta ln D, by least squares, without an irreducible loss: a local
slope over the measured range, not an asymptotic exponent. The exponents' uncertainty is over
sizes, since all runs of a size share its shape: a delete-one-size jackknife.

Statuses: OK · WEAK (printed with its interval, not to be leaned on) · REFUSED (the design cannot
identify it, so no number is given).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

MIN_SIZES = 4
MIN_BUDGETS = 2
MAX_CORRELATION = 0.95
MIN_DECADES = 1.0
MAX_INTERVAL_WIDTH = 0.2

Status = Literal["OK", "WEAK", "REFUSED"]


@dataclass(frozen=True)
class PowerLaw:
    """Exponents of the loss in nats per token, with 95% intervals; None where refused."""

    family: str
    status: Status
    reasons: tuple[str, ...]
    runs: int
    sizes: int
    alpha: float | None = None
    alpha_low: float | None = None
    alpha_high: float | None = None
    beta: float | None = None
    beta_low: float | None = None
    beta_high: float | None = None
    log_a: float | None = None

    def predict(self, n_flop: float, tokens: float) -> float:
        """Loss in nats per token; only for a fit that was not refused."""
        if self.log_a is None or self.alpha is None or self.beta is None:
            raise ValueError(
                f"the power law of {self.family} was refused: {'; '.join(self.reasons)}"
            )
        return math.exp(self.log_a - self.alpha * math.log(n_flop) - self.beta * math.log(tokens))


def fit_power_law(table: pd.DataFrame, family: str) -> PowerLaw:
    """Fit one family's runs, or refuse and say why."""
    runs = table[table["family"] == family]
    n_sizes = runs["size"].nunique()
    refusals = list(_refusals(runs))
    if refusals:
        return PowerLaw(family, "REFUSED", tuple(refusals), len(runs), n_sizes)
    log_n, log_d = np.log(runs["n_flop"].to_numpy()), np.log(runs["tokens"].to_numpy())
    log_loss, sizes = np.log(runs["loss_nats_per_token"].to_numpy()), runs["size"].to_numpy()
    log_a, alpha, beta = _least_squares(log_n, log_d, log_loss)
    alpha_half, beta_half = _jackknife_half_widths(log_n, log_d, log_loss, sizes)
    weaknesses = list(_weaknesses(log_n, alpha_half))
    return PowerLaw(
        family=family,
        status="WEAK" if weaknesses else "OK",
        reasons=tuple(weaknesses),
        runs=len(runs),
        sizes=n_sizes,
        alpha=alpha,
        alpha_low=alpha - alpha_half,
        alpha_high=alpha + alpha_half,
        beta=beta,
        beta_low=beta - beta_half,
        beta_high=beta + beta_half,
        log_a=log_a,
    )


def _refusals(runs: pd.DataFrame) -> Iterator[str]:
    sizes = runs["size"].nunique()
    if sizes < MIN_SIZES:
        yield f"{sizes} sizes, at least {MIN_SIZES} are needed"
    if len(runs) and runs.groupby("size")["tokens"].nunique().min() < MIN_BUDGETS:
        yield "some size has a single token budget, so size and data cannot be told apart"
    elif len(runs) > 2:
        correlation = np.corrcoef(np.log(runs["n_flop"]), np.log(runs["tokens"]))[0, 1]
        if not abs(correlation) <= MAX_CORRELATION:
            yield f"ln N and ln D are correlated at {correlation:.2f}"


def _weaknesses(log_n: NDArray[np.float64], alpha_half: float) -> Iterator[str]:
    decades = (log_n.max() - log_n.min()) / math.log(10)
    if decades < MIN_DECADES:
        yield f"sizes span {decades:.1f} decades, less than {MIN_DECADES:g}"
    if 2 * alpha_half > MAX_INTERVAL_WIDTH:
        yield f"the interval of alpha is {2 * alpha_half:.2f} wide"


def _least_squares(
    log_n: NDArray[np.float64], log_d: NDArray[np.float64], log_loss: NDArray[np.float64]
) -> tuple[float, float, float]:
    design = np.column_stack([np.ones_like(log_n), -log_n, -log_d])
    log_a, alpha, beta = np.linalg.lstsq(design, log_loss)[0]
    return float(log_a), float(alpha), float(beta)


def _jackknife_half_widths(
    log_n: NDArray[np.float64],
    log_d: NDArray[np.float64],
    log_loss: NDArray[np.float64],
    sizes: NDArray[np.int64],
) -> tuple[float, float]:
    """Half 95% intervals of (alpha, beta): sqrt((G-1)/G sum (theta_-g - mean)^2), t with G - 1."""
    groups = np.unique(sizes)
    refits = np.array(
        [
            _least_squares(log_n[keep], log_d[keep], log_loss[keep])[1:]
            for keep in (sizes != group for group in groups)
        ]
    )
    count = len(groups)
    spread = ((refits - refits.mean(axis=0)) ** 2).sum(axis=0)
    standard_errors = np.sqrt((count - 1) / count * spread)
    alpha_half, beta_half = stats.t.ppf(0.975, count - 1) * standard_errors
    return float(alpha_half), float(beta_half)
