"""What a design can find, before compute is spent: standard errors, detectable effects, power.

The joint law is linearised around a base law. With y the noise of ln L,

    y = J theta + (tau / L) u_shape + (sigma / L) e,

J = d ln L / d theta. The generalised least-squares covariance gives the standard error of
d-alpha = alpha_deep - alpha_wide; the whole verdict (jackknife and permutation) is simulated in
`analysis.design.simulate`. Needs numpy and scipy.special alone: the planner imports it.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import special

from analysis.design.identifiability import (
    comparison_refusals,
    design_warnings,
    exponent_refusals,
    labels,
)
from analysis.design.linear import Design, Law, LinearDesign
from analysis.design.simulate import LinearVerdict
from slm.rounding import ITERATION_TOLERANCE, ROUNDING_TOLERANCE, exceeds, first_argmin

NODES, WEIGHTS = np.polynomial.legendre.leggauss(100)
TAIL = 1e-15  # of the residual variance, left out of a quadrature
MAX_CONDITION = 1e7  # of the column-scaled J
MAX_PLAUSIBLE_LOSS = 11.0  # nats; a uniform guess among 50k words costs 10.8
PRIOR_SD = 1.0  # of each parameter, so that a run can be ranked where the design identifies nothing


@dataclass(frozen=True)
class DesignPower:
    """What the design can find. Numbers are None where a refusal forbids them.

    `se_exponent`, `mde80_exponent`: of alpha_deep - alpha_wide (loss in nats against N_flop), `df` of
    its t. `power_t` and `power_verdict`: probability of a significant difference by true difference,
    for the t test and for jackknife and permutation together. `se_difference`, `mde80_difference`:
    nats per token, of the matched-FLOP difference at the largest FLOPs of the tokens_per_param
    `difference_tokens_per_param`, whose regression has `difference_pairs` pairs. `sigma`: the runs' median
    seed standard deviation, `tau`: random effect of a shape, both in nats.
    """

    deep: str
    wide: str
    refusals: tuple[str, ...]
    warnings: tuple[str, ...]
    runs: int
    shapes: int
    pairs: int
    sigma: float
    tau: float
    se_exponent: float | None = None
    mde80_exponent: float | None = None
    df: int | None = None
    power_t: dict[float, float] | None = None
    power_verdict: dict[float, float] | None = None
    se_difference: float | None = None
    mde80_difference: float | None = None
    difference_pairs: int | None = None
    difference_tokens_per_param: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class NextRun:
    """A run worth adding: its place in the candidates, its cost, and SE of d-alpha once it is in."""

    index: int
    family: str
    rung: Hashable
    shape: str
    tokens: float
    seed: int
    flops: float
    se_exponent: float
    gain_per_flop: float


def design_power(
    design: Design,
    deep: str,
    wide: str,
    *,
    law: Law = Law(),
    sigma: float | None = None,
    tau: float = 0.01,
    effects: Sequence[float] = (0.01, 0.02, 0.05),
    simulations: int = 400,
    seed: int = 0,
) -> DesignPower:
    """Power of a design to tell deep from wide, or why it has none.

    Args:
        law: the base law around which everything is linearised.
        sigma: seed standard deviation of the final loss in nats; None: by the law's loss (`seed_noise`).
        tau: random effect of a shape in nats: its runs share it (untuned learning rate, rounding).
        effects: true differences of alpha for which the power is wanted.
        simulations: simulated studies for the power of the whole verdict; 0 leaves it out.

    Families besides the two inform E, B and beta, and have a level and an exponent of their own.

    Raises:
        DataError: if a number of the design or of the noise is not above 0.
    """
    linear = LinearDesign(design, (deep, wide), law, sigma, tau)
    named = labels(design.family)
    comparison = comparison_refusals(named, design.n_flop, deep, wide)
    refusals = comparison + exponent_refusals(named, design.rung, design.n_flop, design.tokens)
    if not refusals and exceeds(linear.condition, MAX_CONDITION):
        refusals.append(
            f"the exponents are collinear with the other parameters (condition {linear.condition:.1g})"
        )
    known: dict[str, Any] = {}
    if not comparison:
        known |= _difference_power(design, linear, deep, wide)
    if not refusals:
        known |= _exponent_power(linear, effects, simulations, seed)
    return DesignPower(
        deep=deep,
        wide=wide,
        refusals=tuple(refusals),
        warnings=tuple(_warnings(design, linear)),
        runs=len(design),
        shapes=len(set(zip(design.family, design.rung, strict=True))),
        pairs=len(linear.common_rungs),
        sigma=float(np.median(linear.sigma)),
        tau=tau,
        **known,
    )


def _warnings(design: Design, linear: LinearDesign) -> Iterator[str]:
    two = linear.is_deep | linear.is_wide
    if two.any():
        n, tokens, seeds = (np.asarray(c)[two] for c in (design.n_flop, design.tokens, design.seed))
        yield from design_warnings(labels(design.family)[two], linear.rung[two], n, tokens, seeds)
    if linear.loss.max() > MAX_PLAUSIBLE_LOSS:
        yield (
            f"the base law predicts up to {linear.loss.max():.1f} nats for these runs: they lie far "
            "outside of the range it was fitted on, so its power is a guess; pass a law of your own"
        )


def most_valuable_next(
    design: Design,
    candidates: Design,
    deep: str,
    wide: str,
    *,
    law: Law = Law(),
    sigma: float | None = None,
    tau: float = 0.01,
    count: int = 5,
) -> list[NextRun]:
    """The candidates that lower SE^2 of d-alpha most per FLOP, greedily, each given those before it; of
    equally good ones the first.

    Adding a run changes the information by a rank-one term: of a run in a shape that has others, only
    what they do not predict is new. A weak prior (sd 1 on every parameter) ranks the candidates even
    where the design alone identifies nothing.
    """
    size = len(design)
    joined = Design(
        **{key: [*getattr(design, key), *getattr(candidates, key)] for key in vars(design)}
    )
    linear = LinearDesign(joined, (deep, wide), law, sigma, tau)
    have, left = list(range(size)), list(range(size, len(joined)))
    chosen: list[NextRun] = []
    covariance = np.linalg.inv(
        linear.information(np.array(have)) + np.eye(linear.jacobian.shape[1]) / PRIOR_SD**2
    )
    while left and len(chosen) < count:
        news = [linear.innovation(run, have) for run in left]
        drops = [
            float((linear.contrast @ covariance @ j) ** 2 / (v + j @ covariance @ j))
            for j, v in news
        ]
        gains = [drop / joined.flops[run] for drop, run in zip(drops, left, strict=True)]
        best = first_argmin([-gain for gain in gains], ITERATION_TOLERANCE)
        run, (j, variance) = left.pop(best), news[best]
        step = covariance @ j
        covariance = covariance - np.outer(step, step) / (variance + j @ step)
        have.append(run)
        chosen.append(
            NextRun(
                index=run - size, family=joined.family[run], rung=joined.rung[run], shape=joined.shape[run],
                tokens=joined.tokens[run], seed=joined.seed[run], flops=joined.flops[run],
                se_exponent=math.sqrt(linear.contrast @ covariance @ linear.contrast),
                gain_per_flop=gains[best],
            )
        )  # fmt: skip
    return chosen


def _exponent_power(
    linear: LinearDesign, effects: Sequence[float], simulations: int, seed: int
) -> dict[str, Any]:
    covariance = np.linalg.inv(linear.information(np.arange(len(linear.loss))))
    error = math.sqrt(linear.contrast @ covariance @ linear.contrast)
    df = linear.degrees_of_freedom
    known: dict[str, Any] = {"se_exponent": error, "df": df}
    if df < 1:
        return known
    known["mde80_exponent"] = float(special.stdtrit(df, 0.975) + special.stdtrit(df, 0.8)) * error
    known["power_t"] = {effect: t_power(effect / error, df) for effect in effects}
    if simulations:
        verdict = LinearVerdict(linear, np.random.default_rng(seed))
        noise = np.linalg.cholesky(linear.noise) @ np.random.default_rng([seed, 1]).normal(
            size=(len(linear.loss), simulations)
        )
        known["power_verdict"] = {effect: verdict.power(effect, noise) for effect in effects}
    return known


def t_power(noncentrality: float, df: float, level: float = 0.05) -> float:
    """P(|T'| > t) of a two-sided t test, by quadrature over the residual standard deviation.

    scipy's noncentral t is undefined at some noncentralities above 9, next to others where it is not.
    """
    critical = float(special.stdtrit(df, 1 - level / 2))
    low, high = np.sqrt(special.chdtri(df, [1 - TAIL, TAIL]) / df)
    ratio = (low + high + (high - low) * NODES) / 2  # the residual sd over the true one
    log_density = (df - 1) * np.log(ratio) - df * ratio**2 / 2
    density = WEIGHTS * np.exp(log_density - log_density.max())
    size, limit = abs(noncentrality), critical * ratio
    rejected = special.ndtr(size - limit) + special.ndtr(-size - limit)
    return float(density @ rejected / density.sum())


def _difference_power(design: Design, linear: LinearDesign, deep: str, wide: str) -> dict[str, Any]:
    """The paired difference at the largest FLOPs, at the tokens_per_param with most pairs (the largest of
    them): Delta_j regressed on ln C over k pairs; Var Delta_j from seeds and from both shapes.
    """
    rows: dict[float, list[tuple[float, float]]] = {}
    flops = np.log(np.asarray(design.flops, float))
    for tokens_per_param in sorted(set(linear.tokens_per_param)):
        for rung in linear.common_rungs:
            cell = (linear.tokens_per_param == tokens_per_param) & (linear.rung == rung)
            sides = [cell & linear.is_deep, cell & linear.is_wide]
            if all(side.any() for side in sides):
                variance = sum(
                    linear.tau**2 + (linear.sigma[s] ** 2).mean() / s.sum() for s in sides
                )
                rows.setdefault(tokens_per_param, []).append(
                    (flops[sides[0] | sides[1]].mean(), variance)
                )
    if not rows:
        return {}
    tokens_per_param = max(rows, key=lambda key: (len(rows[key]), key))
    x, variance = np.array(rows[tokens_per_param]).T
    known = {"difference_pairs": len(x), "difference_tokens_per_param": float(tokens_per_param)}
    df = len(x) - 2
    if df < 1 or np.ptp(x) <= ROUNDING_TOLERANCE:
        return known
    centred = x - x.mean()
    weights = 1 / len(x) + (x.max() - x.mean()) * centred / (centred @ centred)
    error = math.sqrt(weights**2 @ variance)
    quantiles = float(special.stdtrit(df, 0.975) + special.stdtrit(df, 0.8))
    return known | {"se_difference": error, "mde80_difference": quantiles * error}
