"""Designs that separate width from depth: precision of the depth exponent, and power for families of aspect ratios."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import special

from analysis.arrays import Floats
from analysis.design.linear import MAX_CONDITION
from analysis.examples.published.width_depth_inference import Noise
from analysis.examples.published.width_depth_law import (
    LossLaw,
    Runs,
    joint_law,
    minimise,
    width_depth_law,
)
from analysis.planning.power import Design, DesignPower, design_power
from slm.rounding import exceeds

PARAMETERS_PER_LAYER = 12  # N = 12 width^2 depth, without embeddings


def crossed_runs(
    sizes: Sequence[float], aspects: Sequence[float], budgets: Sequence[float]
) -> Runs:
    """Return planned runs: each N with each aspect ratio width / depth and D / N; their losses are 1."""
    cells = np.array(list(itertools.product(sizes, aspects, budgets)))
    n, aspect, budget = cells.T
    width = np.cbrt(n * aspect / PARAMETERS_PER_LAYER)
    return Runs(width, width / aspect, n, n * budget, np.ones(len(n)))


def moved_centre(
    theta: Floats, runs: Runs, planned: Runs, terms: Mapping[int, tuple[str, int]]
) -> Floats:
    """Return parameters at the centre of the planned runs, from those at the centre of `runs`.

    `terms`: index of the logarithm of a term -> column of `Runs` that it is a power of, and index of the exponent.
    """
    moved = theta.copy()
    for term, (column, exponent) in terms.items():
        shift = np.log(getattr(planned, column)).mean() - np.log(getattr(runs, column)).mean()
        moved[term] -= theta[exponent] * shift
    return moved


def planned_error(law: LossLaw, theta: Floats, planned: Runs, name: str, noise: Noise) -> float:
    """Return the standard error of a parameter in planned runs, by generalised least squares; noise is in nats.

    It is infinite if the Jacobian is singular, as with one aspect ratio.
    """
    if exceeds(law.condition(theta), MAX_CONDITION):
        return math.inf
    predicted, slope = law.predict(theta)
    norms = np.linalg.norm(slope, axis=0)
    scaled = slope / norms
    covariance = np.linalg.inv(scaled.T @ _precision(np.exp(predicted), planned, noise) @ scaled)
    place = law.names.index(name)
    return math.sqrt(float(covariance[place, place])) / float(norms[place])


def smallest_difference(error: float, df: int) -> float:
    """Return the difference that a t test at 5% finds with 80% power: (t_.975 + t_.80) standard errors."""
    return float(special.stdtrit(df, 0.975) + special.stdtrit(df, 0.80)) * error


def separation(truth: Floats, planned: Runs, noise: Noise) -> float:
    """Return sqrt(r' V^-1 r), r the residuals of the additive law fitted to noise-free ln L of another law.

    Above about 3 the runs tell the two laws apart. V is the covariance of the noise, given in nats.
    """
    law = width_depth_law(replace(planned, loss=np.exp(truth)))
    residual = law.residuals(minimise(law, law.starts(10)).best)
    return math.sqrt(float(residual @ _precision(np.exp(truth), planned, noise) @ residual))


def _precision(loss: Floats, planned: Runs, noise: Noise) -> Floats:
    """Return V^-1 of ln L, with standard deviations of runs and shapes in nats."""
    same = planned.shape[:, None] == planned.shape[None, :]
    covariance = np.diag((noise.sigma / loss) ** 2) + noise.tau**2 / np.outer(loss, loss) * same
    return np.asarray(np.linalg.inv(covariance))


def aspect_power(
    sizes: Sequence[float], aspects: Sequence[float], budgets: Sequence[float], noise: Noise
) -> DesignPower:
    """Compute the power to tell the family with the smallest aspect ratio from that with the largest."""
    cells = list(itertools.product(sizes, aspects, budgets))
    names = [f"aspect {aspect:g}" for _, aspect, _ in cells]
    design = Design(
        family=names,
        rung=[n for n, _, _ in cells],
        shape=[f"{name} {n:g}" for name, (n, _, _) in zip(names, cells, strict=True)],
        n_flop=[n for n, _, _ in cells],
        tokens=[n * budget for n, _, budget in cells],
        seed=[0] * len(cells),
        flops=[6 * n * n * budget for n, _, budget in cells],
        tokens_per_param=[budget for _, _, budget in cells],
        aspect_ratio=[aspect for _, aspect, _ in cells],
    )
    deep, wide = f"aspect {min(aspects):g}", f"aspect {max(aspects):g}"
    return design_power(design, deep, wide, sigma=noise.sigma, tau=noise.tau)


@dataclass(frozen=True)
class Truths:
    """Parameters of the additive and of the joint law, at the centre of the runs that they were fitted to."""

    runs: Runs
    additive: Floats
    joint: Floats

    def planned_row(
        self, name: str, planned: Runs, noise: Noise, power: DesignPower | None
    ) -> dict[str, str]:
        """Return precision and power of planned runs as a row of a table; noise is in nats."""
        additive, joint = width_depth_law(planned), joint_law(planned)
        moved = moved_centre(
            self.additive, self.runs, planned, {1: ("width", 4), 2: ("depth", 5), 3: ("tokens", 6)}
        )
        at = moved_centre(self.joint, self.runs, planned, {1: ("size", 3), 2: ("tokens", 4)})
        error = planned_error(additive, moved, planned, "b", noise)
        mde = smallest_difference(error, len(planned.shapes) - len(additive.names))
        score = separation(joint.predict(at)[0], planned, noise)
        return {
            "design": name,
            "runs / shapes": f"{len(planned)} / {len(planned.shapes)}",
            "FLOPs": f"{(6 * planned.size * planned.tokens).sum():.1e}",
            "corr(ln width, ln depth)": f"{np.corrcoef(np.log(planned.shapes).T)[0, 1]:+.2f}",
            "SE of b": f"{error:.3f}" if math.isfinite(error) else "not identified",
            "MDE of b": f"{mde:.2f}" if math.isfinite(mde) else "not identified",
            "separation": f"{score:.1f}",
            "MDE of the loss difference, nats": ""
            if power is None or power.mde80_level is None
            else f"{power.mde80_level:.3f}",
            "MDE of the exponent difference": ""
            if power is None or power.mde80_exponent is None
            else f"{power.mde80_exponent:.3f}",
        }


def best_aspect(theta: Floats, runs: Runs, n: float) -> float:
    """Return width / depth that minimises the additive law at N = 12 width^2 depth: a c_m / width^a = 2 b c_l / depth^b."""
    a, b = float(theta[4]), float(theta[5])
    log_cm = theta[1] + a * np.log(runs.width).mean()
    log_cl = theta[2] + b * np.log(runs.depth).mean()
    volume = math.log(n / PARAMETERS_PER_LAYER)
    log_width = (math.log(a / (2 * b)) + log_cm - log_cl + b * volume) / (a + 2 * b)
    return math.exp(3 * float(log_width) - volume)
