"""Laws for the loss of shapes that were trained on one number of tokens: one point per shape, so points are independent.

At fixed tokens the data term is part of the constant. Two forms:

    power terms:  L = c + sum_k A_k x_k^-a_k          with x_k such as width, depth, N
    aspect law:   L = c + N^-alpha (k0 + k1 u + k2 u^2 + k3 u ln N),   u = ln(width / depth)

Both are linear given the exponents, so only these are searched (variable projection).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from analysis.arrays import Floats
from analysis.fit.resampling import jackknife_error
from slm.rounding import exceeds

EXPONENTS = 0.01, 4.0  # range of the search
STARTS = 0.1, 0.4, 1.2
SCALE = 1e4  # of the objective, so that the tolerances of the search are small beside it
GRID = 61  # exponents among which the search of the aspect law begins
STEPS = 12  # of a bisection for the end of an accepted range


@dataclass(frozen=True)
class PowerTerms:
    """A fit by least squares in nats. `condition`: of the column-scaled Jacobian of all parameters.

    `amplitudes`: the terms in nats at the geometric mean of their x, which is in `centres` as a logarithm.
    """

    exponents: dict[str, float]
    amplitudes: dict[str, float]
    centres: dict[str, float]
    constant: float
    rss: float
    df: int
    condition: float

    @property
    def residual_sd(self) -> float:
        return math.sqrt(self.rss / self.df)


def fit_terms(terms: Mapping[str, Floats], loss: Floats) -> PowerTerms:
    """Fit L = c + sum A x^-a with c, A >= 0."""
    starts = itertools.product(STARTS, repeat=len(terms))
    exponents, rss = _search(terms, loss, {}, starts)
    coef = [float(one) for one in _project(_columns(terms, exponents), loss)[0]]
    fit = PowerTerms(
        exponents=exponents,
        amplitudes=dict(zip(terms, coef[1:], strict=True)),
        centres={name: float(np.log(x).mean()) for name, x in terms.items()},
        constant=coef[0],
        rss=rss,
        df=len(loss) - 1 - 2 * len(terms),
        condition=math.nan,
    )
    jacobian = _jacobian(fit, terms)
    scaled = jacobian / np.linalg.norm(jacobian, axis=0)
    return replace(fit, condition=float(np.linalg.cond(scaled)))


def planned_errors(fit: PowerTerms, terms: Mapping[str, Floats]) -> dict[str, float]:
    """Return the standard errors of the exponents for other shapes, with the residual sd of a fit."""
    jacobian = _jacobian(fit, terms)
    errors = fit.residual_sd * np.sqrt(np.diag(np.linalg.inv(jacobian.T @ jacobian)))
    return dict(zip(terms, map(float, errors[1 + len(terms) :]), strict=True))


def _jacobian(fit: PowerTerms, terms: Mapping[str, Floats]) -> Floats:
    """Return d L / d (c, A, a), with a column per parameter."""
    logs = {name: np.log(x) - fit.centres[name] for name, x in terms.items()}
    powers = [np.exp(-fit.exponents[name] * x) for name, x in logs.items()]
    slopes = [
        -fit.amplitudes[name] * x * power
        for (name, x), power in zip(logs.items(), powers, strict=True)
    ]
    return np.column_stack([np.ones(len(powers[0])), *powers, *slopes])


def accepted_range(
    terms: Mapping[str, Floats], loss: Floats, name: str, best: PowerTerms
) -> tuple[float, float]:
    """Return the exponents of one term that the profile accepts (F test, 95%), cut to the range of the search."""
    cut = best.rss * (1 + float(stats.f.ppf(0.95, 1, best.df)) / best.df)

    def is_accepted(log_exponent: float) -> bool:
        fixed = {name: math.exp(log_exponent)}
        starts = [[best.exponents[other] for other in terms if other != name]]
        starts.append([STARTS[1]] * (len(terms) - 1))
        return not exceeds(_search(terms, loss, fixed, starts)[1], cut)

    found = []
    for bound in np.log(EXPONENTS):
        inside, outside = math.log(best.exponents[name]), float(bound)
        if not is_accepted(outside):
            for _ in range(STEPS):
                middle = (inside + outside) / 2
                inside, outside = (middle, outside) if is_accepted(middle) else (inside, middle)
            found.append(math.exp(inside))
        else:
            found.append(math.exp(outside))
    return found[0], found[1]


def _search(
    terms: Mapping[str, Floats],
    loss: Floats,
    fixed: Mapping[str, float],
    starts: Iterable[Sequence[float]],
) -> tuple[dict[str, float], float]:
    """Return the best exponents, some of them fixed, and their sum of squares."""
    free = [name for name in terms if name not in fixed]

    def named(z: Floats) -> dict[str, float]:
        values = dict(zip(free, np.exp(np.clip(z, *np.log(EXPONENTS))), strict=True))
        return {name: float({**values, **fixed}[name]) for name in terms}

    def objective(z: Floats) -> float:
        return SCALE * _project(_columns(terms, named(z)), loss)[1]

    options = {"xatol": 1e-6, "fatol": 1e-10, "maxfev": 4000}
    runs = [
        optimize.minimize(objective, np.log(start), method="Nelder-Mead", options=options)
        for start in starts
    ]
    best = min(runs, key=lambda run: float(run.fun))
    return named(best.x), float(best.fun) / SCALE


def _columns(terms: Mapping[str, Floats], exponents: Mapping[str, float]) -> Floats:
    centred = {name: np.log(x) - np.log(x).mean() for name, x in terms.items()}
    powers = [np.exp(-exponents[name] * x) for name, x in centred.items()]
    return np.column_stack([np.ones(len(powers[0])), *powers])


def _project(matrix: Floats, loss: Floats) -> tuple[Floats, float]:
    """Return the nonnegative coefficients and the sum of squares."""
    scale = np.linalg.norm(matrix, axis=0)
    coef, norm = optimize.nnls(matrix / scale, loss)
    return coef / scale, float(norm**2)


@dataclass(frozen=True)
class Value:
    """An estimate with its jackknife standard error over shapes, and 95% t interval."""

    value: float
    se: float
    df: int

    @property
    def interval(self) -> tuple[float, float]:
        half = float(stats.t.ppf(0.975, self.df)) * self.se
        return self.value - half, self.value + half


@dataclass(frozen=True)
class AspectLaw:
    """The aspect law at fixed tokens.

    Attributes:
        alpha: exponent of N.
        log_best: ln of the best width / depth at the geometric mean of N.
        drift: change of ln(best width / depth) per ln N; above 0, the best shape becomes wider with size.
        twice: cost in nats of an aspect ratio twice or half the best, at the geometric mean of N.
        residual_sd: in nats; `residual_sd_linear`: without the parabola, k2 = 0.
    """

    alpha: Value
    log_best: Value
    drift: Value
    twice: Value
    residual_sd: float
    residual_sd_linear: float


def fit_aspect_law(n: Floats, aspect: Floats, loss: Floats) -> AspectLaw:
    """Fit the aspect law, with delete-one-shape jackknife errors."""
    values, rss = _aspect_estimates(n, aspect, loss)
    every = np.arange(len(loss))
    without = np.array(
        [
            _aspect_estimates(n[kept], aspect[kept], loss[kept])[0]
            for i in every
            for kept in [every != i]
        ]
    )
    df = len(loss) - 6
    alpha, log_best, drift, twice = (
        Value(float(value), float(error), df)
        for value, error in zip(values, jackknife_error(without), strict=True)
    )
    linear = _aspect_fit(n, aspect, loss, curved=False)[2]
    return AspectLaw(
        alpha, log_best, drift, twice, math.sqrt(rss / df), math.sqrt(linear / (df + 1))
    )


def change_of_best(n: Floats, aspect: Floats, before: Floats, after: Floats) -> Value:
    """Return ln(best width / depth) by the losses `after` minus that by `before`, of the same shapes (paired jackknife)."""

    def change(kept: NDArray[np.bool_]) -> float:
        first, second = (
            _aspect_estimates(n[kept], aspect[kept], loss[kept])[0][1] for loss in (before, after)
        )
        return float(second - first)

    every = np.arange(len(n))
    without = np.array([change(every != i) for i in every])
    return Value(change(every >= 0), float(jackknife_error(without)), len(n) - 6)


def aspect_costs(n: Floats, aspect: Floats, loss: Floats) -> tuple[Floats, Floats]:
    """Return the loss minus c + N^-alpha k0, and k1 u + k2 u^2, both as a share of the size term N^-alpha k0."""
    alpha, coef, _ = _aspect_fit(n, aspect, loss)
    matrix = _aspect_columns(n, aspect, alpha)
    size = matrix[:, 1] * coef[1]
    drift = matrix[:, 4] * coef[4]
    return (loss - coef[0] - drift) / size - 1, matrix[:, 2:4] @ coef[2:4] / size


def _aspect_estimates(n: Floats, aspect: Floats, loss: Floats) -> tuple[Floats, float]:
    """Return alpha, ln of the best aspect ratio, its drift per ln N, and the cost of a factor 2; and the RSS."""
    alpha, coef, rss = _aspect_fit(n, aspect, loss)
    _, _, k1, k2, k3 = coef
    middle = float(np.log(aspect).mean())
    best = middle - k1 / (2 * k2)
    return np.array([alpha, best, -k3 / (2 * k2), k2 * math.log(2) ** 2]), rss


def _aspect_fit(
    n: Floats, aspect: Floats, loss: Floats, *, curved: bool = True
) -> tuple[float, Floats, float]:
    def solve(log_alpha: float) -> tuple[Floats, float]:
        matrix = _aspect_columns(n, aspect, math.exp(log_alpha))
        matrix = matrix if curved else np.delete(matrix, 3, axis=1)
        coef: Floats = np.linalg.lstsq(matrix, loss)[0].astype(float)
        return coef, float(((loss - matrix @ coef) ** 2).sum())

    grid = np.log(np.geomspace(EXPONENTS[0], EXPONENTS[1], GRID))
    start = int(np.argmin([solve(one)[1] for one in grid]))
    bracket = grid[max(start - 1, 0)], grid[min(start + 1, len(grid) - 1)]
    found = optimize.minimize_scalar(
        lambda one: SCALE * solve(one)[1], bounds=bracket, method="bounded", options={"xatol": 1e-7}
    )
    coef, rss = solve(float(found.x))
    return math.exp(float(found.x)), coef, rss


def _aspect_columns(n: Floats, aspect: Floats, alpha: float) -> Floats:
    """Return the columns of c, k0, k1, k2, k3; ln N and u are centred over the shapes."""
    x, u = np.log(n) - np.log(n).mean(), np.log(aspect) - np.log(aspect).mean()
    size = np.exp(-alpha * x)
    return np.column_stack([np.ones(len(x)), size, size * u, size * u**2, size * u * x])
