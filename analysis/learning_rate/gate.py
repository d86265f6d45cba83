"""Read a learning-rate audit (`study.lr_audit`, `--audit`) and check that it belongs to the study's recipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.learning_rate.audit import Audit, audit_learning_rates, parse_audit
from analysis.runs.load import Runs
from analysis.runs.sources import collect_runs
from slm.errors import DataError
from slm.files import read_json
from slm.studies.cells import Cell


def read_lr_audit(path: Path) -> dict[str, Any]:
    """Return the content of lr_audit.json; `write_lr_audit` defines its keys.

    Raises:
        DataError: if the file is missing or is not a learning-rate audit.
    """
    try:
        content = read_json(path)
        if not isinstance(content["families"], dict) or not isinstance(content["recipe_id"], str):
            raise TypeError("families must be an object and recipe_id a string")
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"not a learning-rate audit ({type(error).__name__}: {error})"
        fix = "run python sweep.py study=lr_audit, which writes runs/lr_audit/report/lr_audit.json"
        raise DataError(f"study.lr_audit={path}: {problem}; {fix}") from None
    return dict(content)


def read_lr_audit_of_recipe(path: Path, recipe_id: str) -> dict[str, Any]:
    """Return the content of lr_audit.json if it has the given recipe.

    Raises:
        DataError: if the file is missing, is not a learning-rate audit, or has another recipe.
    """
    content = read_lr_audit(path)
    if content["recipe_id"] != recipe_id:
        raise DataError(
            f"study.lr_audit={path}: the audit has recipe {content['recipe_id']}, the study has recipe "
            f"{recipe_id}; run the audit with the recipe of the study (data, schedule, parametrization, ...)"
        )
    return content


def load_audit(path: Path, runs: Runs) -> Audit:
    """Load the audit for `runs` from lr_audit.json or from a folder of runs over a grid of learning rates.

    A folder is audited at the median learning rate of each family in `runs`.

    Raises:
        DataError: if the path is missing or is neither of them, or the file has another recipe.
    """
    if path.is_dir():
        medians = runs.table.groupby("family")["peak_lr"].median()
        used_lr = {str(name): float(lr) for name, lr in medians.items()}
        return audit_learning_rates(collect_runs(path)[0], used_lr)
    recipes = runs.table["recipe_id"] if "recipe_id" in runs.table else pd.Series(dtype=str)
    if recipes.empty:
        content = read_lr_audit(path)
    else:
        content = read_lr_audit_of_recipe(path, str(recipes.iloc[0]))
    audit = parse_audit(content["families"])
    assert audit is not None
    return audit


def check_study_audit(cells: Sequence[Cell]) -> Path | None:
    """Return the path in `study.lr_audit` after checking the file; None if the study has no audit.

    Raises:
        DataError: if the file is missing, is not a learning-rate audit, or has another recipe.
    """
    config = cells[0].spec.config
    if config.study.lr_audit is None:
        return None
    path = Path(config.study.lr_audit)
    read_lr_audit_of_recipe(path, cells[0].spec.recipe_id)
    return path
