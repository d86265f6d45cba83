"""What the runs of Gemstones identify about deep and wide shapes: the numbers of the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import special

from analysis import compare_families, fit_block_model, fit_joint
from analysis.arrays import Floats
from analysis.compare.block_result import BlockResult
from analysis.compare.families import Comparison
from analysis.design.linear import Design, Law
from analysis.examples.published.gemstones_table import families, flops_per_token
from analysis.examples.published.shape_laws import (
    AspectLaw,
    PowerTerms,
    Value,
    change_of_best,
    fit_aspect_law,
    planned_errors,
)
from analysis.fit.law import ALPHA
from analysis.fit.profile_likelihood import naive_covariance, quantile_t, residual_df
from analysis.formatting import p_text
from analysis.planning.power import DesignPower, design_power

Interval = tuple[float, float]
DEFINITIONS = ("n_flop", "params_non_embedding", "params_total")
SAME_FLOPS = 1.10  # FLOPs per token in one rung of the block model
SEED_SD = 0.005  # nats, assumed: Gemstones have one seed
# The fit of L = e^E + sum e^a x^-b that the authors' repository has for these runs, for x = width, depth, parameters
# and tokens: parameters_delta-4/approach_3_width_depth_parameters_grid_search_0_cool_end.json
PUBLISHED_EXPONENTS = (0.30146699, 0.3655461733, 0.5055007692, 0.4670177667)
PUBLISHED_LOG_COEFFICIENTS = (1.6375654653, -0.0254911443, 7.8653383939, 9.9838221358)
PUBLISHED_LOG_E = 0.4195179541
PUBLISHED_OBJECTIVE, PUBLISHED_DELTA = 9.00742e-5, 1e-4


def published_objective(runs: pd.DataFrame) -> float:
    """Return the sum of Huber losses in ln L of the authors' fit; equal to theirs if the runs are the same."""
    columns = runs[["width", "depth", "params_total", "tokens"]].to_numpy(float)
    terms = np.exp(np.array(PUBLISHED_LOG_COEFFICIENTS)) * columns ** -np.array(PUBLISHED_EXPONENTS)
    predicted = math.exp(PUBLISHED_LOG_E) + terms.sum(axis=1)
    residual = np.log(runs["loss_nats_per_token"].to_numpy(float)) - np.log(predicted)
    return float(special.huber(PUBLISHED_DELTA, residual).sum())


def compare_by_name(runs: pd.DataFrame) -> Comparison:
    """Compare the shapes named deep with those named wide; their aspect ratios are not used."""
    pair = runs[runs["family"] != "mid"].drop(columns="aspect_ratio")
    return compare_families(pair, deep="deep", wide="wide", bootstrap=0)


def compare_by_aspect(runs: pd.DataFrame, n: str = "n_flop") -> Comparison:
    """Compare by a line and a parabola in ln(width / depth) of all shapes, with a primary definition of N."""
    return compare_families(runs, n_column=n, deep="deep", wide="wide", bootstrap=0)


@dataclass(frozen=True)
class JointExponents:
    """alpha_deep and alpha_wide of the joint law M2, and their difference with two 95% intervals.

    `by_row`: if all runs were independent. `by_shape`: delete-one-shape jackknife.
    """

    n_name: str
    alphas: dict[str, float]
    difference: float
    by_row: Interval
    by_shape: Interval
    status: str


