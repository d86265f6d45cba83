"""An audit of learning rates as a file: what `study.lr_audit` names, read before any compute is spent."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.learning_rate.audit import Audit, audit_of, audit_rates
from analysis.runs.load import Runs, collect_runs
from slm.errors import DataError
from slm.files import read_json
from slm.studies.cells import Cell


def read_gate(path: Path) -> dict[str, Any]:
    """What `write_lr_audit` wrote: `recipe_id`, `common_lr`, and what was found of each of `families`.

    Raises:
        DataError: if the file is not there or not such a one.
    """
    try:
        gate = read_json(path)
        if not isinstance(gate["families"], dict) or not isinstance(gate["recipe_id"], str):
            raise TypeError("families or recipe_id is of the wrong kind")
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"no audit of learning rates ({type(error).__name__}: {error})"
        fix = "python sweep.py study=lr_audit writes one to runs/lr_audit/report/lr_audit.json"
        raise DataError(f"study.lr_audit={path}: {problem}; {fix}") from None
    return dict(gate)


def gate_of_recipe(path: Path, recipe_id: str) -> dict[str, Any]:
    """The same, of this recipe.

    Raises:
        DataError: also if it is of another recipe, whose learning rates say nothing of these.
    """
    gate = read_gate(path)
    if gate["recipe_id"] != recipe_id:
        raise DataError(
            f"study.lr_audit={path}: made in recipe {gate['recipe_id']}, and this study's is {recipe_id}; audit "
            "the rates in the recipe that is to be judged (same data, schedule, parametrization, ...)"
        )
    return gate


def load_audit(path: Path, runs: Runs) -> Audit:
    """An audit of learning rates: lr_audit.json, as `study=lr_audit` writes it, or a folder of runs over a
    grid of rates, which are judged at the rates that the families of `runs` were trained with.

    Raises:
        DataError: if it is not there or neither.
    """
    if path.is_dir():
        rates = runs.table.groupby("family")["peak_lr"].median()
        used = {str(name): float(rate) for name, rate in rates.items()}
        return audit_rates(collect_runs(path)[0], used)
    recipes = runs.table["recipe_id"] if "recipe_id" in runs.table else pd.Series(dtype=str)
    gate = read_gate(path) if recipes.empty else gate_of_recipe(path, str(recipes.iloc[0]))
    audit = audit_of(gate["families"])
    assert audit is not None
    return audit


def audit_of_study(cells: Sequence[Cell]) -> Path | None:
    """The gate that the study names, if it is there and of this study's recipe.

    Raises:
        DataError: if it is of another recipe, whose learning rates say nothing of these.
    """
    config = cells[0].spec.config
    if config.study.lr_audit is None:
        return None
    path = Path(config.study.lr_audit)
    gate_of_recipe(path, cells[0].spec.recipe_id)
    return path
