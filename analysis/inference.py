"""Deep minus wide at matched FLOPs: the differences, their spread, and nothing beyond the design."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

CONFIDENCE = 0.95
MAX_FLOPS_MISMATCH = 0.03


@dataclass(frozen=True)
class Contrast:
    """Loss of one family minus that of another, in nats per token, over matched pairs.

    `pairs` has a row per (size, token budget); `summary` a row per token budget with the mean
    difference, its sd over pairs and 95% t intervals: `mean_*` for a difference that is the same at
    all sizes (k - 1 degrees of freedom), `largest_*` for the regression on ln FLOPs, read at the
    largest pair (k - 2). The unit of replication is the pair of shapes, never the seed alone.
    """

    deep: str
    wide: str
    pairs: pd.DataFrame
    summary: pd.DataFrame

    @property
    def matched(self) -> bool:
        return bool((self.pairs["flops_mismatch"].abs() <= MAX_FLOPS_MISMATCH).all())


def paired_differences(table: pd.DataFrame, deep: str, wide: str) -> Contrast:
    """Pair the runs of two families by size and token budget, seeds averaged.

    Each difference is corrected to equal FLOPs with the slope of ln loss in ln FLOPs along the sizes
    of its budget. That slope is not quite the one along which a pair is mismatched (same tokens,
    other f), but for pairs within 3% the error is a fraction of a small correction; both values are
    given.
    """
    keys = ["size", "budget", "tokens"]
    values = {"flops": "mean", "loss_nats_per_token": "mean", "seed": "count"}
    sides = [table[table["family"] == name].groupby(keys).agg(values) for name in (deep, wide)]
    pairs = sides[0].join(sides[1], lsuffix="_deep", rsuffix="_wide", how="inner").reset_index()
    pairs["flops"] = np.sqrt(pairs["flops_deep"] * pairs["flops_wide"])
    pairs["flops_mismatch"] = pairs["flops_deep"] / pairs["flops_wide"] - 1
    pairs["difference"] = pairs["loss_nats_per_token_deep"] - pairs["loss_nats_per_token_wide"]
    slope = pairs.groupby("budget")[pairs.columns.tolist()].apply(_log_slope)
    mean_loss = (pairs["loss_nats_per_token_deep"] + pairs["loss_nats_per_token_wide"]) / 2
    correction = mean_loss * pairs["budget"].map(slope) * np.log1p(pairs["flops_mismatch"])
    pairs["difference_at_equal_flops"] = pairs["difference"] - correction
    pairs = pairs.sort_values(["budget", "flops"], ignore_index=True)
    summary = pd.DataFrame([_summarize(budget, rows) for budget, rows in pairs.groupby("budget")])
    return Contrast(deep, wide, pairs, summary)


def _log_slope(rows: pd.DataFrame) -> float:
    """d ln loss / d ln FLOPs along the sizes of one token budget, both families together."""
    if len(rows) < 2:
        return 0.0
    losses = rows["loss_nats_per_token_deep"] * rows["loss_nats_per_token_wide"]
    return float(stats.linregress(np.log(rows["flops"]), np.log(losses) / 2).slope)


def _summarize(budget: object, rows: pd.DataFrame) -> dict[str, float | int]:
    differences = rows["difference_at_equal_flops"].to_numpy()
    log_flops = np.log(rows["flops"].to_numpy())
    k = len(differences)
    mean = float(differences.mean())
    sd = float(differences.std(ddof=1)) if k > 1 else math.nan
    half = _half_width(sd / math.sqrt(k), k - 1)
    at_largest, largest_half = _at_largest(log_flops, differences)
    return {
        "budget": float(str(budget)),
        "pairs": k,
        "deep_lower": int((differences < 0).sum()),
        "mean": mean,
        "sd": sd,
        "mean_low": mean - half,
        "mean_high": mean + half,
        "largest_flops": float(rows["flops"].max()),
        "largest": at_largest,
        "largest_low": at_largest - largest_half,
        "largest_high": at_largest + largest_half,
    }


def _at_largest(log_flops: np.ndarray, differences: np.ndarray) -> tuple[float, float]:
    """The regression line of the differences at the largest FLOPs, and its half interval."""
    k = len(differences)
    if k < 3:
        return math.nan, math.nan
    line = stats.linregress(log_flops, differences)
    at = log_flops.max()
    estimate = float(line.intercept + line.slope * at)
    residual_sd = math.sqrt(
        float(((differences - line.intercept - line.slope * log_flops) ** 2).sum()) / (k - 2)
    )
    centred = log_flops - log_flops.mean()
    leverage = 1 / k + (at - log_flops.mean()) ** 2 / float((centred**2).sum())
    return estimate, _half_width(residual_sd * math.sqrt(leverage), k - 2)


def _half_width(standard_error: float, degrees_of_freedom: int) -> float:
    if degrees_of_freedom < 1:
        return math.nan
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, degrees_of_freedom)) * standard_error
