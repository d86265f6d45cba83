"""Extrapolation checked where it can be: predict the largest size from the others, and roll forward."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from analysis.arrays import Floats
from analysis.compare.exponents import FittedStudy, fitted, refusals_of, shape_misfit
from analysis.fit.law import log_loss
from analysis.fit.profile_likelihood import quantile_t
from analysis.fit.resampling import cluster_bootstrap
from analysis.formatting import count, format_interval
from analysis.runs.study import Study
from slm.formatting import short_count
from slm.rounding import exceeds, stable_argsort
from slm.summary import Rows, Summarized

REPLICATES = 200


@dataclass(frozen=True)
class HeldOutCell:
    """One family's runs of a held-out size at one token count. `error`: observed minus predicted, in nats
    and in percent; `inside`: whether it lies in the 95% interval of a new shape's loss.
    """

    family: str
    n: float
    tokens: float
    observed: float
    predicted: float
    low: float
    high: float

    @property
    def error_nats(self) -> float:
        return self.observed - self.predicted

    @property
    def error_percent(self) -> float:
        return 100 * (self.observed / self.predicted - 1)

    @property
    def inside(self) -> bool:
        return not exceeds(self.low, self.observed) and not exceeds(self.observed, self.high)


@dataclass(frozen=True, repr=False)
class HoldOut(Summarized):
    """The largest size of every family predicted from the smaller ones.

    `passed`: at least half of the cells of every compared family lie within their 95% interval; None if the smaller
    sizes alone cannot be fitted. `forward`: mean error in percent per family and size,
    each predicted from those below it.
    """

    cells: tuple[HeldOutCell, ...] = ()
    passed: bool | None = None
    reasons: tuple[str, ...] = ()
    forward: tuple[dict[str, Any], ...] = ()

    @property
    def coverage(self) -> float | None:
        """Share of cells inside their interval."""
        return float(np.mean([cell.inside for cell in self.cells])) if self.cells else None

    @property
    def status(self) -> str:
        if self.passed is None:
            return "not possible"
        return "passed" if self.passed else "FAILED"

    def title(self) -> str:
        return f"largest size predicted from the smaller ones: {self.status}"

    def details(self) -> Iterator[tuple[str, str]]:
        for reason in self.reasons:
            yield "reason", reason
        if self.coverage is not None:
            cells = count(len(self.cells), "cell")
            yield "inside the 95% prediction interval", f"{self.coverage:.0%} of {cells}"

    def rows(self) -> Rows:
        """Return one row per held-out cell: observed and predicted loss in nats per token."""
        return [
            {
                "family": cell.family,
                "N": short_count(cell.n),
                "tokens": short_count(cell.tokens),
                "observed": f"{cell.observed:.4f}",
                "predicted [95% PI]": format_interval(
                    cell.predicted, cell.low, cell.high, signed=False
                ),
                "error, nats": f"{cell.error_nats:+.4f}",
                "relative error": f"{cell.error_percent:+.2f}%",
                "inside interval": "yes" if cell.inside else "NO",
            }
            for cell in self.cells
        ]


def hold_out(study: Study, seed: int = 0) -> HoldOut:
    """Refit without the largest rung of all families and predict it; then roll forward.

    The interval has the law's uncertainty (bootstrap of shapes) and the random effect of a new shape, with t of
    the shapes' degrees of freedom.
    """
    sizes = study.table.groupby("rung", sort=False)["n"].mean()
    rungs = sizes.index[stable_argsort(sizes)]
    smaller = _below(study, rungs[:-1])
    refusals = refusals_of(smaller)
    if refusals:
        return HoldOut(
            reasons=tuple(f"without the largest size: {reason}" for reason in refusals[:1])
        )
    known = fitted(smaller)
    cells = _predict(known, study.table[study.table["rung"] == rungs[-1]], seed)
    missed = []
    for family in (study.deep, study.wide):
        inside = [cell.inside for cell in cells if cell.family == family]
        if sum(inside) * 2 < len(inside):
            missed.append(
                f"{len(inside) - sum(inside)} of {count(len(inside), 'cell')} of {family} are outside"
            )
    return HoldOut(
        tuple(cells), not missed, tuple(missed), tuple(_forward(study, list(rungs), known))
    )


def _below(study: Study, rungs: Any) -> Study:
    table = study.table[study.table["rung"].isin(list(rungs))].reset_index(drop=True)
    return replace(study, table=table)


def _log_predictions(known: FittedStudy, rows: pd.DataFrame, theta: Floats) -> Floats:
    """ln L of other runs under parameter vectors (sets, size), (sets, rows)."""
    family = [known.study.families.index(name) for name in rows["family"]]
    points = known.problem.points.at(rows["n"], rows["tokens"], family)
    return log_loss(known.law, theta, points)[0]


def _predict(known: FittedStudy, rows: pd.DataFrame, seed: int) -> list[HeldOutCell]:
    cells = rows.groupby(["family", "shape", "tokens"], as_index=False, sort=False).agg(
        {"n": "mean", "loss_nats_per_token": "mean"}
    )
    cells = cells[cells["family"].isin(known.study.families)]
    drawn = cluster_bootstrap(
        known.problem,
        known.theta,
        known.shape,
        known.problem.points.family,
        replicates=REPLICATES,
        seed=seed,
    )
    predicted = _log_predictions(known, cells, known.theta[None])[0]
    spread = _log_predictions(known, cells, drawn.theta).std(axis=0)
    half = quantile_t(known.df) * np.sqrt(spread**2 + shape_misfit(known) ** 2)
    return [
        HeldOutCell(
            family=row["family"],
            n=float(row["n"]),
            tokens=float(row["tokens"]),
            observed=float(row["loss_nats_per_token"]),
            predicted=math.exp(centre),
            low=math.exp(centre - width),
            high=math.exp(centre + width),
        )
        for row, centre, width in zip(cells.to_dict("records"), predicted, half, strict=True)
    ]


def _forward(study: Study, rungs: list[Any], below_largest: FittedStudy) -> list[dict[str, Any]]:
    """Each rung from those below it, wherever those can be fitted."""
    found = []
    for at in range(1, len(rungs)):
        smaller = _below(study, rungs[:at])
        if refusals_of(smaller):
            continue
        known = below_largest if at == len(rungs) - 1 else fitted(smaller)
        rows = study.table[study.table["rung"] == rungs[at]]
        rows = rows[rows["family"].isin(smaller.families)]
        error = (
            np.log(rows["loss_nats_per_token"].to_numpy())
            - _log_predictions(known, rows, known.theta[None])[0]
        )
        for family, mine in pd.Series(error).groupby(rows["family"].to_numpy()):
            found.append(
                {"rung": rungs[at], "family": family, "error_percent": 100 * float(mine.mean())}
            )
    return found
