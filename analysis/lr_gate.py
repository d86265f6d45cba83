"""An audit of learning rates as a file: what `study.lr_audit` names, read before any compute is spent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from slm.errors import DataError
from slm.files import read_json


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
