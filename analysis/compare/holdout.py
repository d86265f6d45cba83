"""Extrapolation checked where it can be: predict the largest size from the others, and roll forward."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from analysis.arrays import Floats, Mask
from analysis.compare.exponents import (
    FittedStudy,
    fitted,
    noise_beside_mean,
    refusals_of,
    shape_misfit,
    without_small_families,
)
from analysis.fit.law import log_loss
from analysis.fit.profile_likelihood import quantile_t
from analysis.fit.resampling import cluster_bootstrap
from analysis.formatting import count, format_interval
from analysis.runs.study import Study
from slm.formatting import short_count
from slm.rounding import exceeds, stable_argsort
from slm.summary import Rows, Summarized

RESAMPLES = (200, 2000)  # of the bootstrap; the second number if the first leaves a cell in doubt
SMALLEST = 1e-300  # avoids 0 / 0 without noise
MONTE_CARLO_ERRORS = 3.0  # standard errors of the half width of an interval


@dataclass(frozen=True)
class HeldOutCell:
    """One family's runs of a held-out size at one token count. `error`: observed minus predicted, in nats
    and in percent; `inside`: whether it lies in the 95% interval of a new shape's loss. `monte_carlo_error`: standard
    error of the half width of the interval from the limited number of resamples, relative to it.
    """

    family: str
    n: float
    tokens: float
    observed: float
    predicted: float
    low: float
    high: float
    monte_carlo_error: float = 0.0

    @property
    def distance(self) -> float:
        """Distance of the observed loss from the nearer end of the interval, relative to its half width, in ln L."""
        half = math.log(self.high / self.low) / 2
        return abs(abs(math.log(self.observed / self.predicted)) / half - 1) if half else math.inf

    @property
    def is_doubtful(self) -> bool:
        """Whether other resamples could move the end of the interval past the observed loss."""
        return self.distance < MONTE_CARLO_ERRORS * self.monte_carlo_error

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
    sizes alone cannot be fitted, or if it is borderline. `is_borderline`: other resamples could give the other result.
    `forward`: mean error in percent per family and size, each predicted from those below it.
    """

    cells: tuple[HeldOutCell, ...] = ()
    passed: bool | None = None
    reasons: tuple[str, ...] = ()
    is_borderline: bool = False
    forward: tuple[dict[str, Any], ...] = ()

    @property
    def coverage(self) -> float | None:
        """Share of cells inside their interval."""
        return float(np.mean([cell.inside for cell in self.cells])) if self.cells else None

    @property
    def status(self) -> str:
        if self.passed is None:
            return "borderline" if self.is_borderline else "not possible"
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
    """Refit without the largest size of both compared families and predict it; then roll forward.

    The interval has the law's uncertainty (bootstrap of shapes), the random effect of a new shape and the noise of a
    run, with t of the shapes' degrees of freedom. Families with too few sizes are left out if they are not compared.
    """
    held, kept = _largest_sizes(study)
    smaller, _ = without_small_families(
        replace(study, table=study.table[kept].reset_index(drop=True))
    )
    refusals = refusals_of(smaller)
    if refusals:
        return HoldOut(
            reasons=tuple(f"without the largest size: {reason}" for reason in refusals[:1])
        )
    known = fitted(smaller)
    largest = study.table[held & study.table["family"].isin(smaller.families)]
    for resamples in RESAMPLES:
        cells = _predict(known, largest, resamples, seed)
        mine = [
            [cell for cell in cells if cell.family == family] for family in (study.deep, study.wide)
        ]
        missed = [_missed(own) for own in mine if 2 * sum(not c.inside for c in own) > len(own)]
        doubts = [text for own in mine if (text := _doubt(own, resamples))]
        is_borderline = bool(doubts) and not any(map(_is_missed_surely, mine))
        if not is_borderline:
            break
    return HoldOut(
        cells,
        passed=None if is_borderline else not missed,
        reasons=tuple(doubts if is_borderline else missed),
        is_borderline=is_borderline,
        forward=tuple(_forward(study, known)),
    )


def _largest_sizes(study: Study) -> tuple[Mask, Mask]:
    """Return which runs are predicted, and from which: those of the largest common rung, and those below it.

    If neither family ends at the largest common rung, or there is none, the largest size of each is predicted.
    """
    table, families = study.table, (study.deep, study.wide)
    size = table.groupby("rung", sort=False)["n"].transform("mean").to_numpy()
    sides = [(table["family"] == name).to_numpy() for name in families]
    tops = [float(size[side].max()) for side in sides]
    common = set(size[sides[0]]) & set(size[sides[1]])
    if common and max(common) in tops:
        return size == max(common), size < max(common)
    held = np.logical_or.reduce(
        [side & (size == top) for side, top in zip(sides, tops, strict=True)]
    )
    return held, ~held & (np.logical_or(*sides) | (size < min(tops)))


