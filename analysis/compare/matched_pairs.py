"""Deep minus wide at matched FLOPs: the differences, their spread, and nothing beyond the design."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from analysis.design.identifiability import collinearity_refusals
from analysis.formatting import (
    count,
    format_interval,
    format_number,
    format_p_value,
    p_text,
    power_of_ten,
)
from slm.architecture.shape_solver import MATCH_TOLERANCE
from slm.rounding import (
    ITERATION_TOLERANCE,
    ROUNDING_TOLERANCE,
    exceeds,
    round_to_three_digits,
    snap_to_zero,
    stable_argsort,
)
from slm.summary import Readable, Rows

CONFIDENCE = 0.95
MAX_BUDGETS = 5  # in the printed summary


@dataclass(frozen=True, repr=False)
class Contrast(Readable):
    """Loss of one family minus that of another, in nats per token, over matched pairs.

    `pairs` has a row per (rung, token budget), `unpaired` counts the runs of the two families without
    a partner. `summary` has a row per token budget. Its endpoint is `largest`: the regression of the
    differences on ln FLOPs, read at the largest pair, with a 95% t interval (k - 2 degrees of
    freedom) and a p-value, Holm-adjusted over the budgets, as `largest_low_holm` and `largest_high_holm`
    are. `mean` and `sd` over pairs describe; they
    treat the difference as the same at all sizes (k - 1). The unit of replication is the pair of
    shapes, never the seed alone.
    """

    deep: str
    wide: str
    pairs: pd.DataFrame
    summary: pd.DataFrame
    unpaired: int

    @property
    def matched(self) -> bool:
        return not exceeds(self.pairs["flops_mismatch"].abs(), MATCH_TOLERANCE).any()

    @property
    def by_flops(self) -> list[dict[str, Any]]:
        """Rows of the summary by the FLOPs of their endpoint, of equal ones the smaller budget first."""
        rows: list[Any] = self.summary.to_dict("records")
        return [rows[row] for row in stable_argsort([row["largest_flops"] for row in rows])]

    def title(self) -> str:
        pairs, budgets = count(len(self.pairs), "pair"), count(len(self.summary), "token budget")
        return f"loss of {self.deep} minus loss of {self.wide} at equal FLOPs, nats per token, {pairs} at {budgets}"

    def details(self) -> Iterator[tuple[str, str]]:
        rows = self.by_flops
        for row in rows[-MAX_BUDGETS:]:
            yield f"at tokens_per_param {row['tokens_per_param']:g}", endpoint_text(row)
        if len(rows) > MAX_BUDGETS:
            yield "not listed", count(len(rows) - MAX_BUDGETS, "smaller token budget")
        if self.unpaired:
            yield "runs without a partner", str(self.unpaired)

    def rows(self) -> Rows:
        """Return one row per token budget: mean difference, and difference at the largest FLOPs."""
        return [
            {
                "tokens_per_param": f"{row['tokens_per_param']:g}",
                "pairs": str(int(row["pairs"])),
                "pairs with lower loss for deep": str(int(row["deep_lower"])),
                "mean difference [95% CI]": format_interval(
                    row["mean"], row["mean_low"], row["mean_high"]
                ),
                "SD over pairs": format_number(row["sd"]),
                "difference at the largest FLOPs [95% CI]": format_interval(
                    row["largest"], row["largest_low"], row["largest_high"]
                ),
                "p (Holm)": p_text(row["largest_p_holm"]),
            }
            for row in self.summary.to_dict(orient="records")
        ]

    def pair_rows(self) -> Rows:
        """Return one row per pair of shapes with equal tokens."""
        return [
            {
                "tokens_per_param": f"{row['tokens_per_param']:g}",
                "size": f"{row['size']:,.0f}",
                "tokens": f"{row['tokens']:,.0f}",
                "FLOPs": f"{row['flops']:.3g}",
                "FLOPs mismatch": f"{row['flops_mismatch']:+.1%}",
                self.deep: f"{row['loss_nats_per_token_deep']:.4f}",
                self.wide: f"{row['loss_nats_per_token_wide']:.4f}",
                "difference": f"{row['difference']:+.4f}",
                "difference at equal FLOPs": f"{row['difference_at_equal_flops']:+.4f}",
            }
            for row in self.pairs.to_dict(orient="records")
        ]

    def to_dict(self) -> dict[str, Any]:
        """For JSON, a record a row."""
        return {
            "deep": self.deep,
            "wide": self.wide,
            "pairs_within_3_percent": self.matched,
            "unpaired_runs": self.unpaired,
            "summary": self.summary.to_dict(orient="records"),
            "pairs": self.pairs.to_dict(orient="records"),
        }


def endpoint_text(row: Mapping[str, Any]) -> str:
    """Return the difference of one token budget at its largest FLOPs, with its Holm-adjusted interval."""
    pairs = count(int(row["pairs"]), "pair")
    if not math.isfinite(row["largest_p_holm"]):
        mean = format_number(row["mean"], signed=True)
        return f"{mean} nats/token on average over {pairs}, too few for an interval"
    value = format_interval(row["largest"], row["largest_low_holm"], row["largest_high_holm"])
    return (
        f"{value} nats/token at {power_of_ten(row['largest_flops'])} FLOPs "
        f"({pairs}, Holm-adjusted {format_p_value(row['largest_p_holm'])})"
    )


def paired_differences(
    table: pd.DataFrame,
    deep: str,
    wide: str,
    saved: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Contrast:
    """Pair the runs of two families by rung and tokens, seeds averaged.

    Each difference is corrected to equal FLOPs at equal tokens, since that is how a pair is mismatched.
    `saved`: nats that a model of a given `n` would save per unit of ln FLOPs per token, of a fitted
    law; without one, a common slope of ln loss is taken from the pairs, and where sizes and budgets cannot
    identify that, nothing is corrected. Both values are given.
    """
    keys = ["rung", "tokens"]
    values = {
        "size": "mean",
        "tokens_per_param": "mean",
        "flops": "mean",
        "loss_nats_per_token": "mean",
        "seed": "count",
    }
    if "n" in table:
        values["n"] = "mean"
    sides = [table[table["family"] == name].groupby(keys).agg(values) for name in (deep, wide)]
    pairs = sides[0].join(sides[1], lsuffix="_deep", rsuffix="_wide", how="inner").reset_index()
    members = int(table["family"].isin([deep, wide]).sum())
    unpaired = members - int(pairs["seed_deep"].sum() + pairs["seed_wide"].sum())
    for column in (
        "size",
        "tokens_per_param",
    ):  # of one rung they are equal, but for presets' own variants
        middle = pairs[[f"{column}_deep", f"{column}_wide"]].mean(axis=1)
        pairs[column] = [
            round_to_three_digits(value) if column == "tokens_per_param" else value
            for value in middle
        ]
    pairs["flops"] = np.sqrt(pairs["flops_deep"] * pairs["flops_wide"])
    pairs["flops_mismatch"] = pairs["flops_deep"] / pairs["flops_wide"] - 1
    pairs["difference"] = snap_to_zero(
        pairs["loss_nats_per_token_deep"] - pairs["loss_nats_per_token_wide"]
    )
    mean_loss = (pairs["loss_nats_per_token_deep"] + pairs["loss_nats_per_token_wide"]) / 2
    slope = (
        mean_loss * _slope_at_equal_tokens(pairs)
        if saved is None
        else -saved(pairs[["n_deep", "n_wide"]].mean(axis=1).to_numpy())
    )
    correction = slope * np.log1p(pairs["flops_mismatch"])
    pairs["difference_at_equal_flops"] = snap_to_zero(
        pairs["difference"] - correction, ITERATION_TOLERANCE
    )
    pairs = pairs.sort_values(["tokens_per_param", "flops"], ignore_index=True)
    summary = pd.DataFrame(
        [_summarize(value, rows) for value, rows in pairs.groupby("tokens_per_param")]
    )
    if len(summary):
        summary["budget"] = summary[
            "tokens_per_param"
        ]  # its older name, which scripts of users read
        p_values = summary["largest_p"].to_numpy()
        summary["largest_p_holm"] = holm(p_values)
        half = [
            _half_width(error, int(pairs) - 2, 1 - rate)
            for error, pairs, rate in zip(
                summary["largest_se"], summary["pairs"], holm_limits(p_values), strict=True
            )
        ]
        summary["largest_low_holm"] = summary["largest"] - half
        summary["largest_high_holm"] = summary["largest"] + half
    return Contrast(deep, wide, pairs, summary, unpaired)


def holm(p_values: np.ndarray) -> np.ndarray:
    """Holm's step-down adjustment; undefined p-values stay undefined and are not counted."""
    adjusted = np.full(len(p_values), math.nan)
    defined = _from_least(p_values)
    running = 0.0
    for rank, index in enumerate(defined):
        running = max(running, min(1.0, (len(defined) - rank) * float(p_values[index])))
        adjusted[index] = running
    return adjusted


