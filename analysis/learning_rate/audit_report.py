"""Report of a learning-rate audit: lr_audit.json, lr_audit.md and lr_audit.png.

`families` in lr_audit.json is {family: {"interior": .., "penalty": .., "cost_of_2x": .., "passed": ..}}, the
worst case over the sizes and token budgets of a family. `study.lr_audit=FILE` checks another study against
the file; `analysis.compare_families(audit=...)` accepts the value of `families`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.formatting import count, format_dropped, format_nats
from analysis.learning_rate.audit import (
    MAX_PENALTY,
    Audit,
    ShapeAudit,
    audit_learning_rates,
    middle_learning_rate,
)
from analysis.runs.sources import collect_runs
from slm.charts import Axis, Figure, Series, layered, lines, panels, points, rule
from slm.errors import DataError
from slm.files import write_json, write_text
from slm.formatting import markdown_cell

FIGURE = "lr_audit.png"
FILE = "lr_audit.json"
SCHEMA_VERSION = 1


def write_lr_audit(
    folder: Path, out: Path, only: Collection[str] | None = None, common_lr: float | None = None
) -> Audit:
    """Audit the common learning rate with the runs below a folder, and write the report to `out`.

    Args:
        only: ids of the runs to use; None: all.
        common_lr: the learning rate to audit; None: the middle one of the grid.

    Raises:
        DataError: if no run is finished, or the runs have several recipes.
    """
    table, dropped = collect_runs(folder, only)
    if common_lr is None:
        common_lr = middle_learning_rate(table["peak_lr"].tolist())
    recipes = table["recipe_id"].unique()
    if len(recipes) > 1:
        listed = ", ".join(map(str, recipes))
        raise DataError(
            f"{folder}: the runs have {len(recipes)} recipes ({listed}); an audit needs exactly one"
        )
    table["shape"] += table["tokens_per_param"].map(" at tokens_per_param {:g}".format)
    audit = audit_learning_rates(table, common_lr)
    families = {name: _worst_case(audit, name) for name in audit.families}
    out.mkdir(parents=True, exist_ok=True)
    excess_loss(table, audit, common_lr).save(out / FIGURE)
    header = {
        "schema_version": SCHEMA_VERSION,
        "recipe_id": str(recipes[0]),
        "common_lr": common_lr,
    }
    write_json(out / FILE, {**header, "families": families})
    report = markdown(audit, families, common_lr, len(table), dropped)
    write_text(out / "lr_audit.md", report)
    print(report)
    return audit


def _worst_case(audit: Audit, family: str) -> dict[str, Any]:
    shapes = [shape for shape in audit.shapes if shape.family == family]
    costs = [shape.cost_of_two for shape in shapes if shape.cost_of_two is not None]
    penalties = [shape.penalty for shape in shapes if shape.penalty is not None]
    return {
        "interior": all(shape.interior for shape in shapes),
        "penalty": max(penalties, default=None),
        "cost_of_2x": max(costs, default=None),
        "passed": audit.passed(family),
    }


def excess_loss(table: pd.DataFrame, audit: Audit, common_lr: float) -> Figure:
    """Plot loss minus lowest loss against the learning rate: one panel per family, one line per shape."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for shape in audit.shapes:
        runs = table[(table["family"] == shape.family) & (table["shape"] == shape.shape)]
        losses = runs.groupby("peak_lr")["loss_nats_per_token"].mean()
        rows.setdefault(shape.family, []).extend(
            {
                "x": rate,
                "y": loss - losses.min(),
                "series": shape.shape,
                "group": shape.shape,
                "tip": {"shape": shape.shape, "learning rate": f"{rate:g}", "loss": f"{loss:.4f}"},
            }
            for rate, loss in losses.items()
        )
    rates = sorted(table["peak_lr"].unique())
    x = Axis.around(
        [*rates, common_lr], "peak learning rate", log=True, kind="scientific", ticks=rates
    )
    y = Axis.around(
        [row["y"] for family in rows.values() for row in family],
        "loss minus lowest loss (nats/token)",
    )
    charts = {}
    for family in audit.families:
        series = Series(
            tuple(dict.fromkeys(row["series"] for row in rows[family])), interactive=False
        )
        verdict = "passed" if audit.passed(family) else "FAILED"
        charts[f"{family}: {verdict}"] = layered(
            rule(x=common_lr),
            lines(rows[family], x, y, series),
            points(rows[family], x, y, series),
            series=series,
        )
    return Figure(
        "lr_audit",
        "Excess loss against learning rate by shape",
        f"One line per shape and token budget. Vertical line: common learning rate {common_lr:g}.",
        panels(charts),
    )


def markdown(
    audit: Audit,
    families: Mapping[str, Mapping[str, Any]],
    common_lr: float,
    runs: int,
    dropped: Counter[str],
) -> str:
    """Return the content of lr_audit.md."""
    lines = [
        f"# Learning-rate audit of the common learning rate {common_lr:g}",
        "",
        f"![Excess loss against learning rate, per family, size and token budget]({FIGURE})",
        "",
        "A family passes if the optimum of every shape lies inside the grid and the penalty of the common "
        f"learning rate is at most {MAX_PENALTY:g} nats/token.",
        "",
        "| family | audit | largest penalty, nats/token | largest cost of a factor 2, nats/token |",
        "| --- | --- | --- | --- |",
    ]
    for name, worst in families.items():
        verdict = "passed" if worst["passed"] else f"FAILED: {audit.failed.get(name, '')}"
        lines.append(
            f"| {markdown_cell(str(name))} | {markdown_cell(verdict)} | {format_nats(worst['penalty'])} | {format_nats(worst['cost_of_2x'])} |"
        )
    headings = [
        "family",
        "shape",
        "best LR",
        "penalty, nats/token",
        "cost of a factor 2, nats/token",
    ]
    lines += ["", f"| {' | '.join(headings)} |"]
    lines += ["| --- | --- | --- | --- | --- |", *(_row(shape) for shape in audit.shapes)]
    return "\n".join(
        [*lines, "", f"{count(runs, 'run')}; left out: {format_dropped(dropped)}.", ""]
    )


def _row(shape: ShapeAudit) -> str:
    edge = "" if shape.interior else " (edge of the grid)"
    return (
        f"| {markdown_cell(str(shape.family))} | {markdown_cell(str(shape.shape))} | {shape.best_lr:.2e}{edge} | {format_nats(shape.penalty)} "
        f"| {format_nats(shape.cost_of_two)} |"
    )
