"""`action=report`: the study's analysis of what is finished, and what is missing."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from slm.sweeps.study import Cell

log = logging.getLogger("slm")


def write_report(cells: Sequence[Cell]) -> None:
    """Write it beside the runs, and say which cells are not in it."""
    from analysis.khop import write_khop_report  # pandas and matplotlib take a second
    from analysis.lr_audit_report import write_lr_audit
    from analysis.lr_transfer import write_lr_report

    config = cells[0].spec.config
    study = Path(config.runs_dir) / config.study.name
    out, ids = study / "report", {cell.spec.run_id for cell in cells}
    kind = config.study.analysis
    if kind == "lr_transfer":
        write_lr_report(study, out, ids)
    elif kind == "lr_audit":
        write_lr_audit(study, out, ids, _common_rate(cells))
    elif kind == "khop":
        write_khop_report(study, out, ids)
    else:
        _write_families_report(cells, study, out)
    missing = Counter(cell.state for cell in cells if cell.state != "finished")
    if missing:
        states = ", ".join(f"{count} {state}" for state, count in missing.most_common())
        log.warning("not in the report: %d of %d cells (%s)", missing.total(), len(cells), states)


def _write_families_report(cells: Sequence[Cell], study: Path, out: Path) -> None:
    from analysis.loading import runs_of
    from analysis.report import report_on
    from analysis.runs import load_runs

    settings = cells[0].spec.config.study
    if any(cell.recorded is not None for cell in cells):  # some have no directory here
        finished = [cell.result for cell in cells if cell.state == "finished"]
        runs = runs_of(result for result in finished if result is not None)
    else:
        runs = load_runs(study, {cell.spec.run_id for cell in cells})
    deep, wide = settings.contrast or (None, None)
    audit = None if settings.lr_audit is None else Path(settings.lr_audit)
    report_on(runs, out, deep=deep, wide=wide, audit=audit, question=settings.question or "")


def _common_rate(cells: Sequence[Cell]) -> float:
    """The rate in the middle of the grid: the one that the audited study uses."""
    rates = sorted({cell.spec.config.optimizer.lr for cell in cells})
    return rates[len(rates) // 2]
