"""The primary result of a comparison: the estimates of the block model for two families, in named fields."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any

from analysis.block.effects import Effects, Interval, is_significant
from analysis.formatting import count, format_interval, format_number, format_p_value
from slm.summary import Rows, Summarized

FITS = ("effects", "level_effects")  # fields that are not for JSON


@dataclass(frozen=True, repr=False)
class BlockResult(Summarized):
    """Estimates of the block model for one definition of N. A refused number is None.

    Loss differences are L_deep - L_wide in nats per token, below 0 if deep is better; d_alpha is alpha_deep -
    alpha_wide, above 0 if the loss of deep falls faster; kappa is C_wide / C_deep at equal loss, above 1 if deep
    needs fewer FLOPs. Intervals are 95%, from t(df). p values are those of the closed test of level and d_alpha: the
    larger one of the two-sided t test and of the F(2, df) test of both together, so that errors in either of the two
    findings stay below 5% together.

    Attributes:
        reasons: why nothing could be estimated; exponent_reasons: why d_alpha is refused.
        level: Delta at `at_n`, the largest size that both families were run at.
        p_f: p of the F(2, df) test of level and d_alpha together.
        ln_kappa_ci90, p_equal_exponents: for equivalence by two one-sided tests; the second of |d_alpha| < 0.02.
        free_e: E_deep - E_wide if the families may differ in E, with d_alpha_free_e beside it. If its p is below 0.01,
            level and kappa are those of the model with E free.
        sigma, tau: standard deviations of a run and of a shape in nats; trunk_sigma: of a seed's trunk.
        runs, shapes, rungs: what the estimates use; left_out: runs without another shape in their block.
        is_matched: whether runs share blocks of equal tokens and FLOPs within 10%.
        is_labelled: whether the families do not differ in aspect ratio, so that only their names enter.
        is_curved: whether the loss may be curved in ln(aspect ratio); `curvature` is h2 (relative loss per unit^2).
        alpha, beta, size_nats: of the pooled law, and its A N^-alpha at `at_n`.
        largest_q: largest relative difference of the size term; above 0.1 the model is refitted.
        optima: best d_model / n_layers per rung (is_curved); optimum_trend: its d ln(ratio) / d ln N.
        curve: Delta against N with its 95% band.
        noise: residual standard deviation by family and by rung, in nats.
        effects, level_effects: the fit with N in this definition, and the one that the level is from.
    """

    deep: str
    wide: str
    n_name: str
    reasons: tuple[str, ...] = ()
    exponent_reasons: tuple[str, ...] = ()
    level: float | None = None
    level_se: float | None = None
    level_ci: Interval | None = None
    p_level: float | None = None
    d_alpha: float | None = None
    d_alpha_se: float | None = None
    d_alpha_ci: Interval | None = None
    p_exponent: float | None = None
    p_f: float | None = None
    ln_kappa: float | None = None
    ln_kappa_se: float | None = None
    ln_kappa_ci: Interval | None = None
    ln_kappa_ci90: Interval | None = None
    p_equal_exponents: float | None = None
    df: int | None = None
    sigma: float | None = None
    tau: float | None = None
    trunk_sigma: float | None = None
    free_e: float | None = None
    free_e_se: float | None = None
    p_free_e: float | None = None
    d_alpha_free_e: float | None = None
    d_alpha_free_e_se: float | None = None
    runs: int = 0
    shapes: int = 0
    rungs: int = 0
    left_out: int = 0
    is_matched: bool = True
    is_labelled: bool = False
    is_curved: bool = False
    is_law_assumed: bool = False
    curvature: float | None = None
    curvature_se: float | None = None
    p_curvature: float | None = None
    at_n: float | None = None
    at_tokens: float | None = None
    at_flops: float | None = None
    alpha: float | None = None
    beta: float | None = None
    size_nats: float | None = None
    largest_q: float | None = None
    optima: tuple[dict[str, Any], ...] = ()
    optimum_trend: float | None = None
    optimum_trend_ci: Interval | None = None
    curve: tuple[dict[str, float], ...] = ()
    kappa_by_budget: tuple[dict[str, float], ...] = ()
    noise: tuple[dict[str, Any], ...] = ()
    effects: Effects | None = field(default=None, compare=False)
    level_effects: Effects | None = field(default=None, compare=False)

    @property
    def refused(self) -> bool:
        return self.level is None

    @property
    def kappa(self) -> float | None:
        """Compute multiplier C_wide / C_deep at equal loss."""
        return None if self.ln_kappa is None else math.exp(self.ln_kappa)

    @property
    def kappa_ci(self) -> Interval | None:
        if self.ln_kappa_ci is None:
            return None
        return math.exp(self.ln_kappa_ci[0]), math.exp(self.ln_kappa_ci[1])

    @property
    def is_equal_e_rejected(self) -> bool:
        return is_significant(self.p_free_e)

    @property
    def has_optimum(self) -> bool:
        """Whether the largest size has a best aspect ratio with an interval inside the measured ones."""
        return bool(self.optima) and self.optima[-1]["low"] is not None

    @property
    def is_level_significant(self) -> bool:
        return is_significant(self.p_level)

    @property
    def is_exponent_significant(self) -> bool:
        return is_significant(self.p_exponent)

    @property
    def mde80(self) -> float | None:
        """A true d_alpha that the t test of this study finds with a probability of 80%."""
        return None if self.d_alpha_se is None else _mde80(self.d_alpha_se, self.df)

    @property
    def level_mde80(self) -> float | None:
        """A true level in nats that the t test of this study finds with a probability of 80%."""
        return None if self.level_se is None else _mde80(self.level_se, self.df)

    def title(self) -> str:
        if self.refused:
            return (
                f"block model, {self.deep} against {self.wide}: REFUSED ({'; '.join(self.reasons)})"
            )
        return (
            f"block model, {self.deep} against {self.wide}, {count(self.runs, 'run')}, "
            f"{count(self.shapes, 'shape')}, {count(self.rungs, 'rung')}, {self.df} degrees of freedom"
        )

    def details(self) -> Iterator[tuple[str, str]]:
        if self.refused:
            return
        yield (
            "loss difference, nats [95% CI]",
            f"{self.level_text}, {format_p_value(self.p_level or 0.0)}",
        )
        yield "compute multiplier [95% CI]", self.kappa_text
        yield f"exponent difference, N = {self.n_name} [95% CI]", self.d_alpha_text
        if self.d_alpha_free_e is not None:
            value = format_number(self.d_alpha_free_e, signed=True)
            yield (
                "exponent difference if E is free",
                f"{value} +- {format_number(self.d_alpha_free_e_se)}",
            )
        yield "sigma, tau", f"{format_number(self.sigma)}, {format_number(self.tau)} nats"
        for reason in self.exponent_reasons:
            yield "exponent refused", reason

    @property
    def level_text(self) -> str:
        return _text(self.level, self.level_ci)

    @property
    def kappa_text(self) -> str:
        if self.kappa is None:
            return "not identified"
        low, high = self.kappa_ci or (None, None)
        return format_interval(self.kappa, low, high, signed=False, digits=3)

    @property
    def d_alpha_text(self) -> str:
        p = "" if self.p_exponent is None else f", closed test: {format_p_value(self.p_exponent)}"
        return f"{self.d_alpha_interval_text}{p}"

    @property
    def d_alpha_interval_text(self) -> str:
        return "refused" if self.d_alpha is None else _text(self.d_alpha, self.d_alpha_ci)

    def row(self) -> dict[str, str]:
        """Return one row of the table of definitions of N."""
        p = self.p_exponent
        return {
            "N": self.n_name,
            "alpha, pooled": format_number(self.alpha),
            "exponent difference [95% CI]": _text(self.d_alpha, self.d_alpha_ci) if self.d_alpha is not None else "refused",
            "p": "-" if p is None else format_p_value(p),
            "df": "-" if self.df is None else str(self.df),
        }  # fmt: skip

    def rows(self) -> Rows:
        return [self.row()]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields for JSON."""
        return {one.name: getattr(self, one.name) for one in fields(self) if one.name not in FITS}


def _text(value: float | None, interval: Interval | None) -> str:
    low, high = interval or (None, None)
    return format_interval(value, low, high)


def _mde80(se: float, df: int | None) -> float:
    from scipy import special

    return float(special.stdtrit(df, 0.975) + special.stdtrit(df, 0.8)) * se
