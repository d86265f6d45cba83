"""From finished runs to an answer, or to the reason why there is none yet.

load (`runs`) -> fit (`joint`, `power_law`) -> infer (`compare`) -> draw (`figures`) -> tell (`report`);
before any run, `power`. The names below are the library; each is imported when first used, since
planning must not wait for pandas.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "compare_families": "analysis.compare",
    "fit_joint": "analysis.joint",
    "fit_power_law": "analysis.power_law",
    "load_runs": "analysis.runs",
}
_MODULES = ("power", "report")

__all__ = ["compare_families", "fit_joint", "fit_power_law", "load_runs", "power", "report"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    if name in _MODULES:
        return import_module(f"analysis.{name}")
    raise AttributeError(f"module 'analysis' has no attribute {name!r}")