def joint_exponents(runs: pd.DataFrame, n: str) -> JointExponents:
    """Fit the joint law to the runs of the deep and the wide family."""
    pair = runs[runs["family"] != "mid"]
    columns = pair[n], pair["tokens"], pair["loss_nats_per_token"], list(pair["family"])
    rows = fit_joint(*columns)
    shapes = fit_joint(*columns, cluster=list(pair["shape"]))
    assert rows.solution is not None and shapes.solution is not None
    problem, theta = rows.solution.problem, rows.solution.theta
    contrast = np.zeros(len(theta))
    slots = dict(zip(rows.families, np.flatnonzero(problem.law.roles == ALPHA), strict=True))
    contrast[slots["deep"]], contrast[slots["wide"]] = 1, -1
    difference = float(contrast @ theta)
    naive = math.sqrt(contrast @ naive_covariance(problem, theta) @ contrast)
    found = shapes.solution.jackknife.theta @ contrast
    clustered = math.sqrt((len(found) - 1) * float(np.var(found)))
    half_row = quantile_t(residual_df(problem)) * naive
    half_shape = quantile_t(len(found) - 5) * clustered
    return JointExponents(
        n,
        {side: rows.of_family(side)["alpha"] for side in ("deep", "wide")},
        difference,
        (difference - half_row, difference + half_row),
        (difference - half_shape, difference + half_shape),
        shapes.status,
    )


def slopes_on_n_flop(runs: pd.DataFrame, n: str) -> dict[str, float]:
    """Return d ln N / d ln N_flop over the shapes of each family."""
    shapes = runs.groupby("shape", sort=False).first()
    return {
        side: float(np.polyfit(np.log(of["n_flop"]), np.log(of[n]), 1)[0])
        for side in ("deep", "wide")
        for of in [shapes[shapes["family"] == side]]
    }


def by_boundary(
    runs: pd.DataFrame, deep_below: Sequence[float], wide_from: Sequence[float]
) -> list[dict[str, str]]:
    """Return the comparison by name for other boundaries of the families."""
    rows = []
    for low in deep_below:
        for high in wide_from:
            named = runs.assign(family=families(runs["aspect_ratio"], low, high))
            block = fit_block_model(named.drop(columns="aspect_ratio"), deep="deep", wide="wide")
            counts = named.groupby("family")["shape"].nunique()
            rows.append(
                {
                    "deep below": f"{low:g}",
                    "wide from": f"{high:g}",
                    "shapes, deep and wide": f"{counts['deep']}, {counts['wide']}",
                    "exponent difference [95% CI]": block.d_alpha_interval_text,
                    "loss difference, nats [95% CI]": block.level_text,
                }
            )
    return rows


def rungs_of_equal_flops(runs: pd.DataFrame, *, ascending: bool) -> list[int]:
    """Group shapes whose FLOPs per token differ by less than 10%, beginning with the smallest or the largest.

    Both orders are valid; some shapes can join either of two groups.
    """
    sizes = sorted(set(runs["n_flop"]), reverse=not ascending)
    rung_of: dict[float, int] = {}
    first = sizes[0]
    for size in sizes:
        if max(size / first, first / size) > SAME_FLOPS:
            first = size
        rung_of[size] = sizes.index(first)
    return [rung_of[size] for size in runs["n_flop"]]


def compare_matched(runs: pd.DataFrame, n: str, *, ascending: bool) -> BlockResult:
    """Compare within groups of equal FLOPs; shapes that are alone in their group do not count."""
    named = runs.assign(rung=rungs_of_equal_flops(runs, ascending=ascending))
    return fit_block_model(named, deep="deep", wide="wide", n=n)


def at_tokens(runs: pd.DataFrame, tokens: float) -> pd.DataFrame:
    """Return the run of each shape with a number of tokens."""
    return runs[runs["tokens"] == tokens].reset_index(drop=True)


def aspect_law(points: pd.DataFrame, n: str) -> AspectLaw:
    """Fit the aspect law to one run per shape."""
    size, aspect, loss = columns_of(points, n, "aspect_ratio", "loss_nats_per_token")
    return fit_aspect_law(size, aspect, loss)


def change_with_tokens(runs: pd.DataFrame, fewer: float, more: float) -> Value:
    """Return the change of ln(best width / depth), N_flop, between two numbers of tokens that all shapes have."""
    first = at_tokens(runs, fewer)
    second = at_tokens(runs, more).set_index("shape").loc[first["shape"]]
    n, aspect, before = columns_of(first, "n_flop", "aspect_ratio", "loss_nats_per_token")
    return change_of_best(n, aspect, before, second["loss_nats_per_token"].to_numpy(float))


