"""Analysis of finished runs: load them, fit scaling laws, compare families and write the report.

Packages in import order, each importing only the ones before it: `design` (what a design identifies), `runs`
(tables of runs) and `block` (the block model), `fit` (joint laws), `learning_rate` and `controls`, `planning`
(power and search of designs), `compare`, `report`, `study_actions` (called by sweep.py). The names in `__all__`
are the public interface. They are imported on first use: importing pandas
takes about a second, and planning does not need it.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_MODULE_OF_NAME = {
    "compare_families": "analysis.compare.families",
    "fit_block_model": "analysis.compare.fit_block",
    "fit_joint": "analysis.fit.joint",
    "fit_power_law": "analysis.fit.power_law",
    "fit_task": "analysis.fit.task_line",
    "load_runs": "analysis.runs.load",
}
_MODULES = {"power": "analysis.planning.power", "report": "analysis.report"}

__all__ = [
    "compare_families",
    "fit_block_model",
    "fit_joint",
    "fit_power_law",
    "fit_task",
    "load_runs",
    "power",
    "report",
]


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF_NAME:
        return getattr(import_module(_MODULE_OF_NAME[name]), name)
    if name in _MODULES:
        return import_module(_MODULES[name])
    raise AttributeError(f"module 'analysis' has no attribute {name!r}")
