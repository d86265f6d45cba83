"""Compute the power of a design before any compute is spent, with the block model and its verdict as implemented.

The precision of level and exponent difference is that of `analysis.block.planned`. Power is the share of simulated
studies, estimates ~ N(truth, s^2 C) and s^2 ~ chi2(df) / df, that are significant in the closed test: t(df) of the
estimate and F(2, df) of the pair, both at 5%. Imports only numpy and scipy.special, because planning must start fast.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from analysis.arrays import Floats
from analysis.block.blocks import Blocks, arrange
from analysis.block.effects import EQUIVALENT, SIGNIFICANCE
from analysis.block.model import exponent_reasons, level_reasons
from analysis.block.planned import PlannedEffects, planned_effects
from analysis.block.pooled_law import PooledLaw
from analysis.design.identifiability import (
    comparison_refusals,
    design_warnings,
    exponent_refusals,
    labels,
)
from analysis.design.linear import Design, Law, check_noise, joint_law_error, seed_noise
from analysis.formatting import count, format_number
from slm.summary import Rows, Summarized

EFFECTS = (0.01, 0.02, 0.05)  # differences of alpha
LOG_KAPPAS = (0.02, 0.05, 0.10)  # ln of the compute multiplier
POWER = 0.80
DRAWS, SEED = 20_000, 0
BISECTIONS = 14
MAX_PLAUSIBLE_LOSS = 11.0  # nats; a uniform guess over 50k tokens has 10.8


@dataclass(frozen=True, repr=False)
class DesignPower(Summarized):
    """Power of a design. A refused number is None.

    Attributes:
        deep: name of the deep family.
        wide: name of the wide family.
        refusals: reasons why the exponent difference is refused, those of the level included.
        level_refusals: reasons why the level is refused, and with it everything.
        warnings: weaknesses of the design.
        runs, shapes, rungs: numbers that count; a run alone in its block does not.
        sigma: median seed standard deviation of the runs in nats.
        tau: standard deviation of the random effect of a shape in nats.
        trunk_sigma: the same of a seed of a shape, shared by its budgets.
        df: degrees of freedom of the t tests.
        n, tokens: N and tokens where the level is given, N* of the largest common size.
        se_level, mde80_level: standard error and MDE (80% power) of L_deep - L_wide at N* in nats per token.
        se_log_kappa, mde80_log_kappa: the same of ln(compute multiplier).
        se_exponent, mde80_exponent: the same of alpha_deep - alpha_wide (loss in nats against N_flop).
        power_kappa: power of the verdict on the level, by true ln(compute multiplier), if the exponents are equal.
        power_exponent: power of the verdict on the exponent, by true difference of alpha, if the families have equal
            losses in the middle of the sizes.
        equivalence_margin: smallest margin of the compute multiplier with which `no_difference` has 80% power
            between equal families; None if no margin has.
        se_joint_law: standard error of alpha_deep - alpha_wide in the joint law M2; None if it is singular.
    """

    deep: str
    wide: str
    refusals: tuple[str, ...]
    level_refusals: tuple[str, ...]
    warnings: tuple[str, ...]
    runs: int
    shapes: int
    rungs: int
    sigma: float
    tau: float
    trunk_sigma: float = 0.0
    df: int | None = None
    n: float | None = None
    tokens: float | None = None
    se_level: float | None = None
    mde80_level: float | None = None
    se_log_kappa: float | None = None
    mde80_log_kappa: float | None = None
    se_exponent: float | None = None
    mde80_exponent: float | None = None
    power_kappa: dict[float, float] | None = None
    power_exponent: dict[float, float] | None = None
    equivalence_margin: float | None = None
    se_joint_law: float | None = None

    def title(self) -> str:
        counts = (
            f"{count(self.runs, 'run')}, {count(self.shapes, 'shape')}, {count(self.rungs, 'size')}"
        )
        status = "REFUSED" if self.refusals else "OK"
        return f"power of a design, {self.deep} against {self.wide}, {counts}: exponents {status}"

    def details(self) -> Iterator[tuple[str, str]]:
        for row in self.rows():
            name = row.pop("estimate")
            yield name, ", ".join(f"{key} {text}" for key, text in row.items() if text)
        if self.df is not None:
            yield "degrees of freedom", str(self.df)
        if self.power_exponent is not None:
            yield "no_difference", self.equivalence_text
        yield "seed standard deviation", f"{self.sigma:.4f} nats"
        yield "random effect of a shape", f"{self.tau:.4f} nats"
        if self.trunk_sigma:
            yield "random effect of a seed of a shape", f"{self.trunk_sigma:.4f} nats"
        for refusal in self.refusals:
            yield "reason", refusal
        for warning in self.warnings:
            yield "note", warning

    @property
    def equivalence_text(self) -> str:
        if self.equivalence_margin is None:
            return (
                "even if the families are equal, this design cannot show it for any margin of the compute multiplier "
                "with 80% power"
            )
        return (
            "if the families are equal, this design shows it with 80% power for a margin of the compute multiplier of "
            f"at least {self.equivalence_margin:.2f}"
        )

    def rows(self) -> Rows:
        """Return standard error, MDE and power, one row per estimate."""
        rows = []
        if self.se_level is not None:
            rows.append(
                _row(
                    "loss difference at the largest size, nats/token",
                    self.se_level,
                    self.mde80_level,
                )
            )
            rows.append(
                _row(
                    "ln(compute multiplier)",
                    self.se_log_kappa,
                    self.mde80_log_kappa,
                    self.power_kappa,
                )
            )
        if self.se_exponent is not None:
            rows.append(
                _row(
                    "exponent difference",
                    self.se_exponent,
                    self.mde80_exponent,
                    self.power_exponent,
                )
            )
        if self.se_joint_law is not None:
            rows.append(_row("exponent difference, joint law (secondary)", self.se_joint_law))
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Return a dictionary for JSON."""
        return asdict(self)


