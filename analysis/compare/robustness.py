"""How the block model's estimates react: without each shape, bootstrap, permutation, other noise, the joint law.

All but the first are reported only; a significant estimate that changes sign without a shape is `fragile`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import permutations, product
from typing import Any

import numpy as np

from analysis.arrays import Floats, Ints
from analysis.block.effects import Effects, effects_of
from analysis.block.mixed_model import MixedModel
from analysis.block.model import BlockFit, fit_runs, level_reasons, nuisance_of
from analysis.block.pooled_law import delete_runs
from analysis.formatting import format_number, format_p_value
from slm.rounding import ITERATION_TOLERANCE, opposite_signs
from slm.summary import Rows, Summarized

BOOTSTRAPS = 999
MAX_LABELINGS = 1000  # of the permutation test; a random sample of them if there are more
NOISE_EXPONENTS = (-0.35, 0.35)


@dataclass(frozen=True)
class WithoutOne:
    """Estimates without one shape (or one rung of two families, whose shapes go together)."""

    name: str
    level: float
    d_alpha: float | None


@dataclass(frozen=True, repr=False)
class Robustness(Summarized):
    """Estimates of the block model under other assumptions, and other tests of d_alpha = 0.

    Attributes:
        without: estimates without each shape in turn, refitted.
        bootstrap_p: share of parametric bootstrap studies with d_alpha = 0 whose |t| is at least the observed one.
        permutation_p: of residuals permuted between the shapes of a rung; approximate, since residuals are
            exchangeable only if the level is known. `smallest_permutation_p` is the smallest possible one.
        noise: level and d_alpha with p, if standard deviations are proportional to N to some powers.
    """

    without: tuple[WithoutOne, ...]
    bootstrap_p: float | None
    permutation_p: float | None
    smallest_permutation_p: float | None
    noise: tuple[dict[str, float | None], ...]

    def title(self) -> str:
        return f"robustness, {len(self.without)} deletions"

    def details(self) -> Iterator[tuple[str, str]]:
        for name, p in (("bootstrap", self.bootstrap_p), ("permutation", self.permutation_p)):
            yield f"{name} test of the exponent difference", "-" if p is None else format_p_value(p)

    def rows(self) -> Rows:
        """Return one row per deletion."""
        return [
            {
                "without": one.name,
                "loss difference, nats": format_number(one.level, signed=True),
                "exponent difference": format_number(one.d_alpha, signed=True),
            }
            for one in self.without
        ]


def robustness_of(
    effects: Effects,
    level_effects: Effects | None = None,
    *,
    bootstraps: int = BOOTSTRAPS,
    seed: int = 0,
) -> Robustness:
    """Run all checks on one fit. `level_effects`: the fit that the level comes from, if it is another one."""
    permuted, smallest = permutation_p(effects, seed=seed)
    return Robustness(
        without=tuple(deletions(effects, level_effects)),
        bootstrap_p=bootstrap_p(effects, bootstraps, seed=seed),
        permutation_p=permuted,
        smallest_permutation_p=smallest,
        noise=tuple(_noise_rows(effects)),
    )


def deletions(effects: Effects, level_effects: Effects | None = None) -> Iterator[WithoutOne]:
    """Yield the estimates without each shape in turn; those that leave too little are left out.

    In a rung with two shapes, one alone counts for nothing, so the whole rung goes. `level_effects`: the fit that the
    level comes from, if it is another one (free E, or another definition of N).
    """
    fit = effects.fit
    blocks = fit.blocks
    done: set[tuple[int, ...]] = set()
    first_rows = [
        int(blocks.row[blocks.shape == code].min()) for code in range(len(blocks.families))
    ]
    for code in np.argsort(first_rows):  # in the order of the table
        shape_name = blocks.shape_names[code]
        rest = blocks.select(blocks.shape != code)
        kept = tuple(sorted(rest.row.tolist()))
        if kept in done or level_reasons(rest):
            continue
        done.add(kept)
        name = shape_name
        if blocks.is_matched and len(rest.rung_names) < len(blocks.rung_names):
            rung = blocks.rung[blocks.shape == code][0]
            name = f"rung {blocks.rung_names[rung]}"
        one = _without(effects, code)
        level = (
            one
            if level_effects is None or level_effects is effects
            else _without(level_effects, code)
        )
        yield WithoutOne(
            name, level.level.value, None if one.d_alpha is None else one.d_alpha.value
        )


def _without(effects: Effects, code: int) -> Effects:
    """Return the effects of the same model without a shape."""
    fit = effects.fit
    rest = fit.blocks.select(fit.blocks.shape != code)
    law = delete_runs(fit.law, fit.blocks, np.isin(fit.blocks.row, rest.row))
    return effects_of(fit_runs(rest, law=law, free_e=fit.columns.has_free_e), plug_in=False)


def fragile_name(without: tuple[WithoutOne, ...], quantity: str, value: float) -> str | None:
    """Return the first deletion that changes the sign of an estimate (`level` or `d_alpha`), or None."""
    for one in without:
        other = getattr(one, quantity)
        if other is not None and opposite_signs(other, value):
            return one.name
    return None


def bootstrap_p(effects: Effects, replicates: int = BOOTSTRAPS, *, seed: int = 0) -> float | None:
    """Return p of d_alpha by a parametric bootstrap of the model without it; None if d_alpha is refused."""
    if effects.d_alpha is None or not replicates:
        return None
    null = _null_fit(effects.fit)
    generator = np.random.default_rng(seed)
    model = effects.fit.model
    spread = null.sigma * np.sqrt(np.maximum(1 + null.ratio * model.values, 0.0))
    noise = spread[:, None] * generator.standard_normal((len(model.values), replicates))
    fitted = model.map @ (null.columns.design(null.blocks.u) @ null.coef)
    drawn = np.abs(_statistics(effects.fit, fitted[:, None] + noise))
    observed = abs(_statistics(effects.fit, (model.map @ effects.fit.y)[:, None])[0])
    return float((1 + (drawn >= observed * (1 - ITERATION_TOLERANCE)).sum()) / (replicates + 1))


def permutation_p(effects: Effects, *, seed: int = 0) -> tuple[float | None, float | None]:
    """Return p of d_alpha by permuting whole shapes within rungs, and the smallest p possible.

    The smallest one is the share of the labelings that are as extreme as the most extreme one: two of them if every
    size has two shapes, because swapping all of them changes the sign only.
    Residuals of the model without d_alpha are permuted (Freedman and Lane 1983) between shapes with the same blocks.
    """
    if effects.d_alpha is None or not effects.fit.blocks.is_matched:
        return None, None
    null = _null_fit(effects.fit)
    rest, _ = null.residuals()
    if np.abs(rest).max() <= ITERATION_TOLERANCE * np.abs(null.y).max():
        return None, None  # without noise, the order of the residuals is that of rounding errors
    fitted = null.y - rest
    orders = _orders(effects.fit, np.random.default_rng(seed))
    if len(orders) < 2:
        return None, None
    model = effects.fit.model
    drawn = np.abs(_statistics(effects.fit, model.map @ (fitted[:, None] + rest[orders.T])))
    p, smallest = (
        float((drawn >= value * (1 - ITERATION_TOLERANCE)).mean())
        for value in (drawn[0], drawn.max())
    )
    return p, smallest


def _null_fit(fit: BlockFit) -> BlockFit:
    """Return the fit without gamma."""
    blocks = fit.blocks
    columns = replace(fit.columns, has_gamma=False, has_free_e=False)
    model = MixedModel(
        nuisance_of(blocks, fit.law),
        columns.design(blocks.u),
        blocks.shape,
        blocks.trunk if fit.trunk_ratio else None,
        trunk_ratio=fit.trunk_ratio,
        allow_negative=blocks.is_complete,
    )
    found = model.fit(fit.y)
    return replace(
        fit,
        columns=columns,
        model=model,
        coef=found.coef[0],
        covariance=found.covariance[0],
        ratio=float(found.ratio[0]),
        sigma=float(found.sigma[0]),
    )


def _statistics(fit: BlockFit, rotated: Floats) -> Floats:
    """Return t of gamma for left sides in the coordinates of the mixed model, (contrasts, samples)."""
    found = fit.model.fit_rotated(rotated)
    at = fit.names.index("gamma")
    return found.coef[:, at] / np.sqrt(found.covariance[:, at, at])


def _orders(fit: BlockFit, generator: np.random.Generator) -> Ints:
    """Return the orders of the runs under permutations of shapes, (labelings, runs); the first is the identity."""
    blocks = fit.blocks
    runs = [np.flatnonzero(blocks.shape == code) for code in range(len(blocks.families))]
    runs = [rows[np.lexsort((blocks.trunk[rows], blocks.block[rows]))] for rows in runs]
    groups: dict[tuple[int, ...], list[int]] = {}
    for code, rows in enumerate(runs):
        groups.setdefault(tuple(blocks.block[rows].tolist()), []).append(code)
    exchangeable = [members for members in groups.values() if len(members) > 1]
    total = math.prod(math.factorial(len(members)) for members in exchangeable)
    if total <= MAX_LABELINGS:
        labelings: Any = product(*(permutations(members) for members in exchangeable))
    else:
        drawn = [
            [tuple(generator.permutation(members)) for members in exchangeable]
            for _ in range(MAX_LABELINGS - 1)
        ]
        labelings = [[tuple(members) for members in exchangeable], *drawn]
    orders = []
    for labeling in labelings:
        order = np.arange(len(blocks))
        for members, replaced in zip(exchangeable, labeling, strict=True):
            for code, other in zip(members, replaced, strict=True):
                order[runs[code]] = runs[other]
        orders.append(order)
    return np.array(orders)


def _noise_rows(effects: Effects) -> Iterator[dict[str, float | None]]:
    for exponent in NOISE_EXPONENTS:
        one = effects_of(fit_runs(effects.fit.blocks, noise_exponent=exponent, law=effects.fit.law))
        yield {
            "noise_exponent": exponent,
            "level": one.level.value,
            "p_level": max(one.level.p, one.p_f or 0.0),
            "d_alpha": None if one.d_alpha is None else one.d_alpha.value,
            "p_exponent": None if one.d_alpha is None else max(one.d_alpha.p, one.p_f or 0.0),
        }
