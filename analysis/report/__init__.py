"""Reports of finished runs: report.html, report.md and results.json, written from one analysis."""

from analysis.report.write import report_on, write_report

__all__ = ["report_on", "write_report"]
