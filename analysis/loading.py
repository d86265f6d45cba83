"""A study's file of results, and audits of learning rates, as a report takes them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path

import pandas as pd

from analysis.lr_audit import Audit, audit_of, audit_rates
from analysis.lr_audit_report import read_gate
from analysis.runs import NOT_A_CELL, Runs, _comparable, _row, _warnings, collect_runs, load_runs
from slm.errors import DataError
from slm.tracking.ledger import read_results
from slm.tracking.result import RunResult


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


def runs_of(
    results: Iterable[RunResult],
    only: Collection[str] | None = None,
    *,
    pool_validation_sets: bool = False,
) -> Runs:
    """Results of runs, wherever they were kept, as `analysis.load_runs` gives them.

    Raises:
        DataError: if none of them finished.
    """
    dropped: Counter[str] = Counter()
    rows = []
    for result in results:
        if only is not None and result.run_id not in only:
            dropped[NOT_A_CELL] += 1
        elif result.status != "finished":
            dropped[f"not finished ({result.status})"] += 1
        else:
            rows.append(_row(result))
    if not rows:
        raise DataError(f"no finished run in these results: {dict(dropped)}")
    table = pd.DataFrame(rows).sort_values(["family", "flops", "seed"], ignore_index=True)
    table = _comparable(table, dropped, pool_validation_sets=pool_validation_sets)
    return Runs(table, dropped, tuple(_warnings(table, dropped)))


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
    audit = audit_of(read_gate(path)["families"])
    assert audit is not None
    return audit
