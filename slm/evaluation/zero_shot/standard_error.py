"""Means over the examples of a task, with standard errors clustered over related examples."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np


def clustered_mean(
    values: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    weights: Sequence[float] | None = None,
) -> tuple[float, float]:
    """Return the weighted mean and its standard error; nan with fewer than two clusters.

    The examples of a cluster may be correlated; clusters are independent. With e = w (x - mean) / sum(w), the
    variance is G / (G - 1) times the sum over the G clusters of the squared sum of e (Miller, 2411.00640,
    with the usual factor for few clusters). Without clusters and weights this is the usual s / sqrt(n).
    """
    x = np.asarray(values, dtype=float)
    w = np.ones(len(x)) if weights is None else np.asarray(weights, dtype=float)
    mean = float((w * x).sum() / w.sum())
    errors = w * (x - mean) / w.sum()
    if clusters is not None:
        index = {cluster: number for number, cluster in enumerate(dict.fromkeys(clusters))}
        errors = np.bincount([index[cluster] for cluster in clusters], weights=errors)
    groups = len(errors)
    if groups < 2:
        return mean, float("nan")
    return mean, float(np.sqrt(groups / (groups - 1) * (errors**2).sum()))
