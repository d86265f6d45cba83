"""The claims of Gemstones beside what the runs identify, and the numbers of results.json."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from analysis.compare.block_result import BlockResult
from analysis.compare.families import Comparison
from analysis.examples.published.claims import Claim
from analysis.examples.published.gemstones_estimates import JointExponents, PlannedStudy
from analysis.examples.published.shape_laws import AspectLaw, PowerTerms, Value
from analysis.formatting import format_interval

BLOCK = (
    "d_alpha", "d_alpha_ci", "p_exponent", "level", "level_ci", "p_level", "kappa", "kappa_ci",
    "df", "tau", "shapes", "mde80", "level_mde80",
)  # fmt: skip


@dataclass(frozen=True)
class Findings:
    """Estimates of the page, by definition of N or by form of the law.

    `ratios`: width / depth compared by aspect ratio. `best_by_tokens`: ln of the best width / depth; `change`: its
    change from the fewest to 99 billion tokens.
    """

    objective: float
    by_name: Comparison
    by_aspect: Mapping[str, Comparison]
    joint: Sequence[JointExponents]
    aspect_laws: Mapping[str, AspectLaw]
    matched: Mapping[str, BlockResult]
    fits: Mapping[str, PowerTerms]
    ranges: Mapping[str, Mapping[str, tuple[float, float]]]
    grid: Mapping[str, float]
    boundaries: Sequence[Mapping[str, str]]
    plans: Sequence[PlannedStudy]
    chosen: PlannedStudy
    ratios: tuple[float, float]
    best_by_tokens: Mapping[float, Value]
    change: Value

    def numbers(self) -> dict[str, Any]:
        """Return the estimates for results.json, with 6 digits."""
        main = self.by_aspect["n_flop"]
        return {
            "published_objective": self.objective,
            "verdicts": {
                "by name, n_flop": self.by_name.verdict.word,
                **{n: found.verdict.word for n, found in self.by_aspect.items()},
            },
            "by_name": {n: _block(one) for n, one in self.by_name.by_definition.items()},
            "by_aspect": {n: _block(one) for n, one in main.by_definition.items()},
            "joint": {one.n_name: asdict(one) for one in self.joint},
            "compared_ratios": list(self.ratios),
            "aspect_law": {n: asdict(law) for n, law in self.aspect_laws.items()},
            "log_best_by_tokens": {
                f"{tokens / 1e9:.0f}B": asdict(one) for tokens, one in self.best_by_tokens.items()
            },
            "log_best_change_11B_to_99B": asdict(self.change),
            "matched": {label: _block(one) for label, one in self.matched.items()},
            "width_depth": {
                form: {**asdict(fit), "accepted": dict(self.ranges[form])}
                for form, fit in self.fits.items()
            },
            "grid_errors": dict(self.grid),
            "boundaries": [dict(row) for row in self.boundaries],
            "plans": [
                {**plan.row(), "mde80_exponent": plan.power.mde80_exponent} for plan in self.plans
            ],
        }

    def claims(self) -> list[Claim]:
        """Return the claims in the order of the page."""
        block, verdict = self.by_aspect["n_flop"].block, self.by_aspect["n_flop"].verdict.word
        assert block.kappa is not None and block.kappa_ci is not None
        law, power = self.aspect_laws["n_flop"], self.chosen.power
        design = (
            f"{self.chosen.rungs} rungs of equal FLOPs with {len(self.chosen.ratios)} aspect ratios: MDE "
            f"{power.mde80_exponent:.3f} (exponent) and {math.exp(power.mde80_log_kappa or 0):.2f} (compute multiplier)"
        )
        fewest = self.best_by_tokens[min(self.best_by_tokens)]
        total = self.aspect_laws["params_total"]
        width, depth = (
            (min(values), max(values))
            for name in ("width", "depth")
            for values in [[fit.exponents[name] for fit in self.fits.values()]]
        )
        flop, all_n = (self.ranges[f"width, depth, {n}"] for n in ("n_flop", "params_total"))
        return [
            Claim(
                "A law predicts the loss from width and depth",
                "exponents 0.30 (width) and 0.37 (depth), beside 0.51 (N)",
                f"a loss, but no exponents: {_ends(width)} for width and {_ends(depth)} for depth by form of the law",
                f"{_ends(flop['width'])} and {_ends(flop['depth'])} with N_flop; {_ends(all_n['width'])} and "
                f"{_ends(all_n['depth'])} with all parameters, the authors' N",
                "UNIDENTIFIED",
                f"all pairs of 8 widths and 8 depths, up to 12B parameters: standard errors {self.grid['width']:.2f} and "
                f"{self.grid['depth']:.2f}",
            ),
            Claim(
                "The best width / depth grows with compute",
                "yes, by that law",
                f"at 99B tokens a best ratio of {math.exp(law.log_best.value):.0f}; by N_flop no change with size is shown, nor "
                f"with tokens ({math.exp(fewest.value):.0f} at 11B)",
                "d ln(ratio) / d ln N "
                + format_interval(law.drift.value, *law.drift.interval, digits=2)
                + ", by all parameters "
                + format_interval(total.drift.value, *total.drift.interval, digits=2)
                + f"; ratio at 11B tokens {_ends(_exp(fewest.interval), 0)}, at 99B {_ends(_exp(law.log_best.interval), 0)}",
                verdict,
                design,
            ),
            Claim(
                "Narrow models need many more FLOPs than wide ones",
                "yes",
                f"both extremes need more; the compute multiplier is {block.kappa:.2f} between the mean ratios of the families, "
                f"{self.ratios[0]:.0f} and {self.ratios[1]:.0f} (above 1: deep needs fewer), extrapolated to 2B",
                _ends(block.kappa_ci),
                f"{verdict}, extrapolation",
                design,
            ),
            Claim(
                "Deep and wide models have different exponents",
                "not claimed by the authors",
                "nothing by N_flop; the sign depends on the definition of N",
                block.d_alpha_interval_text,
                verdict,
                design,
            ),
            Claim(
                "Prescriptions are sensitive to the design and to the runs that are fitted",
                "yes",
                "the best ratio depends on the definition of N. For the runs that are fitted no change is shown: between 11B and "
                "99B tokens its ratio is "
                + format_interval(
                    math.exp(self.change.value), *_exp(self.change.interval), signed=False, digits=2
                ),
                f"best ratio {_ends(_exp(law.log_best.interval), 0)} by N_flop, {_ends(_exp(total.log_best.interval), 0)} by all "
                "parameters",
                "shown for the definition of N only",
                design,
            ),
        ]


def _block(block: BlockResult) -> dict[str, Any]:
    return {name: getattr(block, name) for name in BLOCK}


def _ends(ends: tuple[float, float], digits: int = 2) -> str:
    return f"{ends[0]:.{digits}f} to {ends[1]:.{digits}f}"


def _exp(ends: tuple[float, float]) -> tuple[float, float]:
    return math.exp(ends[0]), math.exp(ends[1])
