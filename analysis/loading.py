"""Runs from wherever they are: a folder of run directories, a study's file of results, or a table."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection
from pathlib import Path

import pandas as pd

from analysis.lr_audit import Audit, audit_of
from analysis.lr_audit_report import read_gate
from analysis.runs import Runs, load_runs, runs_of
from slm.errors import DataError
from slm.sweeps.ledger import read_results

READERS = {
    ".csv": pd.read_csv,
    ".parquet": pd.read_parquet,
    ".jsonl": lambda path: pd.read_json(path, lines=True),
}


def load(
    path: Path, only: Collection[str] | None = None, *, pool_validation_sets: bool = False
) -> Runs:
    """Runs of a folder (`analysis.load_runs`), of a file of results (`study.results`), or of a CSV, Parquet
    or JSONL table with the columns that `analysis.answer.answer` names.

    Raises:
        DataError: if there is no finished run, or the file is none of these.
    """
    if not path.is_file():
        return load_runs(path, only, pool_validation_sets=pool_validation_sets)
    if _is_ledger(path):
        results = read_results(path).values()
        return runs_of(results, only, pool_validation_sets=pool_validation_sets)
    if path.suffix not in READERS:
        raise DataError(f"{path}: not a folder of runs, nor a file of {', '.join(READERS)}")
    table = READERS[path.suffix](path)
    return Runs(table if only is None else table[table["run_id"].isin(only)], Counter(), ())


def _is_ledger(path: Path) -> bool:
    """Whether its lines are results of runs in full."""
    if path.suffix != ".jsonl":
        return False
    with path.open(encoding="utf-8") as lines:
        try:
            return "schema_version" in json.loads(lines.readline())
        except json.JSONDecodeError:
            return False


def load_audit(path: Path) -> Audit:
    """The audit of learning rates that `study=lr_audit` wrote.

    Raises:
        DataError: if the file is not there or not such a one.
    """
    audit = audit_of(read_gate(path))
    assert audit is not None
    return audit
