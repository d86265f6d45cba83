"""Power of a finished study's design, of larger designs, and the most informative additional runs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import pandas as pd

from analysis.compare.families import Comparison
from analysis.design.linear import Design, Law
from analysis.formatting import format_number, power_of_ten
from analysis.planning.extensions import Extension, NextRuns, extensions, most_valuable_next
from analysis.planning.power import DesignPower, design_power
from analysis.runs.study import Study
from slm.summary import Rows

NEXT_RUNS = 5
NO_EXPONENT: dict[str, Any] = dict.fromkeys(
    ("se_exponent", "mde80_exponent", "power_exponent", "equivalence_margin", "se_joint_law")
)


@dataclass(frozen=True)
class StudyPower:
    """Power of the design, of `extensions`, and single additions that reduce the standard error most per FLOP.

    `noise`: the standard deviations, as text. `spent`: FLOPs of the runs.
    """

    design: DesignPower
    extensions: tuple[Extension, ...]
    next_runs: tuple[NextRuns, ...]
    noise: str
    spent: float

    def to_dict(self) -> dict[str, Any]:
        return {
            "power": self.design.to_dict(),
            "extensions": [asdict(one) for one in self.extensions],
            "next_runs": [asdict(one) for one in self.next_runs],
        }

    def extension_rows(self) -> Rows:
        """Return MDE and cost of larger designs; the first row is the current design."""
        if not self.extensions:
            return []
        cells = [("none (current design)", "", "", "", self.design)] + [
            (
                one.name,
                f"+{one.runs}",
                power_of_ten(one.flops),
                f"{one.flops / self.spent:.2g}x",
                one,
            )
            for one in self.extensions
        ]
        return [
            {
                "extension": name,
                "runs": runs,
                "FLOPs": flops,
                "relative cost": cost,
                "exponent MDE (80% power)": format_number(one.mde80_exponent),
                "loss MDE (80% power), nats/token": format_number(one.mde80_level),
            }
            for name, runs, flops, cost, one in cells
        ]

    def next_rows(self) -> Rows:
        """Return single additions, the one with the largest decrease of the standard error per FLOP first."""
        se = "SE of the " + (
            "loss difference, nats" if self.design.refusals else "exponent difference"
        )
        return [
            {
                "addition": one.name,
                "runs": f"+{one.runs}",
                "FLOPs": power_of_ten(one.flops),
                se: format_number(one.se, digits=5),
            }
            for one in self.next_runs
        ]


def power_of_study(study: Study, comparison: Comparison) -> StudyPower | None:
    """Return the power of the design under the law and the noise of the block model; None if that is refused."""
    effects = comparison.block.effects
    if effects is None or not effects.fit.blocks.is_matched:
        return None
    fitted, fit = effects.fit.law, effects.fit
    law = Law(fitted.E, fitted.A, fitted.B, fitted.alpha, fitted.beta)
    trunk_sigma = comparison.block.trunk_sigma or 0.0
    assumed: dict[str, Any] = {
        "law": law,
        "sigma": fit.sigma,
        "tau": fit.tau,
        "trunk_sigma": trunk_sigma,
    }
    design = design_of(study.table)
    power = design_power(design, study.deep, study.wide, **assumed)
    extended = tuple(extensions(design, study.deep, study.wide, **assumed))
    if comparison.block.exponent_reasons:
        power = replace(power, refusals=comparison.block.exponent_reasons, **NO_EXPONENT)
        extended = tuple(replace(one, se_exponent=None, mde80_exponent=None) for one in extended)
    next_runs = most_valuable_next(design, power, law=law, sigma=fit.sigma, count=NEXT_RUNS)
    seeds = f", seed of a shape {trunk_sigma:.4f} nats" if trunk_sigma else ""
    noise = (
        f"sigma {fit.sigma:.4f} nats, tau {fit.tau:.4f} nats{seeds}, as estimated from these runs"
    )
    return StudyPower(power, extended, tuple(next_runs), noise, float(study.table["flops"].sum()))


def design_of(table: pd.DataFrame) -> Design:
    """Return the design of the runs in a prepared table."""
    names = ("family", "rung", "shape", "tokens", "seed", "flops", "tokens_per_param")
    columns: dict[str, Any] = {name: list(table[name]) for name in names}
    columns["n_flop"] = (table["flops"] / table["tokens"] / 6).tolist()
    columns["aspect_ratio"] = list(table["aspect_ratio"]) if "aspect_ratio" in table else []
    return Design(**columns)
