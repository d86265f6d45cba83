"""Power of a finished study's design, of larger designs, and the most informative additional runs.

The only module of the report that uses `analysis.design`.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import pandas as pd

from analysis.compare.families import Comparison
from analysis.design.extensions import Extension, candidates, extensions
from analysis.design.linear import Design, Law
from analysis.design.power import DesignPower, NextRun, design_power, most_valuable_next
from analysis.fit.joint import fit_joint
from analysis.formatting import format_number, power_of_ten, short_count
from analysis.runs.study import Study
from slm.summary import Rows

DEFAULT_TAU = 0.01  # random effect of a shape in nats, if the runs do not identify it
NEXT_RUNS = 5
IDENTIFIED = ("OK", "WEAK")
NO_LAW = (
    "no joint law is identified in these runs, so the power for the exponents cannot be computed"
)
NO_EXPONENT: dict[str, Any] = dict.fromkeys(
    ("se_exponent", "mde80_exponent", "df", "power_t", "power_verdict")
)


@dataclass(frozen=True)
class StudyPower:
    """Power of the design, of `extensions`, and single runs that reduce the standard error most per FLOP.

    `noise`: the assumed standard deviations, as text. `spent`: FLOPs of the runs.
    """

    design: DesignPower
    extensions: tuple[Extension, ...]
    next_runs: tuple[NextRun, ...]
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
                "loss MDE (80% power), nats/token": format_number(one.mde80_difference),
            }
            for name, runs, flops, cost, one in cells
        ]

    def next_rows(self) -> Rows:
        """Return additional runs, the one with the largest decrease of the standard error per FLOP first."""
        return [
            {
                "family": run.family,
                "N_flop": short_count(run.flops / run.tokens / 6),
                "shape": run.shape if run.seed else f"new shape, {run.rung}",
                "tokens": short_count(run.tokens),
                "seed": str(run.seed),
                "FLOPs": power_of_ten(run.flops),
                "SE of the exponent difference": format_number(run.se_exponent, digits=5),
            }
            for run in self.next_runs
        ]


def power_of_study(study: Study, comparison: Comparison) -> StudyPower | None:
    """Return the power of the design under the noise and the law estimated from its runs; None for one family."""
    if study.deep == study.wide:
        return None
    design = design_of(study.table)
    law = _law(study, comparison)
    assumed: dict[str, Any] = {"law": law or Law(), "sigma": comparison.sigma or None}
    assumed["tau"] = comparison.tau or DEFAULT_TAU
    extended = tuple(extensions(design, study.deep, study.wide, **assumed))
    power = design_power(design, study.deep, study.wide, **assumed)
    if law is None and power.se_exponent is not None:
        power = replace(power, refusals=(NO_LAW,), **NO_EXPONENT)
        extended = tuple(replace(one, se_exponent=None, mde80_exponent=None) for one in extended)
    next_runs: list[NextRun] = []
    if power.se_exponent is not None:
        single = candidates(design, study.deep, study.wide)
        next_runs = most_valuable_next(
            design, single, study.deep, study.wide, count=NEXT_RUNS, **assumed
        )
    sigma = "" if comparison.sigma else " (default, not measured)"
    tau = "" if comparison.tau else " (default, not identified)"
    noise = (
        f"seed standard deviation {power.sigma:.4f} nats{sigma}, random effect of a shape "
        f"{power.tau:.4f} nats{tau}"
    )
    return StudyPower(power, extended, tuple(next_runs), noise, float(study.table["flops"].sum()))


def _law(study: Study, comparison: Comparison) -> Law | None:
    """Return the law for power calculations, or None if no law is identified in these runs.

    It is the geometric mean of the two families' laws; without those, the law M0 common to all families.
    """
    fit = comparison.exponents.fit
    names: list[str | None] = [comparison.deep, comparison.wide]
    if fit is None or comparison.status not in IDENTIFIED:
        table = study.table
        fit = fit_joint(table["n"], table["tokens"], table["loss_nats_per_token"], model="M0")
        names = [None, None]
    if fit.status not in IDENTIFIED:
        return None
    sides = [fit.of_family(name) for name in names]
    mean = {key: math.sqrt(sides[0][key] * sides[1][key]) for key in ("A", "alpha")}
    return Law(E=sides[0]["E"], B=sides[0]["B"], beta=sides[0]["beta"], **mean)


def design_of(table: pd.DataFrame) -> Design:
    """Return the design of the runs in a prepared table."""
    columns = {
        key: list(table[key]) for key in ("family", "rung", "shape", "tokens", "seed", "flops")
    }
    per_token = (table["flops"] / table["tokens"] / 6).tolist()
    return Design(n_flop=per_token, tokens_per_param=list(table["tokens_per_param"]), **columns)
