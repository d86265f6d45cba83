"""`action=report`: the study's analysis of what is finished, and what is missing."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from slm.errors import DataError
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
        _report_on_families(cells, out)
    missing = Counter(cell.state for cell in cells if cell.state != "finished")
    if missing:
        states = ", ".join(f"{count} {state}" for state, count in missing.most_common())
        log.warning("not in the report: %d of %d cells (%s)", missing.total(), len(cells), states)


def _report_on_families(cells: Sequence[Cell], out: Path) -> None:
    """Compare the families of the contrast, with runs of this folder and of the study's file of results."""
    from analysis.loading import runs_of
    from analysis.report import report_on
    from hydra_plugins.slm_study.planning import contrast_of

    study = cells[0].spec.config.study
    found = [cell.result for cell in cells if cell.state == "finished"]
    results = [result for result in found if result is not None]
    if not results:
        raise DataError(f"study {study.name}: no finished cell yet; action=run makes some")
    deep, wide = contrast_of(cells)
    audit = audit_of_study(cells)
    report_on(runs_of(results), out, deep=deep, wide=wide, audit=audit, question=study.question)


def audit_of_study(cells: Sequence[Cell]) -> Path | None:
    """The gate that the study names, if it is there and of this study's recipe.

    Raises:
        DataError: if it is of another recipe, whose learning rates say nothing of these.
    """
    from analysis.lr_gate import gate_of_recipe

    config = cells[0].spec.config
    if config.study.lr_audit is None:
        return None
    path = Path(config.study.lr_audit)
    gate_of_recipe(path, cells[0].spec.recipe_id)
    return path


def _common_rate(cells: Sequence[Cell]) -> float:
    """The rate in the middle of the grid: the one that the audited study uses."""
    rates = sorted({cell.spec.config.optimizer.lr for cell in cells})
    return rates[len(rates) // 2]
