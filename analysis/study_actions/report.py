"""`action=report`: the study's analysis of what is finished, and what is missing."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from analysis.learning_rate.gate import audit_of_study
from slm.errors import DataError
from slm.studies.cells import Cell

log = logging.getLogger("slm")


def write_report(cells: Sequence[Cell]) -> None:
    """Write it beside the runs, and say which cells are not in it."""
    from analysis.learning_rate.audit import middle_rate
    from analysis.report.by_kind import write_report_of  # pandas and matplotlib take a second

    config = cells[0].spec.config
    study = Path(config.runs_dir) / config.study.name
    out, ids = study / "report", {cell.spec.run_id for cell in cells}
    kind = config.study.analysis
    if kind == "families":
        _report_on_families(cells, out)
    else:
        rates = [cell.spec.config.optimizer.lr for cell in cells]
        write_report_of(kind, study, out, ids, common_lr=middle_rate(rates))
    missing = Counter(cell.state for cell in cells if cell.state != "finished")
    if missing:
        states = ", ".join(f"{count} {state}" for state, count in missing.most_common())
        log.warning("not in the report: %d of %d cells (%s)", missing.total(), len(cells), states)


def _report_on_families(cells: Sequence[Cell], out: Path) -> None:
    """Compare the families of the contrast, with runs of this folder and of the study's file of results."""
    from analysis.report.write import report_on
    from analysis.runs.load import runs_from_results
    from slm.studies.cells import contrast_of

    study = cells[0].spec.config.study
    found = [cell.result for cell in cells if cell.state == "finished"]
    results = [result for result in found if result is not None]
    if not results:
        raise DataError(f"study {study.name}: no finished cell yet; action=run makes some")
    deep, wide = contrast_of(cells)
    audit = audit_of_study(cells)
    report_on(
        runs_from_results(results), out, deep=deep, wide=wide, audit=audit, question=study.question
    )