def _from_least(p_values: np.ndarray) -> list[int]:
    """Indices of the defined p-values, the least first; of equal ones the first budget."""
    return [
        int(i) for i in stable_argsort(p_values, ITERATION_TOLERANCE) if not math.isnan(p_values[i])
    ]


def _slope_at_equal_tokens(pairs: pd.DataFrame) -> float:
    """d ln loss / d ln FLOPs per token at equal tokens, over all pairs, both families together."""
    log_tokens = np.log(pairs["tokens"].to_numpy(dtype=float))
    log_f = np.log(pairs["flops"].to_numpy(dtype=float)) - log_tokens
    losses = pairs["loss_nats_per_token_deep"] * pairs["loss_nats_per_token_wide"]
    if any(collinearity_refusals(log_f, log_tokens)):
        return 0.0
    design = np.column_stack([np.ones_like(log_f), log_f, log_tokens])
    return float(np.linalg.lstsq(design, np.log(losses.to_numpy()) / 2)[0][1])


def _summarize(tokens_per_param: object, rows: pd.DataFrame) -> dict[str, float | int]:
    differences = rows["difference_at_equal_flops"].to_numpy()
    log_flops = np.log(rows["flops"].to_numpy())
    k = len(differences)
    mean = snap_to_zero(differences.mean(), ITERATION_TOLERANCE)
    sd = snap_to_zero(differences.std(ddof=1), ITERATION_TOLERANCE) if k > 1 else math.nan
    half = _half_width(sd / math.sqrt(k), k - 1)
    largest, standard_error = _at_largest(log_flops, differences)
    largest_half = _half_width(standard_error, k - 2)
    return {
        "tokens_per_param": float(str(tokens_per_param)),
        "pairs": k,
        "deep_lower": int((differences < 0).sum()),
        "mean": mean,
        "sd": sd,
        "mean_low": mean - half,
        "mean_high": mean + half,
        "largest_flops": float(rows["flops"].max()),
        "largest": largest,
        "largest_se": standard_error,
        "largest_low": largest - largest_half,
        "largest_high": largest + largest_half,
        "largest_p": _two_sided_p(largest, standard_error, k - 2),
    }