def _missed(cells: Sequence[HeldOutCell]) -> str:
    outside = sum(not cell.inside for cell in cells)
    return f"{outside} of {count(len(cells), 'cell')} of {cells[0].family} are outside"


def _is_missed_surely(cells: Sequence[HeldOutCell]) -> bool:
    return 2 * sum(not (cell.inside or cell.is_doubtful) for cell in cells) > len(cells)


def _doubt(cells: Sequence[HeldOutCell], resamples: int) -> str:
    """Return why other resamples could decide otherwise for a family; empty if they could not."""
    surely = sum(not (cell.inside or cell.is_doubtful) for cell in cells)
    at_most = sum(not cell.inside or cell.is_doubtful for cell in cells)
    if not 2 * surely <= len(cells) < 2 * at_most:
        return ""
    nearest = min(cell.distance for cell in cells)
    return (
        f"{surely} to {at_most} of {count(len(cells), 'cell')} of {cells[0].family} are outside: a loss is "
        f"{nearest:.1%} of the half width from the end of its interval, within the Monte-Carlo error of {resamples} "
        "resamples"
    )


def _below(study: Study, rungs: Any) -> Study:
    table = study.table[study.table["rung"].isin(list(rungs))].reset_index(drop=True)
    return replace(study, table=table)


def _log_predictions(known: FittedStudy, rows: pd.DataFrame, theta: Floats) -> Floats:
    """Return ln L of other runs under parameter vectors (sets, size), shape (sets, rows)."""
    family = [known.study.families.index(name) for name in rows["family"]]
    points = known.problem.points.at(rows["n"], rows["tokens"], family)
    return log_loss(known.law, theta, points)[0]


def _predict(
    known: FittedStudy, rows: pd.DataFrame, resamples: int, seed: int
) -> tuple[HeldOutCell, ...]:
    cells = rows.groupby(["family", "shape", "tokens"], as_index=False, sort=False).agg(
        {"n": "mean", "loss_nats_per_token": "mean"}
    )
    compared = list(dict.fromkeys((known.study.deep, known.study.wide, *known.study.families)))
    cells = cells[cells["family"].isin(compared)]
    cells = cells.iloc[np.argsort(cells["family"].map(compared.index), kind="stable")]
    drawn = cluster_bootstrap(
        known.problem,
        known.theta,
        known.shape,
        known.problem.points.family,
        replicates=resamples,
        seed=seed,
    )
    predicted = _log_predictions(known, cells, known.theta[None])[0]
    resampled = _log_predictions(known, cells, drawn.theta)
    deviation = resampled - resampled.mean(axis=0)
    variance = (deviation**2).mean(axis=0)
    total = variance + shape_misfit(known) ** 2 + noise_beside_mean(known)
    half = quantile_t(known.df) * np.sqrt(total)
    # Standard error of a variance from its fourth moment, and by the delta method that of the half width.
    fourth = (deviation**4).mean(axis=0)
    error = np.sqrt(np.maximum(fourth - variance**2, 0.0) / len(resampled))
    relative = error / np.maximum(2 * total, SMALLEST)
    return tuple(
        HeldOutCell(
            family=row["family"],
            n=float(row["n"]),
            tokens=float(row["tokens"]),
            observed=float(row["loss_nats_per_token"]),
            predicted=math.exp(centre),
            low=math.exp(centre - width),
            high=math.exp(centre + width),
            monte_carlo_error=float(part),
        )
        for row, centre, width, part in zip(
            cells.to_dict("records"), predicted, half, relative, strict=True
        )
    )


def _forward(study: Study, below_largest: FittedStudy) -> list[dict[str, Any]]:
    """Predict each rung from those below it, wherever those can be fitted."""
    found = []
    sizes = study.table.groupby("rung", sort=False)["n"].mean()
    rungs = list(sizes.index[stable_argsort(sizes)])
    for at in range(1, len(rungs)):
        smaller, _ = without_small_families(_below(study, rungs[:at]))
        if refusals_of(smaller):
            continue
        is_fitted = smaller.table.equals(below_largest.study.table)
        known = below_largest if is_fitted else fitted(smaller)
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
