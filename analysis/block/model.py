"""The block model: losses within blocks of equal FLOPs and tokens, with a random effect of each shape.

    L - s(N_run) + s(N_r) = mu[block] + s(N_r) q + b[shape] + c[trunk] + e,   q = h1 u + h2 u^2 - gamma u x

with u = centred ln(d_model / n_layers), x = ln N_r centred over the rungs, s(N) = A N^-alpha of the pooled law, and
residuals in nats. Where runs share no blocks, the gradient of the pooled law replaces mu. The exponent of a shape is
alpha + gamma u. `fit_block_model` returns the estimates; see `analysis.block.effects` for what they mean.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from analysis.arrays import Floats, Ints
from analysis.block.blocks import Blocks
from analysis.block.mixed_model import MixedModel, best_trunk_ratio
from analysis.block.pooled_law import PooledLaw, assumed_law, delete_runs, fit_pooled_law
from analysis.design.identifiability import exponent_refusals, too_few_sizes
from analysis.formatting import count
from slm.rounding import ROUNDING_TOLERANCE, exceeds

MIN_DF = 2
LARGE_Q = 0.1  # relative difference of the size term beyond which e^q is not 1 + q
MAX_Q = (
    1.0  # beyond it the second-order correction exceeds what it corrects, and refitting diverges
)
REFITS = 3
SINGLE_BUDGETS = 0.5  # share of the rungs that may have lost all but one token budget


@dataclass(frozen=True)
class Columns:
    """Columns of X for a set of runs: s times (u, [u^2], -u x), and [u] if E is free."""

    scale: Floats  # s of each run in nats
    x: Floats
    x_mean: float
    has_curvature: bool
    has_gamma: bool
    has_free_e: bool

    def design(self, u: Floats) -> Floats:
        """Return X, shape (runs, p)."""
        return self.contrast(self.scale, self.x, u, u**2, u)

    def contrast(self, scale: Any, x: Any, linear: Any, square: Any, free: Any) -> Floats:
        columns = [scale * linear]
        if self.has_curvature:
            columns.append(scale * square)
        if self.has_gamma:
            columns.append(-scale * linear * x)
        if self.has_free_e:
            columns.append(free * np.ones_like(scale))
        return np.stack(columns, axis=-1)


@dataclass(frozen=True)
class BlockFit:
    """The block model fitted to losses.

    Attributes:
        blocks, law, columns, model: the runs, the pooled law, X and the mixed model.
        y: left side of the model, shape (runs,), after the correction for large q.
        coef, covariance: of h1, [h2], [gamma], [E]; see `names`. The covariance has no plug-in term.
        ratio: tau^2 / sigma^2; `sigma` and `tau` in nats (tau is 0 if its estimated square is negative).
        trunk_ratio: sigma_c^2 / sigma^2 of trunks; 0 unless shapes have several seeds.
        largest_q: largest relative difference of the size term.
    """

    blocks: Blocks
    law: PooledLaw
    columns: Columns
    model: MixedModel
    y: Floats
    coef: Floats
    covariance: Floats
    ratio: float
    sigma: float
    trunk_ratio: float
    largest_q: float

    @property
    def identifies_exponents(self) -> bool:
        """Whether gamma is a difference of exponents; if not, it is the trend of the level only."""
        return not exponent_reasons(self.blocks, self.law)

    @property
    def names(self) -> list[str]:
        flags = (self.columns.has_curvature, self.columns.has_gamma, self.columns.has_free_e)
        return ["h1", *(n for n, has in zip(("h2", "gamma", "e"), flags, strict=True) if has)]

    @property
    def df(self) -> int:
        return self.model.df

    @property
    def tau(self) -> float:
        return self.sigma * float(np.sqrt(max(self.ratio, 0.0)))

    def value(self, name: str) -> float:
        """Return a coefficient; 0 if the model does not have it."""
        return float(self.coef[self.names.index(name)]) if name in self.names else 0.0

    def residuals(self) -> tuple[Floats, float]:
        """Return the residuals with the effects of shapes in nats, and their degrees of freedom per run."""
        nuisance = nuisance_of(self.blocks, self.law)
        rest = self.y - self.columns.design(self.blocks.u) @ self.coef
        rest = rest - nuisance @ np.linalg.lstsq(nuisance, rest)[0]
        free = len(rest) - np.linalg.matrix_rank(nuisance) - len(self.coef)
        return rest, float(free) / len(rest)


def fit_runs(
    blocks: Blocks,
    *,
    free_e: bool = False,
    noise_exponent: float = 0.0,
    law: PooledLaw | None = None,
) -> BlockFit:
    """Fit the block model.

    `noise_exponent` p: all standard deviations are proportional to N^p. `free_e` adds the column of a difference
    in E. `law`: the pooled law if it is known.
    """
    law = law or pooled_law(blocks)
    columns = columns_of(blocks, law, free_e=free_e)
    weights = np.exp(-noise_exponent * columns.x) if noise_exponent else None
    model, trunk_ratio = _mixed_model(blocks, law, columns, weights)
    y = left_side(blocks, law, columns)
    correction: Floats | float = 0.0
    for refit in range(REFITS + 1):
        fit = model.fit(y - correction)
        q = relative_difference(columns, blocks.u, fit.coef[0])
        largest = float(np.abs(q).max())
        is_second_order = exceeds(largest, LARGE_Q) and not exceeds(largest, MAX_Q)
        if refit == REFITS or law.is_assumed or not is_second_order:
            break
        correction = columns.scale * (np.exp(q) - 1 - q)
    return BlockFit(
        blocks=blocks,
        law=law,
        columns=columns,
        model=model,
        y=y - correction,
        coef=fit.coef[0],
        covariance=fit.covariance[0],
        ratio=float(fit.ratio[0]),
        sigma=float(fit.sigma[0]),
        trunk_ratio=trunk_ratio,
        largest_q=largest,
    )


def _mixed_model(
    blocks: Blocks, law: PooledLaw, columns: Columns, weights: Floats | None
) -> tuple[MixedModel, float]:
    nuisance, x = nuisance_of(blocks, law), columns.design(blocks.u)
    trunk, trunk_ratio = None, 0.0
    if has_trunks(blocks):
        trunk = blocks.trunk
        y = left_side(blocks, law, columns)
        trunk_ratio = best_trunk_ratio(nuisance, x, (blocks.shape, trunk), y, weights=weights)
    model = MixedModel(
        nuisance,
        x,
        blocks.shape,
        trunk,
        trunk_ratio=trunk_ratio,
        weights=weights,
        allow_negative=blocks.is_complete,
    )
    return model, trunk_ratio


def has_trunks(blocks: Blocks) -> bool:
    """Return whether effects of trunks can be told from those of shapes and of runs."""
    trunks = blocks.trunk.max() + 1
    return bool(blocks.shape.max() + 1 < trunks < len(blocks))


def exponent_reasons(blocks: Blocks, law: PooledLaw | None = None) -> list[str]:
    """Return why the exponent difference cannot be estimated, from the design and if given the law; empty if it can."""
    reasons = _law_reasons(blocks)
    for name, side in zip((blocks.deep, blocks.wide), blocks.sides, strict=True):
        if not reasons:  # with fewer sizes gamma would come from the other families
            found = too_few_sizes(len(set(_sizes(blocks)[side])))
            reasons = [f"{name}: {reason}" for reason in found]
    if law is not None and law.at_bound:
        reasons.append(
            f"the runs do not identify the law common to all shapes: {law.at_bound} at a bound of the search; run "
            "larger sizes, or more of them"
        )
    return reasons


def _law_reasons(blocks: Blocks) -> list[str]:
    """Return why the design does not identify the law common to all shapes; empty if it does."""
    everything = ["all"] * len(blocks)
    return exponent_refusals(
        everything,
        _sizes(blocks).tolist(),
        blocks.n,
        blocks.tokens,
        single_budget_share=SINGLE_BUDGETS,
    )


def _sizes(blocks: Blocks) -> Ints:
    """Return the size of each run: its rung, or its shape if the runs share no blocks."""
    return blocks.rung if blocks.is_matched else blocks.shape


def level_reasons(blocks: Blocks, law: PooledLaw | None = None) -> list[str]:
    """Return why no difference can be estimated at all; empty if it can."""
    if not len(blocks) or (blocks.is_matched and not blocks.common_rungs):
        return ["no rung and token count is common to both families; run the same ones in both"]
    law = law or PooledLaw(1.0, 1.0, 1.0, 0.3, 0.3)
    columns = columns_of(blocks, law)
    x = columns.design(blocks.u)
    model = MixedModel(nuisance_of(blocks, law), x, blocks.shape)
    if model.df < MIN_DF:
        shapes = count(len(blocks.families), "shape")
        left = count(max(model.df, 0), "degree of freedom", "degrees of freedom")
        return [
            f"{shapes} leave {left}, at least {MIN_DF} degrees of freedom are needed; run more sizes or aspect ratios"
        ]
    return []


def pooled_law(blocks: Blocks) -> PooledLaw:
    """Fit the law common to all shapes, or assume its exponent where the design does not identify it."""
    if _law_reasons(blocks):
        return assumed_law(blocks)
    return fit_pooled_law(blocks)


def columns_of(
    blocks: Blocks, law: PooledLaw, *, has_gamma: bool = True, free_e: bool = False
) -> Columns:
    """Return the columns of X for the runs."""
    if blocks.is_matched:
        log_n = blocks.log_n_rung
        mean = float(log_n.mean())
        log_n = log_n[blocks.rung]
    else:
        log_n = np.log(blocks.n)
        mean = float(log_n.mean())
    scale = law.size_term(np.exp(log_n))
    has_gamma = has_gamma and bool(np.ptp(log_n) > ROUNDING_TOLERANCE)
    return Columns(scale, log_n - mean, mean, blocks.is_curved, has_gamma, free_e)


def nuisance_of(blocks: Blocks, law: PooledLaw) -> Floats:
    """Return the fixed effects without interest: blocks, or the gradient of the pooled law in its parameters."""
    if blocks.is_matched:
        return (blocks.block[:, None] == np.arange(blocks.block.max() + 1)).astype(float)
    s, t = law.size_term(blocks.n), law.data_term(blocks.tokens)
    x, z = np.log(blocks.n), np.log(blocks.tokens)
    return np.column_stack([np.ones(len(s)), s, t, -(x - x.mean()) * s, -(z - z.mean()) * t])


def left_side(blocks: Blocks, law: PooledLaw, columns: Columns) -> Floats:
    """Return the losses corrected to the N of their rung, or as residuals of the pooled law at u = 0."""
    if blocks.is_matched:
        return blocks.loss - law.size_term(blocks.n) + columns.scale
    return blocks.loss - law.loss(blocks.n, blocks.tokens)


def relative_difference(columns: Columns, u: Floats, coef: Floats) -> Floats:
    """Return q of the runs, the relative difference of their size term."""
    unit = replace(columns, scale=np.ones_like(columns.scale), has_free_e=False)
    design = unit.design(u)
    return design @ coef[: design.shape[1]]


def without_rungs(fit: BlockFit) -> list[PooledLaw]:
    """Return the pooled law without each rung (each shape if unmatched) in turn."""
    blocks = fit.blocks
    groups = blocks.rung if blocks.is_matched else blocks.shape
    return [delete_runs(fit.law, blocks, groups != group) for group in range(int(groups.max()) + 1)]
