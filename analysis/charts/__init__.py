"""Charts of a study report. Each function returns a `Figure`, or None if the study lacks its data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from analysis.charts.exponents import exponent_difference, influence
from analysis.charts.loss import level, loss_against_flops, overview
from analysis.charts.pareto import pareto_figures
from analysis.charts.shapes import residuals, shape_curve
from slm.charts import Figure, loss_curves

if TYPE_CHECKING:
    from analysis.report.study_report import StudyReport

__all__ = [
    "exponent_difference", "influence", "level", "loss_against_flops", "overview",
    "pareto_figures", "report_figures", "residuals", "shape_curve",
]  # fmt: skip


def report_figures(report: StudyReport) -> list[Figure]:
    """Return the figures of a report in the order of its sections, without those that the study lacks."""
    figures = (
        loss_against_flops(report),
        level(report),
        *pareto_figures(report),
        shape_curve(report),
        exponent_difference(report),
        influence(report, "level"),
        influence(report, "d_alpha"),
        residuals(report),
        loss_curves(report.loss_curves, report.families),
        loss_curves(report.loss_curves, report.families, against="flops", name="loss_curves_flops"),
    )
    return [figure for figure in figures if figure is not None]
