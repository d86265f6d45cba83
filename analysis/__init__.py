"""From finished runs to an answer, or to the reason why there is none yet.

`runs` (tables of runs) and `design` (power, before any run) -> `fit` -> `learning_rate`, `controls` ->
`compare` -> `report` -> `study_actions` (what sweep.py calls); each package imports only those before it.
The names below are the library. Each is imported when it is first used, because pandas takes a second to
import and planning does not need it.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "compare_families": "analysis.compare.families",
    "fit_joint": "analysis.fit.joint",
    "fit_power_law": "analysis.fit.power_law",
    "load_runs": "analysis.runs.load",
}
_MODULES = {"power": "analysis.design.power", "report": "analysis.report"}

__all__ = ["compare_families", "fit_joint", "fit_power_law", "load_runs", "power", "report"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    if name in _MODULES:
        return import_module(_MODULES[name])
    raise AttributeError(f"module 'analysis' has no attribute {name!r}")
