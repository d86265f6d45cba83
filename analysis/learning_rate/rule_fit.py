"""Fit of a learning-rate rule, lr * (tokens / reference_tokens)^-exponent, to the best rates of an audit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from slm.rounding import round_to_three_digits
from slm.studies.rate_rule import RateRule

MIN_OPTIMA = 3  # a line with an estimate of its error
MIN_TOKEN_RATIO = 2.0  # shorter ranges say nothing about a power law


@dataclass(frozen=True)
class RuleFit:
    """Line through ln(best rate) over ln(tokens), the same for all families.

    Attributes:
        rule: with the exponent rounded to 2 decimal places and the rate to 3 digits.
        interval: 95% confidence interval of the exponent, from the scatter of the best rates around the line.
        scatter: factor by which best rates deviate from the line, exp(residual standard deviation).
        optima: number of best rates.
    """

    rule: RateRule
    interval: tuple[float, float]
    scatter: float
    optima: int

    @property
    def falls(self) -> bool:
        """Whether the best rate falls with the tokens at the 5% level."""
        return self.rule.exponent > 0 and self.interval[0] > 0

    def as_dict(self) -> dict[str, Any]:
        return {
            "lr_reference": self.rule.lr,
            "lr_reference_tokens": self.rule.reference_tokens,
            "lr_tokens_exponent": self.rule.exponent,
            "exponent_interval": list(self.interval),
            "scatter": self.scatter,
            "optima": self.optima,
        }

    def describe(self) -> str:
        """Return a sentence with the rule and its uncertainty."""
        low, high = self.interval
        found = str(self.rule) if self.falls else "they are not shown to fall with the tokens"
        return (
            f"Least squares through the {self.optima} best rates inside the grid: {found}, 95% CI of the exponent "
            f"[{low:.2f}, {high:.2f}]; the best rates deviate from the line by a factor of {self.scatter:.2f}."
        )

    def settings(self) -> str:
        """Return the settings of a study that uses the rule."""
        return (
            f"study.lr_reference={self.rule.lr:g} study.lr_tokens_exponent={self.rule.exponent:g} "
            f"study.lr_reference_tokens={self.rule.reference_tokens}"
        )


def fit_rate_rule(
    best_rates: Sequence[tuple[float, float]], reference_tokens: int
) -> RuleFit | None:
    """Fit a rule to (training tokens, best rate) of shapes at their budgets.

    None with fewer than 3 best rates, or if the longest budget is less than twice the shortest. The errors of the best
    rates are taken as independent, although the budgets of a shape share its deviation.
    """
    if len(best_rates) < MIN_OPTIMA:
        return None
    tokens, rates = np.array(best_rates, dtype=float).T
    if tokens.max() < MIN_TOKEN_RATIO * tokens.min():
        return None
    x, y = np.log(tokens / reference_tokens), np.log(rates)
    deviations = x - x.mean()
    squares = float(deviations @ deviations)
    slope = float(deviations @ y) / squares
    residuals = y - y.mean() - slope * deviations
    degrees_of_freedom = len(rates) - 2
    scatter = math.sqrt(float(residuals @ residuals) / degrees_of_freedom)
    margin = float(stats.t.ppf(0.975, degrees_of_freedom)) * scatter / math.sqrt(squares)
    exponent = round(-slope, 2)
    # The line is known best at the mean of ln(tokens); rounding the exponent turns it around that point.
    lr = math.exp(y.mean() + exponent * x.mean())
    return RuleFit(
        RateRule(round_to_three_digits(lr), reference_tokens, exponent),
        (-slope - margin, -slope + margin),
        math.exp(scatter),
        len(rates),
    )
