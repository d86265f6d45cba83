"""What the learning rates of a study cost its runs, interpolated between the cells of an audit."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.interpolate import RegularGridInterpolator

from analysis.arrays import Floats
from analysis.learning_rate.audit import audit_learning_rates, by_budget
from slm.errors import DataError

AXES = ("ln_aspect", "rung", "tokens_per_param")


def tuning_costs(runs: pd.DataFrame, audit: pd.DataFrame) -> Floats:
    """Return the estimated penalty of the learning rate of every run, in nats.

    The penalty is linear in ln(aspect ratio), ln N and ln(tokens_per_param) between the cells of the audit, and constant
    outside them: families, sizes and budgets that were not audited get that of the nearest ones.

    Args:
        runs: table with the columns aspect_ratio, n_flop and tokens_per_param.
        audit: runs over a grid of rates, with these columns, tokens, and those of `audit_learning_rates`, among them
            `used_lr`.

    Raises:
        DataError: if the audit lacks a cell of family x size x budget, or a best rate is not inside its grid.
    """
    mean = audit.groupby("family")["aspect_ratio"].transform("mean")
    cells = by_budget(audit.assign(ln_aspect=np.log(mean)))
    penalties = {}
    for one in audit_learning_rates(cells).shapes:
        if one.penalty is None:
            raise DataError(f"{one.family} {one.shape}: the best rate is at the edge of the grid")
        penalties[one.family, one.shape] = one.penalty
    cells = cells.drop_duplicates(["family", "shape"])
    cells["penalty"] = [penalties[key] for key in zip(cells["family"], cells["shape"], strict=True)]
    grid = cells.set_index(list(AXES))["penalty"].unstack(list(AXES[1:])).sort_index()
    if grid.isna().any(axis=None):
        raise DataError("the audit lacks cells: it needs every family at every size and budget")
    sizes = cells.groupby("rung")["n_flop"].mean().sort_values()
    budgets = sorted(cells["tokens_per_param"].unique())
    values = np.stack([[grid[size, budget] for budget in budgets] for size in sizes.index])
    axes = (grid.index.to_numpy(), np.log(sizes.to_numpy()), np.log(budgets))
    points = [
        np.clip(np.log(runs[column].to_numpy(float)), axis.min(), axis.max())
        for column, axis in zip(("aspect_ratio", "n_flop", "tokens_per_param"), axes, strict=True)
    ]
    interpolate = RegularGridInterpolator(axes, np.moveaxis(values, -1, 0))
    return np.asarray(interpolate(np.column_stack(points)))
