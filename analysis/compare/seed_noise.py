"""Noise between seeds, by family and size: is the final loss of a deep shape more random than that of a wide one?

The token budgets of a shape and seed share a trunk, so their deviations are correlated. The variance of a shape is
therefore the mean over budgets of the variance between seeds, with seeds - 1 degrees of freedom, whatever the number
of budgets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats
from scipy.special import digamma, polygamma

from analysis.block.effects import SIGNIFICANCE, Interval

LOSS = "loss_nats_per_token"


@dataclass(frozen=True)
class SeedNoise:
    """Standard deviation of the final loss between seeds of one family and size.

    Attributes:
        n: geometric mean of N.
        log_aspect: mean ln(d_model / n_layers) of the shapes; nan if unknown.
        seeds: of the shape with most seeds.
        df: degrees of freedom, the sum over shapes of seeds - 1.
        sd: in nats per token, with its 95% interval under normal noise (chi-squared).
    """

    family: str
    rung: str
    n: float
    log_aspect: float
    seeds: int
    df: int
    sd: float
    interval: Interval


@dataclass(frozen=True)
class SeedNoiseRatio:
    """Ratio of the seed standard deviations of two aspect ratios, from a regression over all families.

    Attributes:
        ratio: sd(deep) / sd(wide), with its 95% interval.
        p: two-sided, of the hypothesis that the ratio is 1.
        cells: families and sizes that the regression uses.
    """

    ratio: float
    interval: Interval
    p: float
    cells: int


def seed_noise(table: pd.DataFrame, n_column: str = "n_flop") -> list[SeedNoise]:
    """Return the noise between seeds of every family and size with at least two seeds, by size, then by family.

    Args:
        table: runs with the columns family, rung, shape, tokens, seed, loss_nats_per_token, `n_column`, and
            aspect_ratio if it is known.
    """
    found = []
    for (rung, family), runs in table.groupby(["rung", "family"], sort=True):
        shapes = [
            shape for _, each in runs.groupby("shape", sort=True) if len(shape := _repeated(each))
        ]
        if not shapes:
            continue
        freedoms = [int(shape["seed"].nunique()) - 1 for shape in shapes]
        df = sum(freedoms)
        variance = float(np.average([_variance(shape) for shape in shapes], weights=freedoms))
        low, high = stats.chi2.ppf([SIGNIFICANCE / 2, 1 - SIGNIFICANCE / 2], df)
        found.append(
            SeedNoise(
                family=str(family),
                rung=str(rung),
                n=math.exp(float(np.log(runs[n_column].astype(float)).mean())),
                log_aspect=_log_aspect(shapes),
                seeds=max(freedoms) + 1,
                df=df,
                sd=math.sqrt(variance),
                interval=(math.sqrt(df * variance / high), math.sqrt(df * variance / low)),
            )
        )
    return sorted(found, key=lambda one: (one.n, one.family))


def seed_noise_ratio(
    noise: Sequence[SeedNoise], log_aspect_deep: float, log_aspect_wide: float
) -> SeedNoiseRatio | None:
    """Return the ratio of the seed standard deviations at two aspect ratios; None if it cannot be estimated.

    Weighted regression of ln(variance) on ln(aspect ratio) and one constant per size (Bartlett and Kendall 1946,
    "The statistical analysis of variance-heterogeneity"): ln of a variance with v degrees of freedom has the known
    bias digamma(v/2) - ln(v/2) and the known variance trigamma(v/2) under normal noise.
    """
    usable = [one for one in noise if one.sd > 0 and math.isfinite(one.log_aspect)]
    rungs = sorted({one.rung for one in usable})
    if len(usable) <= len(rungs) + 1:
        return None
    half = np.array([one.df / 2 for one in usable])
    y = np.array([2 * math.log(one.sd) for one in usable]) - digamma(half) + np.log(half)
    weight = 1 / np.sqrt(polygamma(1, half))
    constants = np.array([[float(one.rung == rung) for rung in rungs] for one in usable])
    x = np.column_stack([[one.log_aspect for one in usable], constants]) * weight[:, None]
    if np.linalg.matrix_rank(x) < x.shape[1]:
        return None
    covariance = np.linalg.inv(x.T @ x)
    slope, se = float((covariance @ x.T @ (y * weight))[0]), math.sqrt(covariance[0, 0])
    distance = (log_aspect_deep - log_aspect_wide) / 2  # half: of ln(variance), for ln(sd)
    half_width = float(stats.norm.ppf(1 - SIGNIFICANCE / 2)) * se * abs(distance)
    centre = slope * distance
    return SeedNoiseRatio(
        ratio=math.exp(centre),
        interval=(math.exp(centre - half_width), math.exp(centre + half_width)),
        p=float(2 * stats.norm.sf(abs(slope) / se)),
        cells=len(usable),
    )


def _repeated(shape: pd.DataFrame) -> pd.DataFrame:
    """Return the runs at token budgets with several seeds."""
    return shape[shape.groupby("tokens")["seed"].transform("nunique") > 1]


def _variance(shape: pd.DataFrame) -> float:
    """Return the mean over budgets of the variance between seeds."""
    return float(shape.groupby("tokens")[LOSS].var(ddof=1).mean())


def _log_aspect(shapes: Sequence[pd.DataFrame]) -> float:
    if "aspect_ratio" not in shapes[0]:
        return math.nan
    return float(np.mean([np.log(shape["aspect_ratio"].astype(float)).mean() for shape in shapes]))
