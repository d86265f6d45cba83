"""Compute the power of a design before any compute is spent: standard errors, MDE (80% power), power.

The joint law M2 is linearised around a base law, with J = d ln L / d theta:

    ln L = J theta + (tau / L) u_shape + (sigma / L) e.

The generalised least-squares covariance gives the standard error of d-alpha = alpha_deep - alpha_wide. The power
of the whole verdict (jackknife and permutation test) is simulated in `analysis.design.simulate`. Imports only
numpy and scipy.special, because planning must start fast.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
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
from analysis.formatting import count as count_of
from analysis.formatting import format_number, power_of_ten, short_count
from slm.rounding import ITERATION_TOLERANCE, ROUNDING_TOLERANCE, exceeds, first_argmin
from slm.summary import Rows, Summarized

LOSS_DIFFERENCE = "loss difference at the largest FLOPs, nats/token"
QUADRATURE_POINTS = 100
TAIL = 1e-15  # probability of the residual variance on each side that the quadrature omits
MAX_CONDITION = 1e7  # of the column-scaled J
MAX_PLAUSIBLE_LOSS = 11.0  # nats; a uniform guess over 50k tokens has 10.8
PRIOR_SD = 1.0  # of each parameter; ranks runs even if the design identifies no parameter


@dataclass(frozen=True, repr=False)
class DesignPower(Summarized):
    """Power of a design. A refused number is None.

    Attributes:
        deep: name of the deep family.
        wide: name of the wide family.
        refusals: reasons why a number is None.
        warnings: weaknesses of the design.
        runs: number of runs.
        shapes: number of shapes.
        pairs: number of rungs that both families have.
        sigma: median seed standard deviation of the runs in nats.
        tau: standard deviation of the random effect of a shape in nats.
        se_exponent: standard error of alpha_deep - alpha_wide (loss in nats against N_flop).
        mde80_exponent: difference of alpha that the t test detects with 80% power.
        df: degrees of freedom of the t test.
        power_t: power of the t test by true difference of alpha.
        power_verdict: probability that jackknife and permutation test are both significant, by true difference.
        se_difference: standard error of the loss difference at equal FLOPs at the largest FLOPs, nats per token.
        mde80_difference: loss difference that is detected with 80% power, nats per token.
        difference_pairs: number of pairs in the regression for the loss difference.
        difference_tokens_per_param: token budget of these pairs.
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

    def title(self) -> str:
        runs, shapes = count_of(self.runs, "run"), count_of(self.shapes, "shape")
        status = "REFUSED" if self.refusals else "OK"
        return (
            f"power of a design, {self.deep} against {self.wide}, {runs}, {shapes}, "
            f"{count_of(self.pairs, 'pair')}: exponents {status}"
        )

    def details(self) -> Iterator[tuple[str, str]]:
        for name, error, mde in (
            ("exponent difference", self.se_exponent, self.mde80_exponent),
            (LOSS_DIFFERENCE, self.se_difference, self.mde80_difference),
        ):
            if error is not None:
                yield name, f"SE {format_number(error)}, MDE (80% power) {format_number(mde)}"
        for name, powers in (("t test", self.power_t), ("full verdict", self.power_verdict)):
            if powers:
                shares = ", ".join(f"{share:.0%} at {effect:g}" for effect, share in powers.items())
                yield f"power of the {name}", shares
        yield "seed standard deviation", f"{self.sigma:.4f} nats"
        yield "random effect of a shape", f"{self.tau:.4f} nats"
        for refusal in self.refusals:
            yield "reason", refusal
        for warning in self.warnings:
            yield "note", warning

    def rows(self) -> Rows:
        """Return standard error, MDE and power, one row per estimate."""
        rows = []
        if self.power_t is not None:
            row = _power_row("exponent difference, t test", self.se_exponent, self.mde80_exponent)
            rows.append(row | _power_cells(self.power_t))
        if self.power_verdict is not None:
            row = _power_row("exponent difference, full verdict (simulated)")
            rows.append(row | _power_cells(self.power_verdict))
        if self.se_difference is not None:
            row = _power_row(LOSS_DIFFERENCE, self.se_difference, self.mde80_difference)
            rows.append(row | dict.fromkeys(_power_cells(self.power_t or {}), ""))
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Return a dictionary for JSON."""
        return asdict(self)


def _power_row(
    estimate: str, error: float | None = None, mde: float | None = None
) -> dict[str, str]:
    texts = ["" if error is None else format_number(value) for value in (error, mde)]
    return {"estimate": estimate, "SE": texts[0], "MDE (80% power)": texts[1]}


def _power_cells(powers: Mapping[float, float]) -> dict[str, str]:
    return {f"power at {effect:g}": f"{power:.0%}" for effect, power in powers.items()}


@dataclass(frozen=True, repr=False)
class NextRun(Summarized):
    """A run to add: its index in the candidates, its cost in FLOPs, and the standard error of d-alpha with it.

    `gain_per_flop`: decrease of the squared standard error per FLOP.
    """

    index: int
    family: str
    rung: Hashable
    shape: str
    tokens: float
    seed: int
    flops: float
    se_exponent: float
    gain_per_flop: float

    def title(self) -> str:
        return (
            f"run to add, {self.family} {self.shape}, {short_count(self.tokens)} tokens, seed {self.seed}: "
            f"{power_of_ten(self.flops)} FLOPs, SE of the exponent difference {self.se_exponent:.5f}"
        )


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
    """Compute the power of a design to detect a difference between two families; refuse unidentified numbers.

    Args:
        design: finished or planned runs.
        deep: name of the deep family.
        wide: name of the wide family.
        law: base law at which the joint law is linearised.
        sigma: seed standard deviation of the final loss in nats; None: depends on the loss (`seed_noise`).
        tau: random effect of a shape in nats, shared by all its runs (untuned learning rate, rounding).
        effects: true differences of alpha for which to compute the power.
        simulations: number of simulated studies for the power of the whole verdict; 0: not computed.
        seed: seed of the simulations.

    Other families contribute to E, B and beta, and have their own A and alpha.

    Raises:
        DataError: if a number of the design or sigma is not above 0, or tau is negative.
    """
    linear = LinearDesign(design, (deep, wide), law, sigma, tau)
    family = labels(design.family)
    comparison = comparison_refusals(family, design.n_flop, deep, wide)
    refusals = comparison + exponent_refusals(family, design.rung, design.n_flop, design.tokens)
    if not refusals and exceeds(linear.condition, MAX_CONDITION):
        refusals.append(
            f"the exponents are collinear with other parameters (condition number {linear.condition:.1g}, limit "
            f"{MAX_CONDITION:.0g}); add sizes and token budgets"
        )
    result: dict[str, Any] = {}
    if not comparison:
        result |= _difference_power(design, linear, deep, wide)
    if not refusals:
        result |= _exponent_power(linear, effects, simulations, seed)
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
        **result,
    )


def _warnings(design: Design, linear: LinearDesign) -> Iterator[str]:
    rows = linear.is_deep | linear.is_wide
    if rows.any():
        columns = (design.n_flop, design.tokens, design.seed)
        n, tokens, seeds = (np.asarray(column)[rows] for column in columns)
        yield from design_warnings(labels(design.family)[rows], linear.rung[rows], n, tokens, seeds)
    if linear.loss.max() > MAX_PLAUSIBLE_LOSS:
        yield (
            f"the base law predicts losses up to {linear.loss.max():.1f} nats: these runs are far outside the range "
            "it was fitted on, so the power is unreliable; pass a law fitted to similar runs (plan.law)"
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
    """Select greedily the candidates with the largest decrease of SE(d-alpha)^2 per FLOP, in order.

    Each is ranked given the design and the candidates selected before it; ties go to the first candidate.
    Adding a run is a rank-one update of the information matrix, conditional on the other runs of its shape.
    A weak prior (sd 1 on every parameter) makes the ranking defined even if the design alone is singular.
    """
    size = len(design)
    joined = Design(
        **{key: [*getattr(design, key), *getattr(candidates, key)] for key in vars(design)}
    )
    linear = LinearDesign(joined, (deep, wide), law, sigma, tau)
    present, remaining = list(range(size)), list(range(size, len(joined)))
    selected: list[NextRun] = []
    covariance = np.linalg.inv(
        linear.information(np.array(present)) + np.eye(linear.jacobian.shape[1]) / PRIOR_SD**2
    )
    while remaining and len(selected) < count:
        innovations = [linear.innovation(run, present) for run in remaining]
        drops = [
            float((linear.contrast @ covariance @ j) ** 2 / (v + j @ covariance @ j))
            for j, v in innovations
        ]
        gains = [drop / joined.flops[run] for drop, run in zip(drops, remaining, strict=True)]
        best = first_argmin([-gain for gain in gains], ITERATION_TOLERANCE)
        run, (j, variance) = remaining.pop(best), innovations[best]
        step = covariance @ j
        covariance = covariance - np.outer(step, step) / (variance + j @ step)
        present.append(run)
        selected.append(
            NextRun(
                index=run - size,
                family=joined.family[run],
                rung=joined.rung[run],
                shape=joined.shape[run],
                tokens=joined.tokens[run],
                seed=joined.seed[run],
                flops=joined.flops[run],
                se_exponent=math.sqrt(linear.contrast @ covariance @ linear.contrast),
                gain_per_flop=gains[best],
            )
        )
    return selected


def _exponent_power(
    linear: LinearDesign, effects: Sequence[float], simulations: int, seed: int
) -> dict[str, Any]:
    covariance = np.linalg.inv(linear.information(np.arange(len(linear.loss))))
    error = math.sqrt(linear.contrast @ covariance @ linear.contrast)
    df = linear.degrees_of_freedom
    result: dict[str, Any] = {"se_exponent": error, "df": df}
    if df < 1:
        return result
    result["mde80_exponent"] = float(special.stdtrit(df, 0.975) + special.stdtrit(df, 0.8)) * error
    result["power_t"] = {effect: t_power(effect / error, df) for effect in effects}
    if simulations:
        verdict = LinearVerdict(linear, np.random.default_rng(seed))
        noise = np.linalg.cholesky(linear.noise) @ np.random.default_rng([seed, 1]).normal(
            size=(len(linear.loss), simulations)
        )
        result["power_verdict"] = {effect: verdict.power(effect, noise) for effect in effects}
    return result


def t_power(noncentrality: float, df: float, level: float = 0.05) -> float:
    """Return the power P(|T'| > t) of a two-sided t test, by quadrature over the residual standard deviation.

    scipy's noncentral t is nan for some noncentralities above 9 and finite for their neighbours.
    """
    nodes, weights = np.polynomial.legendre.leggauss(QUADRATURE_POINTS)
    critical = float(special.stdtrit(df, 1 - level / 2))
    low, high = np.sqrt(special.chdtri(df, [1 - TAIL, TAIL]) / df)
    ratio = (low + high + (high - low) * nodes) / 2  # estimated over true standard deviation
    log_density = (df - 1) * np.log(ratio) - df * ratio**2 / 2
    density = weights * np.exp(log_density - log_density.max())
    shift, limit = abs(noncentrality), critical * ratio
    rejected = special.ndtr(shift - limit) + special.ndtr(-shift - limit)
    return float(density @ rejected / density.sum())


def _difference_power(design: Design, linear: LinearDesign, deep: str, wide: str) -> dict[str, Any]:
    """Return the SE and MDE of the loss difference at the largest FLOPs, in nats per token.

    The differences of k pairs are regressed on ln C, at the tokens_per_param with the most pairs (ties: the
    largest). The variance of a difference is that of the seeds and of both shapes' random effects.
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
    result = {"difference_pairs": len(x), "difference_tokens_per_param": float(tokens_per_param)}
    df = len(x) - 2
    if df < 1 or np.ptp(x) <= ROUNDING_TOLERANCE:
        return result
    centred = x - x.mean()
    weights = 1 / len(x) + (x.max() - x.mean()) * centred / (centred @ centred)
    error = math.sqrt(weights**2 @ variance)
    quantiles = float(special.stdtrit(df, 0.975) + special.stdtrit(df, 0.8))
    return result | {"se_difference": error, "mde80_difference": quantiles * error}