def compared_ratios(block: BlockResult) -> Interval:
    """Return the two aspect ratios that a comparison by aspect ratio compares, deep and wide."""
    assert block.effects is not None
    blocks = block.effects.fit.blocks
    deep, wide = np.exp(np.array([blocks.u_deep, blocks.u_wide]) + blocks.mean_log_aspect)
    return float(deep), float(wide)


def columns_of(points: pd.DataFrame, *names: str) -> list[Floats]:
    return [points[name].to_numpy(float) for name in names]


@dataclass(frozen=True)
class PlannedStudy:
    """Power of a study with shapes of equal FLOPs in every rung."""

    rungs: int
    ratios: tuple[float, ...]
    shapes: int
    flops: float
    tau: float
    power: DesignPower

    def row(self) -> dict[str, str]:
        """Return the row of a table."""
        margin = self.power.equivalence_margin
        return {
            "rungs": str(self.rungs),
            "aspect ratios": ", ".join(f"{ratio:.0f}" for ratio in self.ratios),
            "shapes": str(self.shapes),
            "FLOPs": f"{self.flops:.1e}",
            "tau, nats": f"{self.tau:g}",
            "degrees of freedom": str(self.power.df),
            "MDE of the exponent difference": f"{self.power.mde80_exponent:.3f}",
            "MDE of the compute multiplier": f"{math.exp(self.power.mde80_log_kappa or 0):.2f}",
            "shows equality within a multiplier of": "-" if margin is None else f"{margin:.2f}",
        }


def planned_study(
    rungs: int,
    ratios: Sequence[float],
    tau: float,
    law: Law,
    *,
    sizes: Interval = (6e7, 2e9),
    tokens: Sequence[float] = (1.1e10, 3.3e10, 9.9e10),
) -> PlannedStudy:
    """Compute the power of a study with the smallest and the largest ratio compared, one seed, and three budgets.

    The budgets of a shape are branches of one run, so the FLOPs count its longest budget once.
    """
    grid = [float(n) for n in np.geomspace(*sizes, rungs)]
    runs = [(n, ratio, d) for n in grid for ratio in ratios for d in tokens]
    design = Design(
        family=[f"{ratio:.0f}" for _, ratio, _ in runs],
        rung=[n for n, _, _ in runs],
        shape=[f"{ratio:.0f} {n:.3g}" for n, ratio, _ in runs],
        n_flop=[n for n, _, _ in runs],
        tokens=[d for _, _, d in runs],
        seed=[0] * len(runs),
        flops=[6 * n * d for n, _, d in runs],
        tokens_per_param=[d for _, _, d in runs],
        aspect_ratio=[ratio for _, ratio, _ in runs],
    )
    deep, wide = f"{min(ratios):.0f}", f"{max(ratios):.0f}"
    power = design_power(design, deep, wide, law=law, sigma=SEED_SD, tau=tau)
    flops = len(ratios) * sum(6 * n * max(tokens) for n in grid)
    return PlannedStudy(rungs, tuple(ratios), rungs * len(ratios), flops, tau, power)


def grid_errors(fit: PowerTerms, widths: Sequence[int], depths: Sequence[int]) -> dict[str, float]:
    """Return the standard errors of the exponents of width, depth and N_flop for all pairs of widths and depths."""
    width, depth = (one.ravel().astype(float) for one in np.meshgrid(widths, depths))
    n_flop = flops_per_token(width, depth) / 6
    return planned_errors(fit, {"width": width, "depth": depth, "n_flop": n_flop})


def definition_row(block: BlockResult) -> dict[str, str]:
    """Return the exponent difference as the row of a table."""
    p = None if block.p_exponent is None else p_text(block.p_exponent)
    return {
        "exponent difference [95% CI]": block.d_alpha_interval_text,
        "p (closed test)": p or "-",
    }