def _row(
    estimate: str,
    error: float | None,
    mde: float | None = None,
    power: dict[float, float] | None = None,
) -> dict[str, str]:
    powers = ", ".join(f"{share:.0%} at {effect:g}" for effect, share in (power or {}).items())
    return {
        "estimate": estimate,
        "SE": format_number(error),
        "MDE (80% power)": "" if mde is None else format_number(mde),
        "power of the verdict": powers,
    }


def design_power(
    design: Design,
    deep: str,
    wide: str,
    *,
    law: Law = Law(),
    sigma: float | None = None,
    tau: float = 0.01,
    trunk_sigma: float = 0.0,
    effects: Sequence[float] = EFFECTS,
    log_kappas: Sequence[float] = LOG_KAPPAS,
) -> DesignPower:
    """Compute the power of a design to detect a difference between two families; refuse unidentified numbers.

    Args:
        design: finished or planned runs.
        deep: name of the deep family.
        wide: name of the wide family.
        law: law common to all shapes.
        sigma: seed standard deviation of the final loss in nats; None: depends on the loss (`seed_noise`).
        tau: random effect of a shape in nats, shared by all its runs (untuned learning rate, rounding).
        trunk_sigma: random effect of a seed of a shape in nats, shared by its budgets (initial weights, order of data).
        effects: true differences of alpha for which to compute the power.
        log_kappas: true logarithms of the compute multiplier for which to compute the power.

    Other families contribute to the effects of aspect ratios and to their curvature.

    Raises:
        DataError: if a number of the design or sigma is not above 0, or tau or trunk_sigma is negative.
    """
    check_noise(sigma, tau, trunk_sigma)
    blocks = arrange(design.columns(), deep=deep, wide=wide)
    pooled = PooledLaw(**vars(law))
    loss, noise = _loss_and_noise(design, law, sigma)
    level_refusals = [*_comparison_refusals(design, blocks), *level_reasons(blocks, pooled)][:1]
    if level_refusals:  # of the whole design: blocks may be empty
        every = exponent_refusals(design.family, design.rung, design.n_flop, design.tokens)
        refusals = [*level_refusals, *every]
    else:
        refusals = exponent_reasons(blocks)
    result: dict[str, Any] = {}
    if not level_refusals:
        planned = planned_effects(blocks, pooled, noise[blocks.row], tau, trunk_sigma)
        x = math.log(planned.n) - float(blocks.log_n_rung.mean())
        nats = nats_per_log_kappa(pooled, planned.n, planned.tokens)
        drift = -x * float(pooled.size_term(planned.n))
        result = _power(planned, drift, nats, (log_kappas, effects))
        result["se_joint_law"] = joint_law_error(
            design, (deep, wide), law, noise, tau, trunk_sigma=trunk_sigma
        )
    return DesignPower(
        deep=deep,
        wide=wide,
        refusals=tuple(refusals),
        level_refusals=tuple(level_refusals),
        warnings=tuple(_warnings(design, blocks, loss)),
        runs=len(blocks),
        shapes=len(blocks.families),
        rungs=len(blocks.rung_names),
        sigma=float(np.median(noise)),
        tau=tau,
        trunk_sigma=trunk_sigma,
        **result,
    )


def design_error(
    design: Design,
    deep: str,
    wide: str,
    *,
    law: Law,
    sigma: float | None,
    tau: float,
    trunk_sigma: float,
) -> tuple[float, ...]:
    """Return the standard errors of the level in nats and, if identified, of alpha_deep - alpha_wide."""
    blocks = arrange(design.columns(), deep=deep, wide=wide)
    noise = _loss_and_noise(design, law, sigma)[1]
    pooled = PooledLaw(**vars(law))
    planned = planned_effects(blocks, pooled, noise[blocks.row], tau, trunk_sigma)
    return tuple(float(error) for error in np.sqrt(np.diag(planned.covariance)))


def _loss_and_noise(design: Design, law: Law, sigma: float | None) -> tuple[Floats, Floats]:
    """Return the predicted loss and the seed standard deviation of each run in nats."""
    loss = law.terms(np.asarray(design.n_flop, float), np.asarray(design.tokens, float)).sum(axis=1)
    return loss, seed_noise(loss) if sigma is None else np.full(len(loss), sigma)


