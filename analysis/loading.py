"""A study's file of results, and audits of learning rates, as a report takes them."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

import pandas as pd

from analysis.lr_audit import Audit, audit_of, audit_rates
from analysis.lr_gate import gate_of_recipe, read_gate
from analysis.runs import Runs, collect_runs, load_runs, runs_of
from slm.tracking.ledger import read_results

__all__ = ["load", "load_audit", "runs_of"]


def load(
    source: Path | str,
    only: Collection[str] | None = None,
    *,
    pool_validation_sets: bool = False,
) -> Runs:
    """Runs of all that `analysis.load_runs` reads, or of a file of results (`study.results`).

    Raises:
        DataError: if there is no finished run.
    """
    if isinstance(source, Path) and _is_ledger(source):
        results = read_results(source).values()
        return runs_of(results, only, pool_validation_sets=pool_validation_sets)
    return load_runs(source, only, pool_validation_sets=pool_validation_sets)


def _is_ledger(path: Path) -> bool:
    """Whether its lines are results of runs in full."""
    if path.suffix != ".jsonl" or not path.is_file():
        return False
    with path.open(encoding="utf-8") as lines:
        try:
            first = json.loads(lines.readline())
        except json.JSONDecodeError:
            return False
    return isinstance(first, dict) and {"schema_version", "run_id", "trunk_id"} <= set(first)


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