def _at_largest(log_flops: np.ndarray, differences: np.ndarray) -> tuple[float, float]:
    """The regression line of the differences at the largest FLOPs, and its standard error."""
    k = len(differences)
    if k < 3 or np.ptp(log_flops) <= ROUNDING_TOLERANCE:
        return math.nan, math.nan
    line = stats.linregress(log_flops, differences)
    at = log_flops.max()
    estimate = float(line.intercept + line.slope * at)
    residual_sd = math.sqrt(
        float(((differences - line.intercept - line.slope * log_flops) ** 2).sum()) / (k - 2)
    )
    centred = log_flops - log_flops.mean()
    leverage = 1 / k + (at - log_flops.mean()) ** 2 / float((centred**2).sum())
    return snap_to_zero(estimate, ITERATION_TOLERANCE), snap_to_zero(
        residual_sd * math.sqrt(leverage), ITERATION_TOLERANCE
    )


def _half_width(
    standard_error: float, degrees_of_freedom: int, confidence: float = CONFIDENCE
) -> float:
    if degrees_of_freedom < 1 or math.isnan(confidence):
        return math.nan
    return float(stats.t.ppf((1 + confidence) / 2, degrees_of_freedom)) * standard_error


def _two_sided_p(estimate: float, standard_error: float, degrees_of_freedom: int) -> float:
    if degrees_of_freedom < 1 or math.isnan(standard_error):
        return math.nan
    if standard_error == 0:
        return 0.0 if estimate else 1.0
    return float(2 * stats.t.sf(abs(estimate) / standard_error, degrees_of_freedom))


def holm_limits(p_values: np.ndarray, level: float = 1 - CONFIDENCE) -> np.ndarray:
    """Error rate of each interval that matches Holm's steps: level / (m - rank), rank from 0."""
    defined = _from_least(p_values)
    rates = np.full(len(p_values), math.nan)
    for rank, index in enumerate(defined):
        rates[index] = level / (len(defined) - rank)
    return rates
