"""`action=report`: analyze the finished cells of a study."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.learning_rate.gate import check_study_audit
from analysis.study_actions.speeds import speed_file
from slm.errors import DataError
from slm.studies.cells import Cell, check_not_all_diverged

if TYPE_CHECKING:
    from analysis.report.study_report import StudyReport

log = logging.getLogger("slm")


def write_report(cells: Sequence[Cell]) -> StudyReport | None:
    """Write the study's report to RUNS_DIR/STUDY/report, and log how many cells are not in it.

    Return the comparison of families, or None if the study has another kind of report.

    Raises:
        DataError: if no cell is finished.
    """
    from analysis.learning_rate.audit import middle_learning_rate
    from analysis.report.by_kind import write_report_of  # late: imports pandas

    check_not_all_diverged(cells)
    config = cells[0].spec.config
    study = Path(config.runs_dir) / config.study.name
    out, ids = study / "report", {cell.spec.run_id for cell in cells}
    kind = config.study.analysis
    report = None
    if kind == "families":
        report = _report_on_families(cells, out)
    else:
        grid = [cell.spec.config.optimizer.lr for cell in cells]
        write_report_of(kind, study, out, ids, common_lr=middle_learning_rate(grid))
    missing = Counter(
        _why_missing(cell) for cell in cells if cell.result is None or cell.state != "finished"
    )
    if missing:
        states = ", ".join(f"{count} {state}" for state, count in missing.most_common())
        log.warning("not in the report: %d of %d cells (%s)", missing.total(), len(cells), states)
    return report


def _why_missing(cell: Cell) -> str:
    return "with an unreadable result.json" if cell.state == "finished" else cell.state


def _report_on_families(cells: Sequence[Cell], out: Path) -> StudyReport:
    """Compare the two families of the contrast, with the results that the finished cells carry.

    Raises:
        DataError: if no cell is finished.
    """
    from analysis.report.write import report_on
    from analysis.runs.load import runs_from_results
    from slm.studies.cells import contrast_of

    study = cells[0].spec.config.study
    finished = [cell.result for cell in cells if cell.state == "finished"]
    results = [result for result in finished if result is not None]
    if not results:
        raise DataError(f"study {study.name}: no finished cell; run the study first (action=run)")
    deep, wide = contrast_of(cells)
    audit = check_study_audit(cells)
    return report_on(
        runs_from_results(results),
        out,
        deep=deep,
        wide=wide,
        audit=audit,
        question=study.question,
        run_directories=out.parent,
        speed=speed_file(cells[0].spec.config),
    )
