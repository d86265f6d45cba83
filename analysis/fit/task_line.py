"""Whether the loss predicts a task: bits per byte of the gold answer against loss, on one line for all families."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import special

from analysis.arrays import Floats
from analysis.formatting import count, format_number, format_p_value
from slm.errors import DataError, nearest_name
from slm.rounding import exceeds
from slm.summary import Rows, Summarized

SUFFIX = "_bits_per_byte"
LOSS = "loss_nats_per_token"
MIN_RUNS = 4
MIN_LOSS_RANGE = 1e-6  # nats
SIGNIFICANCE = 0.05


@dataclass(frozen=True, repr=False)
class TaskLine(Summarized):
    """The line y = intercept + slope * loss by least squares, and how far the families lie from it.

    Attributes:
        task: name of the task; y is its bits per byte.
        slope, slope_se: bits per byte per nat per token, over all runs.
        intercept, intercept_se: value of y at `centre`.
        centre: mean loss of the runs, in nats per token. The line is centred there because an intercept at loss 0
            would be an extrapolation.
        residual_sd: of one run from the line, in bits per byte.
        families: offset of each family from the common line with equal slope, and its standard error against the
            mean of the families; in bits per byte.
        p_family: of the F test that all families have one intercept, given one slope; None with one family.
        p_slope: of the F test that they have one slope, given their intercepts; None with too few runs.
        table: the runs: run_id, family, loss, y, residual.
    """

    task: str
    slope: float
    slope_se: float
    intercept: float
    intercept_se: float
    centre: float
    residual_sd: float
    families: dict[str, tuple[float, float]]
    p_family: float | None
    p_slope: float | None
    table: pd.DataFrame

    @property
    def runs(self) -> int:
        return len(self.table)

    @property
    def is_one_line(self) -> bool | None:
        """Whether neither test shows that the families differ; None with one family."""
        if self.p_family is None:
            return None
        return min(self.p_family, 1.0 if self.p_slope is None else self.p_slope) >= SIGNIFICANCE / 2

    def predict(self, loss: ArrayLike) -> Floats:
        """Return the bits per byte on the line at losses in nats per token."""
        return self.intercept + self.slope * (np.asarray(loss, dtype=float) - self.centre)

    def title(self) -> str:
        return (
            f"{self.task}: {self.slope:.3f} +- {self.slope_se:.3f} bits per byte of the gold answer per nat of loss, "
            f"residual SD {self.residual_sd:.4f}, {count(self.runs, 'run')}"
        )

    def details(self) -> Iterator[tuple[str, str]]:
        at = f"{self.intercept:.4f} +- {self.intercept_se:.4f} at {self.centre:.4f} nats/token"
        yield "bits per byte", at
        explained = 1 - float((self.table["residual"] ** 2).sum() / self._total_squares())
        yield "share of the variance on the line", f"{explained:.3f}"
        for family, (offset, se) in self.families.items():
            yield (
                f"offset of {family}",
                f"{format_number(offset, signed=True)} +- {format_number(se)} bits per byte",
            )
        if self.p_family is not None:
            yield "F test of one intercept", format_p_value(self.p_family)
        if self.p_slope is not None:
            yield "F test of one slope", format_p_value(self.p_slope)
        verdict = {
            None: "one family only: whether families share the line is not tested",
            True: "no difference between the families is shown at equal loss",
            False: "at equal loss the families differ on this task, so the loss alone does not decide it",
        }
        yield "families", verdict[self.is_one_line]

    def rows(self) -> Rows:
        """Return one row per run."""
        return [
            {
                "run": str(row["run_id"]),
                "family": row["family"],
                "loss, nats/token": f"{row['loss']:.4f}",
                f"{self.task}, bits/byte": f"{row['y']:.4f}",
                "residual": format_number(row["residual"], signed=True),
            }
            for row in self.table.to_dict("records")
        ]

    def _total_squares(self) -> float:
        return float(((self.table["y"] - self.table["y"].mean()) ** 2).sum())


def fit_task(table: pd.DataFrame, task: str) -> TaskLine:
    """Fit the bits per byte of a task against the loss over finished runs, such as those of models.csv.

    Runs count as independent and equally noisy. The families are compared at equal loss by two F tests, each at
    2.5%: one intercept for all families given one slope, then one slope given their intercepts.

    Args:
        table: one row per run with family, loss_nats_per_token, `task` + "_bits_per_byte", and optionally run_id.

    Raises:
        DataError: if a column is missing, or there are too few runs or no range of losses.
    """
    runs = _runs_of(table, task.removesuffix(SUFFIX))
    x, y = runs["loss"].to_numpy(), runs["y"].to_numpy()
    centre = float(x.mean())
    slope_column = (x - centre)[:, None]
    names = list(dict.fromkeys(runs["family"]))
    member = np.array([[float(name == family) for name in names] for family in runs["family"]])
    ones = np.ones((len(x), 1))
    beta, covariance, squares, df = _least_squares(np.hstack([ones, slope_column]), y)
    residuals = y - beta[0] - beta[1] * (x - centre)
    per_family = np.hstack([member, slope_column])
    p_family = p_slope = None
    offsets: dict[str, tuple[float, float]] = {}
    if len(names) > 1 and len(x) > per_family.shape[1]:
        own, own_covariance, own_squares, own_df = _least_squares(per_family, y)
        p_family = _f_test(squares, df, own_squares, own_df)
        contrast = np.eye(len(names)) - 1 / len(names)  # against the mean of the families
        ses = np.sqrt(np.diag(contrast @ own_covariance[:-1, :-1] @ contrast.T))
        values = contrast @ own[:-1]
        offsets = {n: (float(v), float(s)) for n, v, s in zip(names, values, ses, strict=True)}
        free = np.hstack([member, member * slope_column])
        if len(x) > free.shape[1] and np.linalg.matrix_rank(free) == free.shape[1]:
            _, _, free_squares, free_df = _least_squares(free, y)
            p_slope = _f_test(own_squares, own_df, free_squares, free_df)
    return TaskLine(
        task=task.removesuffix(SUFFIX),
        slope=float(beta[1]),
        slope_se=math.sqrt(covariance[1, 1]),
        intercept=float(beta[0]),
        intercept_se=math.sqrt(covariance[0, 0]),
        centre=centre,
        residual_sd=math.sqrt(squares / df),
        families=offsets,
        p_family=p_family,
        p_slope=p_slope,
        table=runs.assign(residual=residuals),
    )


def _runs_of(table: pd.DataFrame, task: str) -> pd.DataFrame:
    column = f"{task}{SUFFIX}"
    for name in (column, LOSS, "family"):
        if name not in table:
            tasks = [str(c).removesuffix(SUFFIX) for c in table if str(c).endswith(SUFFIX)]
            near = nearest_name(task, tasks)
            hint = (
                f"did you mean {near}?" if near else f"its tasks are {', '.join(tasks) or 'none'}"
            )
            raise DataError(f"task {task}: the table has no column {name}; {hint}")
    ids = table["run_id"] if "run_id" in table else [f"row {row}" for row in range(len(table))]
    runs = pd.DataFrame(
        {
            "run_id": list(ids),
            "family": table["family"].astype(str).to_numpy(),
            "loss": pd.to_numeric(table[LOSS], errors="coerce").to_numpy(dtype=float),
            "y": pd.to_numeric(table[column], errors="coerce").to_numpy(dtype=float),
        }
    )
    runs = runs[np.isfinite(runs["loss"]) & np.isfinite(runs["y"])].reset_index(drop=True)
    if len(runs) < MIN_RUNS:
        have = f"{count(len(runs), 'run')} with loss and {column}"
        raise DataError(f"task {task}: {have}; a line needs at least {MIN_RUNS}")
    if not exceeds(float(np.ptp(runs["loss"])), MIN_LOSS_RANGE):
        raise DataError(f"task {task}: all runs have the same loss; a line needs a range of losses")
    return runs


def _least_squares(design: Floats, y: Floats) -> tuple[Floats, Floats, float, int]:
    """Return the estimates, their covariance, the sum of squared residuals, and the degrees of freedom."""
    estimates: Any = np.linalg.lstsq(design, y, rcond=None)[0]
    squares = float(((y - design @ estimates) ** 2).sum())
    df = len(y) - design.shape[1]
    return estimates, squares / df * np.linalg.inv(design.T @ design), squares, df


def _f_test(squares: float, df: int, free_squares: float, free_df: int) -> float:
    """Return the p value of a model within a larger one."""
    more = df - free_df
    if free_squares <= 0:
        return 1.0 if squares <= 0 else 0.0
    ratio = (squares - free_squares) / more / (free_squares / free_df)
    return float(special.fdtrc(more, free_df, max(ratio, 0.0)))
