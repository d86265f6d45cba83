"""Read a learning-rate audit (`study.lr_audit`, `--audit`) and check that it belongs to the study's recipe."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.learning_rate.audit import Audit, audit_learning_rates, by_budget, parse_audit
from analysis.runs.load import Runs
from analysis.runs.sources import collect_runs
from slm.errors import DataError
from slm.files import read_json
from slm.formatting import short_count
from slm.rounding import exceeds
from slm.studies.cells import Cell
from slm.studies.rate_rule import RateRule

OR_WITHOUT = (
    "or set study.lr_audit=null: the verdict then has the condition that no audit was given"
)
MAX_RATE_DIFFERENCE = 0.01  # of ln(rate): rates of a rule are rounded to 3 digits


def read_lr_audit(path: Path) -> dict[str, Any]:
    """Return the content of lr_audit.json; `write_lr_audit` defines its keys.

    Raises:
        DataError: if the file is missing or is not a learning-rate audit.
    """
    if not path.exists():
        raise DataError(
            f"study.lr_audit={path}: no such file or folder (a relative path starts at the working directory, {Path.cwd()}); "
            f"run python sweep.py study=lr_audit, which writes runs/lr_audit/report/lr_audit.json, {OR_WITHOUT}"
        )
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
            f"{recipe_id}; run the audit with the recipe of the study (data, schedule, parametrization, ...), {OR_WITHOUT}"
        )
    return content


def load_audit(path: Path, runs: Runs) -> Audit:
    """Load the audit for `runs` from lr_audit.json or from a folder of runs over a grid of learning rates.

    A folder is audited at the learning rates of `runs`, by family and number of tokens.

    Raises:
        DataError: if the path is missing or is neither of them, or has another recipe or other learning rates.
    """
    table = runs.table
    recipe = str(table["recipe_id"].iloc[0]) if "recipe_id" in table and len(table) else None
    if path.is_dir():
        return _audit_folder(path, table, recipe)
    content = read_lr_audit(path) if recipe is None else read_lr_audit_of_recipe(path, recipe)
    if "peak_lr" in table:
        _check_rates(path, content, set(zip(table["tokens"], table["peak_lr"], strict=True)))
    audit = parse_audit(content["families"])
    assert audit is not None
    return audit


def _audit_folder(path: Path, runs: pd.DataFrame, recipe: str | None) -> Audit:
    """Audit runs over a grid of rates at the rates of other runs: their median, linear in ln(tokens) between budgets."""
    if "peak_lr" not in runs:
        raise DataError(
            f"{path}: the runs have no learning rates to audit; name their column: --columns peak_lr=NAME"
        )
    audited = collect_runs(path)[0]
    others = set(audited["recipe_id"]) - {recipe} if recipe is not None else set()
    if others:
        raise DataError(
            f"{path}: the audit has recipe {', '.join(sorted(map(str, others)))}, the runs have recipe {recipe}"
        )
    used = pd.Series(math.nan, index=audited.index)
    for family, own in runs.groupby("family"):
        rates = np.log(own["peak_lr"]).groupby(own["tokens"]).median()
        rows = audited["family"] == family
        log_tokens = np.log(audited.loc[rows, "tokens"])
        used[rows] = np.exp(np.interp(log_tokens, np.log(rates.index), rates))
    known = audited.assign(used_lr=used).dropna(subset=["used_lr"])
    return audit_learning_rates(by_budget(known))


def _check_rates(path: Path, content: dict[str, Any], rates: Collection[tuple[int, float]]) -> None:
    """Check pairs of tokens and learning rate of a study against the rule that was audited.

    Raises:
        DataError: if a rate differs by more than its rounding.
    """
    if "common_lr" not in content:
        return  # written by hand
    exponent = float(content.get("lr_tokens_exponent", 0.0))
    reference = int(content.get("lr_reference_tokens", 1))
    rule = RateRule(float(content["common_lr"]), reference, exponent)
    for tokens, rate in sorted(rates):
        if exceeds(abs(math.log(rate / rule.rate(tokens))), MAX_RATE_DIFFERENCE):
            raise DataError(
                f"study.lr_audit={path}: the audit is of the learning rate {rule}, which is {rule.rate(tokens):.3g} at "
                f"{short_count(tokens)} tokens; the study has {rate:.3g}. Audit the study's rate: set it in the audit's "
                "study, as study.lr_reference or in the middle of its grid, and repeat action=report, "
                f"{OR_WITHOUT}"
            )


def audit_of_study(cells: Sequence[Cell]) -> Audit | None:
    """Return the audit in `study.lr_audit` after checking the file; None if the study has none.

    The learning rates of a study that tunes or varies them are not checked.

    Raises:
        DataError: if the file is missing, is not a learning-rate audit, or has another recipe or other learning rates.
    """
    study = cells[0].spec.config.study
    if study.lr_audit is None:
        return None
    path = Path(study.lr_audit)
    content = read_lr_audit_of_recipe(path, cells[0].spec.recipe_id)
    if study.lr_policy != "tuned" and "optimizer.lr" not in study.grid:
        rates = {(cell.spec.tokens, cell.spec.config.optimizer.lr) for cell in cells}
        _check_rates(path, content, rates)
    return parse_audit(content["families"])
