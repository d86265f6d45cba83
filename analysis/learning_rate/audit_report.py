"""The report of a study of learning rates that is to stand before another study's verdict.

`lr_audit.json` holds {family: {"interior": .., "penalty": .., "cost_of_2x": ..}}, the worst over the family's
sizes and budgets: what `study.lr_audit` names and `analysis.compare_families(audit=...)` takes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from itertools import cycle
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from analysis.formatting import count, format_dropped, format_nats
from analysis.learning_rate.audit import MAX_PENALTY, Audit, ShapeAudit, audit_rates, middle_rate
from analysis.plotting import COLOURS, LINES, MARKERS
from analysis.runs.load import collect_runs
from slm.errors import DataError
from slm.files import write_json, write_text

FIGURE = "lr_audit.png"
FILE = "lr_audit.json"
SCHEMA_VERSION = 1


def write_lr_audit(
    folder: Path, out: Path, only: Collection[str] | None = None, common_lr: float | None = None
) -> Audit:
    """Judge one common rate, by default the middle one of the grid, by the runs below a folder; write the
    gate, a text and a figure to `out`.

    Raises:
        DataError: if there is no finished run, or runs of several recipes.
    """
    table, dropped = collect_runs(folder, only)
    if common_lr is None:
        common_lr = middle_rate(table["peak_lr"].tolist())
    recipes = table["recipe_id"].unique()
    if len(recipes) > 1:
        listed = ", ".join(map(str, recipes))
        raise DataError(f"{folder}: runs of {len(recipes)} recipes ({listed}); an audit is of one")
    budgets = table["tokens_per_param"].map(" at tokens_per_param {:g}".format)
    table["shape"] += budgets
    audit = audit_rates(table, common_lr)
    families = {name: _worst(audit, name) for name in audit.families}
    out.mkdir(parents=True, exist_ok=True)
    draw(table, audit, common_lr).savefig(out / FIGURE, dpi=150)
    gate = {"schema_version": SCHEMA_VERSION, "recipe_id": str(recipes[0]), "common_lr": common_lr}
    write_json(out / FILE, {**gate, "families": families})
    told = markdown(audit, families, common_lr, len(table), dropped)
    write_text(out / "lr_audit.md", told)
    print(told)
    return audit


def _worst(audit: Audit, family: str) -> dict[str, Any]:
    own = [shape for shape in audit.shapes if shape.family == family]
    return {
        "interior": all(shape.interior for shape in own),
        "penalty": max((s.penalty for s in own if s.penalty is not None), default=None),
        "cost_of_2x": max((s.cost_of_two for s in own if s.cost_of_two is not None), default=None),
        "passed": audit.passed(family),
    }


def draw(table: pd.DataFrame, audit: Audit, common_lr: float) -> Figure:
    """A panel a family: what each rate costs against the best one, for every size and budget."""
    figure = Figure(figsize=(3.9 * len(audit.families), 4.0), layout="constrained")
    panels = figure.subplots(1, len(audit.families), sharey=True, squeeze=False)[0]
    for axes, family in zip(panels, audit.families, strict=True):
        own = [shape for shape in audit.shapes if shape.family == family]
        styles = zip(own, cycle(COLOURS), cycle(MARKERS), cycle(LINES), strict=False)
        for shape, colour, marker, line in styles:
            rows = table[(table["family"] == family) & (table["shape"] == shape.shape)]
            losses = rows.groupby("peak_lr")["loss_nats_per_token"].mean()
            axes.plot(
                losses.index, losses - losses.min(), color=colour, marker=marker, ls=line, ms=4,
                label=shape.shape,
            )  # fmt: skip
        axes.axvline(common_lr, color="black", lw=1.2)
        axes.set(xscale="log", xlabel="peak learning rate (black: the common one)")
        verdict = "passed" if audit.passed(family) else "FAILED"
        axes.set_title(f"{family}: {verdict}", loc="left", fontsize=10)
        axes.grid(alpha=0.25)
        axes.legend(fontsize=7, frameon=False)
    panels[0].set_ylabel("loss above that of the best rate (nats/token)")
    return figure


def markdown(
    audit: Audit,
    families: Mapping[str, Mapping[str, Any]],
    common_lr: float,
    runs: int,
    dropped: Counter[str],
) -> str:
    lines = [
        f"# Does a learning rate of {common_lr:g} serve every family?",
        "",
        f"![What each rate costs, per family, size and budget]({FIGURE})",
        "",
        f"A family passes if every optimum lies inside of the grid and the common rate costs at most "
        f"{MAX_PENALTY:g} nats/token.",
        "",
        "| family | audit | the common rate costs at most | a rate twice off costs at most |",
        "| --- | --- | --- | --- |",
    ]
    for name, found in families.items():
        verdict = "passed" if found["passed"] else f"FAILED: {audit.failed.get(name, '')}"
        lines.append(
            f"| {name} | {verdict} | {format_nats(found['penalty'])} | {format_nats(found['cost_of_2x'])} |"
        )
    lines += ["", "| family | shape | best rate | the common rate costs | a rate twice off costs |"]
    lines += ["| --- | --- | --- | --- | --- |", *(_row(shape) for shape in audit.shapes)]
    return "\n".join(
        [*lines, "", f"{count(runs, 'run')}; left out: {format_dropped(dropped)}.", ""]
    )


def _row(shape: ShapeAudit) -> str:
    edge = "" if shape.interior else " (edge)"
    return (
        f"| {shape.family} | {shape.shape} | {shape.best_lr:.2e}{edge} | {format_nats(shape.penalty)} "
        f"| {format_nats(shape.cost_of_two)} |"
    )
