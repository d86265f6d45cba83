"""Fit the block model to a table of runs or to arranged runs, and fill the fields of its `BlockResult`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.block.blocks import Blocks, arrange
from analysis.block.effects import (
    EQUIVALENT,
    SIGNIFICANCE,
    Effects,
    common_box_is_empty,
    effects_of,
    is_significant,
    optimum_trend,
    shape_optimum,
)
from analysis.block.model import MIN_DF, exponent_reasons, fit_runs, level_reasons
from analysis.compare.block_result import BlockResult
from analysis.design.identifiability import overlap_refusals
from analysis.runs.study import Columns, prepare
from slm.rounding import exceeds

# The level comes from the model with E free only if equal E is clearly wrong. A pre-test at 5% would cost coverage: .92
# instead of .95 in simulated studies with equal E.
CLEAR = 0.01
# Beyond this, the losses hardly depend on compute and kappa is not identified.
LARGEST_LOG_KAPPA = math.log(1000)
MIN_KAPPA_RUNGS = 2
SAME_N = 0.001  # relative; N that differ by less are one definition
CURVE_POINTS = 25


def fit_block_model(
    table: pd.DataFrame,
    *,
    deep: str,
    wide: str,
    n: str = "n_flop",
    noise_exponent: float = 0.0,
) -> BlockResult:
    """Fit the block model to a table of runs, and return its estimates for two families.

    Args:
        table: one row per run with the columns family, shape, tokens, loss_nats_per_token, `n`, and if known flops,
            rung, seed and aspect_ratio.
        deep: name of the deep family.
        wide: name of the wide family; other families contribute if aspect ratios are known.
        n: column with N. The level is at equal FLOPs under every definition.
        noise_exponent: p, if standard deviations are proportional to N^p.

    Raises:
        DataError: if a column is missing or has invalid values, or a family does not exist.
    """
    known = {
        field: name
        for field, name in (
            ("flops", "flops"),
            ("rung", "rung"),
            ("seed", "seed"),
            ("aspect", "aspect_ratio"),
        )
        if name in table
    }
    study = prepare(table, Columns(n=n, **known), deep, wide)
    blocks = arrange(study.table, deep=study.deep, wide=study.wide, n="n")
    return result_of(blocks, n_name=n, noise_exponent=noise_exponent)


def result_of(blocks: Blocks, *, n_name: str, noise_exponent: float = 0.0) -> BlockResult:
    """Fit the block model to arranged runs."""
    head: dict[str, Any] = {
        "deep": blocks.deep,
        "wide": blocks.wide,
        "n_name": n_name,
        "runs": len(blocks),
        "left_out": blocks.left_out,
        "shapes": len(blocks.families),
        "rungs": len(blocks.rung_names),
        "is_matched": blocks.is_matched,
        "is_labelled": blocks.is_labelled,
    }
    reasons = level_reasons(blocks)
    if not (
        reasons or blocks.is_matched
    ):  # without blocks, a law would extrapolate one family to the sizes of the other
        per_token = blocks.flops / blocks.tokens
        deep, wide = (per_token[side] for side in blocks.sides)
        reasons = overlap_refusals(deep, wide, blocks.deep, blocks.wide)
    if reasons:
        return BlockResult(reasons=tuple(reasons), **head)
    effects = effects_of(fit_runs(blocks, noise_exponent=noise_exponent))
    if not blocks.is_matched and common_box_is_empty(effects.fit):
        empty = "the two families share no range of N, tokens and tokens / N; run the same sizes and budgets in both"
        return BlockResult(reasons=(empty,), **head)
    free = _with_free_e(effects, noise_exponent)
    at_flops = effects
    n_flop = blocks.flops / (6 * blocks.tokens)
    if exceeds(np.abs(blocks.n / n_flop - 1).max(), SAME_N):
        at_flops = effects_of(fit_runs(blocks.with_n(n_flop), noise_exponent=noise_exponent))
    free_at_flops = free if at_flops is effects else _with_free_e(at_flops, noise_exponent)
    if free_at_flops is not None and free_at_flops.free_e is not None:
        at_flops = free_at_flops if is_significant(free_at_flops.free_e.p, CLEAR) else at_flops
    return BlockResult(
        exponent_reasons=tuple(exponent_reasons(blocks, effects.fit.law)),
        is_curved=blocks.is_curved,
        is_law_assumed=effects.fit.law.is_assumed,
        largest_q=None if effects.fit.law.is_assumed else effects.fit.largest_q,
        df=effects.fit.df,
        sigma=effects.fit.sigma,
        tau=effects.fit.tau,
        trunk_sigma=math.sqrt(effects.fit.trunk_ratio) * effects.fit.sigma,
        effects=effects,
        level_effects=at_flops,
        noise=tuple(_noise(effects)),
        **_level(at_flops),
        **_exponent(effects, free),
        **_curvature(effects),
        **head,
    )


def _with_free_e(effects: Effects, noise_exponent: float) -> Effects | None:
    """Return the effects if the families may differ in E; None if the exponent is refused or too few shapes are left."""
    fit = effects.fit
    if effects.d_alpha is None or fit.df <= MIN_DF:
        return None
    return effects_of(fit_runs(fit.blocks, free_e=True, noise_exponent=noise_exponent, law=fit.law))


def _level(effects: Effects) -> dict[str, Any]:
    level, point, law = effects.level, effects.point, effects.fit.law
    ends = level.interval
    rung = effects.fit.blocks.rung == point.rung
    budgets = sorted(set(effects.fit.blocks.tokens[rung])) if effects.fit.blocks.is_matched else []
    kappa = _kappa(effects)
    n = np.geomspace(*_common_range(effects), CURVE_POINTS)
    deltas, half = effects.level_at(n)
    return {
        "level": level.value,
        "level_se": level.se,
        "level_ci": ends,
        "p_level": max(level.p, effects.p_f or 0.0),
        **kappa,
        "at_n": point.n,
        "at_tokens": point.tokens,
        "at_flops": point.flops,
        "alpha": law.alpha,
        "beta": law.beta,
        "size_nats": float(law.size_term(point.n)),
        "kappa_by_budget": tuple(_kappa_by_budget(effects, budgets) if kappa else ()),
        "curve": tuple(
            {"n": float(a), "level": float(b), "low": float(b - c), "high": float(b + c)}
            for a, b, c in zip(n, deltas, half, strict=True)
        ),
    }


def _kappa(effects: Effects) -> dict[str, Any]:
    """Return ln kappa with its interval; nothing if the runs do not identify how the loss falls with compute."""
    level, point, law = effects.level, effects.point, effects.fit.law
    ends = effects.log_kappa_interval()
    if (
        len(effects.fit.blocks.rung_names) < MIN_KAPPA_RUNGS
        or not max(map(abs, ends)) < LARGEST_LOG_KAPPA
    ):
        return {}
    slope = law.alpha * law.size_term(point.n) + law.beta * law.data_term(point.tokens)
    return {
        "ln_kappa": effects.log_kappa(level.value),
        "ln_kappa_se": 2 * level.se / float(slope),
        "ln_kappa_ci": ends,
        "ln_kappa_ci90": effects.log_kappa_interval(1 - 2 * SIGNIFICANCE),
    }


def _kappa_by_budget(effects: Effects, budgets: Sequence[float]) -> Iterator[dict[str, float]]:
    """Yield kappa of the token budgets at which the runs identify it."""
    low, high = effects.level.interval
    for tokens in budgets:
        # A higher loss of the deep family is a lower kappa.
        middle, *ends = (effects.log_kappa(one, tokens) for one in (effects.level.value, high, low))
        if max(map(abs, ends)) < LARGEST_LOG_KAPPA:
            names = ("kappa", "low", "high")
            values = dict(zip(names, map(math.exp, (middle, *ends)), strict=True))
            yield {"tokens": float(tokens), **values}


def _common_range(effects: Effects) -> tuple[float, float]:
    """Return the range of N that both families were run at."""
    blocks = effects.fit.blocks
    if blocks.is_matched:
        sizes = np.exp(blocks.log_n_rung[blocks.common_rungs])
        return float(sizes.min()), float(sizes.max())
    sides = [blocks.n[side] for side in blocks.sides]
    return max(side.min() for side in sides), min(side.max() for side in sides)


def _exponent(effects: Effects, free: Effects | None) -> dict[str, Any]:
    if effects.d_alpha is None:
        return {}
    found: dict[str, Any] = {
        "d_alpha": effects.d_alpha.value,
        "d_alpha_se": effects.d_alpha.se,
        "d_alpha_ci": effects.d_alpha.interval,
        "p_exponent": max(effects.d_alpha.p, effects.p_f or 0.0),
        "p_f": effects.p_f,
        "p_equal_exponents": effects.d_alpha.equivalence_p(EQUIVALENT),
    }
    if free is None or free.free_e is None or free.d_alpha is None:
        return found
    return found | {
        "free_e": free.free_e.value,
        "free_e_se": free.free_e.se,
        "p_free_e": free.free_e.p if math.isfinite(free.free_e.p) else None,
        "d_alpha_free_e": free.d_alpha.value,
        "d_alpha_free_e_se": free.d_alpha.se,
    }


def _curvature(effects: Effects) -> dict[str, Any]:
    """Return the curvature in ln(aspect ratio), the best aspect ratio of each rung, and its trend."""
    fit = effects.fit
    if "h2" not in fit.names:
        return {}
    index = fit.names.index("h2")
    estimate = effects.estimate(fit.coef[index], float(fit.covariance[index, index]))
    middle = effects.mean_log_aspect
    rows = []
    for rung, name in enumerate(fit.blocks.rung_names if fit.blocks.is_matched else ()):
        best = shape_optimum(fit, rung)
        ends = best.interval
        rows.append(
            {
                "rung": name,
                "n": float(np.exp(fit.blocks.log_n_rung[rung])),
                "best_aspect": None if best.u is None else math.exp(best.u + middle),
                "low": None if ends is None else math.exp(ends[0] + middle),
                "high": None if ends is None else math.exp(ends[1] + middle),
                "cost_of_two": best.cost_of_two,
            }
        )
    trend = None if effects.d_alpha is None else optimum_trend(fit)
    return {
        "curvature": estimate.value,
        "curvature_se": estimate.se,
        "p_curvature": estimate.p,
        "optima": tuple(rows),
        "optimum_trend": None if trend is None else trend[0],
        "optimum_trend_ci": None if trend is None else trend[1],
    }


def _noise(effects: Effects) -> Iterator[dict[str, Any]]:
    """Yield the residual standard deviation of each family and rung: of shapes and runs together."""
    fit = effects.fit
    residual, share = fit.residuals()
    family = fit.blocks.family
    groups: list[tuple[str, Any, Any]] = [
        ("family", name, family == name) for name in dict.fromkeys(family)
    ]
    if fit.blocks.is_matched:
        groups += [
            ("rung", name, fit.blocks.rung == code)
            for code, name in enumerate(fit.blocks.rung_names)
        ]
    for kind, name, rows in groups:
        free = share * int(rows.sum())
        sd = math.sqrt(float((residual[rows] ** 2).sum()) / free)
        yield {"by": kind, "name": str(name), "runs": int(rows.sum()), "sd": sd}
