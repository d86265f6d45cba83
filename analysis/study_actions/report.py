"""`action=report`: analyze the finished cells of a study."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.learning_rate.gate import audit_of_study
from analysis.study_actions.partial import describe_states, partial_of
from analysis.study_actions.speeds import speed_command, speed_file
from slm.errors import DataError
from slm.studies.cells import Cell, check_not_all_diverged
from slm.studies.left_out import describe_left_out, group_left_out
from slm.studies.rate_rule import RateRule

if TYPE_CHECKING:
    from analysis.report.study_report import StudyReport

log = logging.getLogger("slm")


def write_report(cells: Sequence[Cell]) -> StudyReport | None:
    """Write the study's report to RUNS_DIR/STUDY/report, and log how many cells are not in it.

    Return the comparison of families, or None if the study has another kind of report.

    Raises:
        DataError: if no cell is finished, or none of a family that is compared.
    """
    from analysis.report.by_kind import write_report_of  # late: imports pandas

    config = cells[0].spec.config
    study = Path(config.runs_dir) / config.study.name
    out, ids = study / "report", {cell.spec.run_id for cell in cells}
    kind = config.study.analysis
    report = None
    try:
        check_not_all_diverged(cells)
        if kind == "families":
            report = _report_on_families(cells, out)
        elif kind == "lr_audit":
            _report_on_learning_rates(cells, out)
        else:
            write_report_of(kind, study, out, ids)
    except DataError:
        _warn_of_earlier_report(out)
        raise
    missing = [cell for cell in cells if not _is_reported(cell)]
    if missing:
        states = describe_states(missing)
        log.warning("not in the report: %d of %d cells (%s)", len(missing), len(cells), states)
    return report


def _report_on_learning_rates(cells: Sequence[Cell], out: Path) -> None:
    """Audit the rates of the study's rule, or the middle rate of the grid, with the results of the finished cells.

    Raises:
        DataError: if no cell is finished.
    """
    from analysis.learning_rate.audit import middle_learning_rate
    from analysis.learning_rate.audit_report import write_lr_audit
    from analysis.runs.result_table import results_table

    results = [cell.result for cell in cells if _is_reported(cell) and cell.result is not None]
    if not results:
        raise DataError("no finished cell yet; action=run trains the cells")
    config = cells[0].spec.config
    rule = RateRule.of(config)
    if config.study.lr_reference is None:
        grid = [cell.spec.config.optimizer.lr for cell in cells]
        rule = replace(rule, lr=middle_learning_rate(grid))
    missing = Counter(str(cell.state) for cell in cells if not _is_reported(cell))
    write_lr_audit(results_table(results), missing, out, rule)


def _warn_of_earlier_report(out: Path) -> None:
    """Log that the files of an earlier report are still there, with their date."""
    times = [path.stat().st_mtime for path in out.glob("*")]
    if times:
        date = datetime.fromtimestamp(max(times)).strftime("%Y-%m-%d %H:%M")
        log.warning("%s: these files are of an earlier state of the study, written %s", out, date)


def _is_reported(cell: Cell) -> bool:
    return cell.state == "finished" and cell.result is not None


def _report_on_families(cells: Sequence[Cell], out: Path) -> StudyReport:
    """Compare the two families of the contrast, with the results that the finished cells carry.

    Raises:
        DataError: if no cell is finished, or none of a family that is compared.
    """
    from analysis.report.write import report_on
    from analysis.runs.load import runs_from_results
    from slm.studies.cells import contrast_of

    study = cells[0].spec.config.study
    groups = group_left_out(cells)
    notes = describe_left_out(cells, groups)
    reported = [cell for cell in cells if _is_reported(cell)]
    if not reported:
        states = f"no finished cell ({describe_states(cells)}); run the study first (action=run)"
        raise DataError("\n".join([f"study {study.name}: {states}", *notes]))
    partial = partial_of(reported, [cell for cell in cells if not _is_reported(cell)])
    results = [result for cell in reported if (result := cell.result) is not None]
    deep, wide = contrast_of(cells)
    audit = audit_of_study(cells)
    runs = runs_from_results(results)
    dropped = Counter(runs.dropped)
    if groups:
        dropped["in no cell of the study"] = sum(map(len, groups.values()))
    return report_on(
        replace(runs, dropped=dropped, warnings=(*runs.warnings, *notes)),
        out,
        deep=deep,
        wide=wide,
        audit=audit,
        question=study.question,
        run_directories=out.parent,
        speed=speed_file(cells[0].spec.config),
        partial=partial,
        speed_command=speed_command(cells[0].spec.config),
    )
