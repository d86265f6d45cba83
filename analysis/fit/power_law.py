"""Fit loss against model size alone: L = A N^-alpha, or L = E + A N^-alpha.

A fit in one variable cannot separate the effects of size, data and compute. Use it only for tables that have no
token counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from analysis.arrays import Floats
from analysis.design.identifiability import MIN_SIZES, count_distinct
from analysis.fit.diagnostics import Status
from analysis.fit.law import ALPHA, A, B, E, JointLaw, Points
from analysis.fit.levenberg_marquardt import Problem, minimise, start_grid
from analysis.fit.profile_likelihood import Interval, profile, quantile_t, residual_df
from analysis.formatting import count, format_interval, format_range
from analysis.runs.validate import loss_warnings, positive_columns
from slm.rounding import snap_to_zero
from slm.summary import Summarized

Unit = Literal["nats", "perplexity"]
GOOD_SIZES = 6  # fewer sizes make a fit WEAK
ABSENT = -60.0  # ln of a term that is not in the model


@dataclass(frozen=True, repr=False)
class PowerLawFit(Summarized):
    """A fit of y = E + A n^-alpha with 95% intervals. If the fit is refused, every number is None.

    Attributes:
        unit: unit of y, nats or perplexity.
        status: OK, WEAK, UNIDENTIFIED or REFUSED.
        reasons: why the status is not OK.
        warnings: suspicious values in the data.
        runs: number of runs.
        irreducible: whether E was fitted.
        alpha: exponent of y. For perplexity it is about L times that of the loss in nats, since
            d ln PPL / d ln N = L d ln L / d ln N.
        alpha_interval: 95% interval of alpha.
        A: prefactor in `unit`.
        E: irreducible term in `unit`; 0 if it was not fitted.
        accepted_e: 95% profile-likelihood interval of E.
        residual_sd: standard deviation of the residuals of ln y.
        r_squared: of the logarithms, for comparison with published tables; it does not validate the fit.
    """

    unit: str
    status: Status
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]
    runs: int
    irreducible: bool
    alpha: float | None = None
    alpha_interval: tuple[float, float] | None = None
    A: float | None = None
    E: float | None = None
    accepted_e: tuple[float, float] | None = None
    residual_sd: float | None = None
    r_squared: float | None = None
    line: tuple[float, ...] = field(default=(), repr=False)
    """Mean of ln n and its sum of squared deviations, for prediction intervals."""

    @property
    def params(self) -> dict[str, float]:
        """E, A and alpha; empty if the fit is refused."""
        if self.alpha is None or self.A is None or self.E is None:
            return {}
        return {"E": self.E, "A": self.A, "alpha": self.alpha}

    def predict(self, n: float) -> tuple[float, float, float]:
        """Return the prediction for one new run and its 95% interval; the interval is nan in a fit with E.

        Raises:
            ValueError: if the fit was refused.
        """
        if self.alpha is None or self.A is None or self.E is None or self.residual_sd is None:
            raise ValueError(f"the power law was refused: {'; '.join(self.reasons)}")
        value = self.E + self.A * n**-self.alpha
        if self.irreducible:
            return value, math.nan, math.nan
        mean, squares = self.line
        spread = math.sqrt(1 + 1 / self.runs + (math.log(n) - mean) ** 2 / squares)
        half = quantile_t(self.runs - 2) * self.residual_sd * spread
        return value, value * math.exp(-half), value * math.exp(half)

    def p_value(self, exponent: float) -> float:
        """Return the two-sided p value of a given exponent, from the residuals of the log-log line.

        Raises:
            ValueError: if the fit was refused or includes E.
        """
        if self.alpha is None or self.residual_sd is None or self.irreducible:
            raise ValueError(
                "p_value needs an accepted fit without irreducible loss; fit with irreducible=False"
            )
        error = self.residual_sd / math.sqrt(self.line[1])
        difference = abs(snap_to_zero(self.alpha - exponent))
        if error == 0:
            return 0.0 if difference else 1.0
        return float(2 * special.stdtr(self.runs - 2, -difference / error))

    def title(self) -> str:
        form = "E + A n^-alpha" if self.irreducible else "A n^-alpha"
        return f"{self.unit} = {form}, {count(self.runs, 'run')}: {self.status}"

    def details(self) -> Iterator[tuple[str, str]]:
        if self.alpha is not None and self.alpha_interval is not None:
            value = format_interval(self.alpha, *self.alpha_interval, signed=False)
            if self.status == "UNIDENTIFIED":
                value = f"not identified: {format_range(self.alpha_interval)} is accepted"
            yield "alpha [95% CI]", value
            yield "A", f"{self.A:.4g}"
        if self.irreducible and self.accepted_e is not None:
            low, high = self.accepted_e
            yield "E", f"{self.E:.3f}, accepted from {low:.3g} to {high:.3g}"
        for reason in self.reasons:
            yield "reason", reason
        for warning in self.warnings:
            yield "note", warning

    def to_dict(self) -> dict[str, Any]:
        """Return a dictionary for JSON."""
        return asdict(self)


def fit_power_law(
    n: ArrayLike,
    loss: ArrayLike,
    *,
    irreducible: bool = False,
    unit: Unit = "nats",
    vocab_size: int | None = None,
) -> PowerLawFit:
    """Fit loss = A n^-alpha by least squares of ln loss on ln n, or loss = E + A n^-alpha.

    Args:
        n: model size of each run, in one definition of N for all runs.
        loss: final loss in nats per token, or perplexity with unit="perplexity".
        irreducible: also fit E, with the solver of the joint law.
        vocab_size: if known, losses above its logarithm are an error.

    The fit is refused for fewer than 3 sizes (with E: fewer than 4). Unless all runs were trained on the same
    data, the exponent mixes the effects of size and data. The fit cannot detect this: state it with the result.

    Raises:
        DataError: if columns differ in length or have values that are not finite and above 0.
    """
    columns = positive_columns(n=n, loss=loss)
    size, losses = columns["n"], columns["loss"]
    warnings = [] if unit == "perplexity" or not len(losses) else loss_warnings(losses, vocab_size)
    common: dict[str, Any] = {
        "unit": unit,
        "warnings": tuple(warnings),
        "runs": len(size),
        "irreducible": irreducible,
    }
    needed = MIN_SIZES if irreducible else 3
    if (sizes := count_distinct(size)) < needed:
        reason = f"{count(sizes, 'size')}, at least {needed} are needed; run {needed - sizes} more"
        return PowerLawFit(status="REFUSED", reasons=(reason,), **common)
    return _with_irreducible(size, losses, common) if irreducible else _line(size, losses, common)


def _too_few_sizes(sizes: int, df: int) -> list[str]:
    if sizes >= GOOD_SIZES:
        return []
    freedom = count(df, "degree of freedom", "degrees of freedom")
    return [
        f"{count(sizes, 'size')}: the interval has {freedom} and ignores the seed standard deviation"
    ]


def _line(size: Floats, loss: Floats, common: dict[str, Any]) -> PowerLawFit:
    x, y = np.log(size), np.log(loss)
    centred = x - x.mean()
    squares = float(centred @ centred)
    slope = snap_to_zero(float(centred @ y) / squares)
    residual = y - y.mean() - slope * centred
    df = len(x) - 2
    sd = snap_to_zero(math.sqrt(float(residual @ residual) / df))
    total = snap_to_zero(np.sqrt(((y - y.mean()) ** 2).sum())) ** 2  # 0 if all losses are equal
    half = quantile_t(df) * sd / math.sqrt(squares)
    weak = _too_few_sizes(count_distinct(size), df)
    return PowerLawFit(
        status="WEAK" if weak else "OK",
        reasons=tuple(weak),
        alpha=-slope,
        alpha_interval=(-slope - half, -slope + half),
        A=math.exp(float(y.mean() - slope * x.mean())),
        E=0.0,
        residual_sd=sd,
        r_squared=1 - float(residual @ residual) / total if total else math.nan,
        line=(float(x.mean()), squares),
        **common,
    )


def _with_irreducible(size: Floats, loss: Floats, common: dict[str, Any]) -> PowerLawFit:
    law = JointLaw("M0", 1)
    points = Points.of(size, np.ones_like(size), loss, np.zeros(len(size), dtype=np.int64))
    problem = Problem.of(law, points)
    starts = start_grid(law, points)
    problem.low[[B, 4]], problem.high[[B, 4]] = [ABSENT, 0.5], [ABSENT, 0.5]
    minima = minimise(problem, starts)
    theta = minima.theta[minima.best]
    accepted = profile(problem, theta, E)
    interval = profile(problem, theta, ALPHA)
    df = residual_df(problem)
    weak = _too_few_sizes(count_distinct(size), df)
    status, reasons = _status(accepted, interval, weak)
    low = 0.0 if accepted.open_low else math.exp(accepted.low)
    return PowerLawFit(
        status=status,
        reasons=tuple(reasons),
        alpha=float(theta[ALPHA]),
        alpha_interval=(interval.low, interval.high),
        A=math.exp(theta[A] + theta[ALPHA] * points.log_n0),
        E=math.exp(theta[E]),
        accepted_e=(low, math.exp(accepted.high)),
        residual_sd=math.sqrt(2 * float(minima.objective.min()) / df),
        **common,
    )


def _status(accepted: Interval, alpha: Interval, weak: list[str]) -> tuple[Status, list[str]]:
    low = 0.0 if accepted.open_low else math.exp(accepted.low)
    if accepted.open_high or alpha.open_low or alpha.open_high:
        flat = f"E is not identified: the data accept {low:.3g} to {math.exp(accepted.high):.3f}"
        if not accepted.open_high:
            flat = f"alpha is not identified: the data accept {alpha.low:.3g} to {alpha.high:.3g}"
        return "UNIDENTIFIED", [flat, *weak]
    reasons = [*weak, *(["the interval of E reaches 0"] if accepted.open_low else [])]
    return ("WEAK" if reasons else "OK"), reasons