def _comparison_refusals(design: Design, blocks: Blocks) -> list[str]:
    """Return why the families cannot be compared; sizes that only one of them has do not matter in blocks."""
    if len(blocks) and blocks.is_matched and blocks.common_rungs:
        return []
    found = comparison_refusals(design.family, design.n_flop, blocks.deep, blocks.wide)
    return found or [
        f"{blocks.deep} and {blocks.wide} share no size and token budget; plan both at the same sizes"
    ]


def _warnings(design: Design, blocks: Blocks, loss: Floats) -> Iterator[str]:
    rows = np.isin(labels(design.family), [blocks.deep, blocks.wide])
    if rows.any():
        kept = {name: labels(column)[rows] for name, column in design.columns().items()}
        aspects = kept.get("aspect_ratio")
        yield from design_warnings(
            kept["family"],
            kept["rung"],
            kept["n_flop"],
            kept["tokens"],
            kept["seed"],
            aspect_ratio=None if blocks.is_curved or blocks.is_labelled else aspects,
        )
    if loss.max() > MAX_PLAUSIBLE_LOSS:
        yield (
            f"the base law predicts losses up to {loss.max():.1f} nats: these runs are far outside the range "
            "it was fitted on, so the power is unreliable; pass a law fitted to similar runs (plan.law)"
        )


def _power(
    planned: PlannedEffects,
    drift: float,
    nats: float,
    truths: tuple[Sequence[float], Sequence[float]],
) -> dict[str, Any]:
    """Return the numbers of `DesignPower` that are not refused.

    `drift`: level in nats per d_alpha if the families are equal in the middle of the sizes. `nats`: level per ln kappa.
    `truths`: the ln kappa and differences of alpha for which to compute the power.
    """
    covariance, df = planned.covariance, planned.df
    errors, scale = _draw(covariance, df)
    deviations = np.sqrt(np.diag(covariance))
    directions = np.array([[nats, 0.0], [drift, 1.0]])[:, : len(deviations)]

    def power(index: int, truth: float) -> float:
        found = _significant(errors + truth * directions[index], scale, covariance, df)
        return float(found[:, index].mean())

    def mde(index: int, error: float) -> float:
        """Return the effect with 80% power, by bisection."""
        low, high = 0.0, 100 * error
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            low, high = (middle, high) if power(index, middle) < POWER else (low, middle)
        return high

    kappa_error = float(deviations[0]) / nats
    kappa_mde = mde(0, kappa_error)
    result: dict[str, Any] = {
        "df": df,
        "n": planned.n,
        "tokens": planned.tokens,
        "se_level": float(deviations[0]),
        "mde80_level": kappa_mde * nats,
        "se_log_kappa": kappa_error,
        "mde80_log_kappa": kappa_mde,
        "power_kappa": {truth: power(0, truth) for truth in truths[0]},
    }
    if planned.has_exponent:
        error = float(deviations[1])
        units = np.array([nats, 1.0])
        result |= {"se_exponent": error, "mde80_exponent": mde(1, error)}
        result["power_exponent"] = {truth: power(1, truth) for truth in truths[1]}
        result["equivalence_margin"] = _equivalence_margin(
            np.abs(errors) / units, np.sqrt(scale)[:, None] * deviations / units, df
        )
    return result


def nats_per_log_kappa(law: PooledLaw, n: float, tokens: float) -> float:
    """Return |dL / d ln kappa| along fixed D/N: a multiplier of 1 + x saves x times this loss."""
    slope = law.alpha * law.size_term(n) + law.beta * law.data_term(tokens)
    return float(slope) / 2


def _draw(covariance: Floats, df: int) -> tuple[Floats, Floats]:
    """Return errors of the estimates, (draws, estimates), and s^2 over the true variance, (draws,)."""
    generator = np.random.default_rng(SEED)
    errors = generator.normal(size=(DRAWS, len(covariance))) @ np.linalg.cholesky(covariance).T
    return errors, generator.chisquare(df, DRAWS) / df


def _significant(values: Floats, scale: Floats, covariance: Floats, df: int) -> NDArray[np.bool_]:
    """Return whether each estimate is significant in the closed test, (draws, estimates)."""
    t = np.abs(values) / np.sqrt(scale[:, None] * np.diag(covariance))
    found = t > special.stdtrit(df, 1 - SIGNIFICANCE / 2)
    if len(covariance) > 1:
        squares = (values @ np.linalg.inv(covariance) * values).sum(axis=1)
        found &= (squares / 2 / scale > special.fdtri(2, df, 1 - SIGNIFICANCE))[:, None]
    return np.asarray(found)


def _equivalence_margin(sizes: Floats, errors: Floats, df: int) -> float | None:
    """Return the margin of kappa that two one-sided tests show with 80% power, from |ln kappa| and |d_alpha|."""
    ends = (
        sizes + special.stdtrit(df, 1 - SIGNIFICANCE) * errors
    )  # of the 90% intervals, (draws, 2)
    margins = np.where(ends[:, 1] < EQUIVALENT, ends[:, 0], np.inf)
    needed = float(np.quantile(margins, POWER, method="higher"))
    return math.exp(needed) if math.isfinite(needed) else None
