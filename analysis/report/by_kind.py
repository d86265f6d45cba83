"""Select the report that `study.analysis` or `python -m analysis --of` names."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Literal

from analysis.controls.coordinate_check import write_coordinate_report
from analysis.controls.khop import write_khop_report
from analysis.learning_rate.audit_report import write_lr_audit
from analysis.learning_rate.transfer import write_lr_report
from analysis.runs.sources import collect_runs

Kind = Literal["lr_transfer", "lr_audit", "khop", "coordinates"]


def write_report_of(
    kind: Kind,
    source: Path,
    out: Path,
    only: Collection[str] | None = None,
) -> None:
    """Write the report of the given kind; `analysis.report.write` writes the remaining one, `families`.

    Args:
        source: a folder of runs; for `coordinates`, the file of a coordinate check.
        only: ids of the runs to use; None: all.
    """
    if kind == "lr_transfer":
        write_lr_report(source, out, only)
    elif kind == "lr_audit":
        write_lr_audit(*collect_runs(source, only), out)
    elif kind == "khop":
        write_khop_report(source, out, only)
    else:
        write_coordinate_report(source, out)
