"""Report of a learning-rate audit: lr_audit.json, lr_audit.md and lr_audit.png.

`families` in lr_audit.json is {family: {"interior": .., "penalty": .., "cost_of_2x": .., "passed": .., "cells": ..}}, the
worst case over the sizes and token budgets of a family, which `cells` lists. `study.lr_audit=FILE` checks another study against
the file; `analysis.compare_families(audit=...)` accepts the value of `families`. `fitted_rule` is the rule that the
best rates follow, or null (`analysis.learning_rate.rule_fit`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.formatting import count, format_dropped, format_nats
from analysis.learning_rate.audit import (
    MAX_PENALTY,
    Audit,
    ShapeAudit,
    audit_learning_rates,
    by_budget,
    middle_learning_rate,
)
from analysis.learning_rate.rule_fit import RuleFit, fit_rate_rule
from slm.charts import Axis, Figure, Series, layered, lines, panels, points
from slm.charts import rule as vertical_rule
from slm.errors import DataError
from slm.files import write_json, write_text
from slm.formatting import markdown_cell
from slm.studies.rate_rule import RateRule

FIGURE = "lr_audit.png"
FILE = "lr_audit.json"
SCHEMA_VERSION = 1
RULE_REFERENCE_TOKENS = 1_000_000  # of a fitted rule: the default of study.lr_reference_tokens


def write_lr_audit(
    table: pd.DataFrame, dropped: Counter[str], out: Path, rule: RateRule | None = None
) -> Audit:
    """Audit the learning rates of a study, and write the report to `out`.

    Args:
        table: finished runs over a grid of rates, as `collect_runs` returns them, with the dropped ones by reason.
        rule: the learning rates to audit, by training tokens; None: the middle rate of the grid for all.

    Raises:
        DataError: if the runs have several recipes.
    """
    if rule is None:
        rule = RateRule(middle_learning_rate(table["peak_lr"].tolist()), 1, 0.0)
    recipes = table["recipe_id"].unique()
    if len(recipes) > 1:
        listed = ", ".join(map(str, recipes))
        raise DataError(
            f"the runs have {len(recipes)} recipes ({listed}); an audit needs exactly one"
        )
    table = by_budget(table.assign(used_lr=table["tokens"].map(rule.rate)))
    audit = audit_learning_rates(table)
    families = {name: _worst_case(audit, name) for name in audit.families}
    tokens = table.groupby(["family", "shape"])["tokens"].first()
    best_rates = [
        (float(tokens[shape.family, shape.shape]), shape.best_lr)
        for shape in audit.shapes
        if shape.interior
    ]
    fit = fit_rate_rule(
        best_rates, RULE_REFERENCE_TOKENS if rule.is_constant else rule.reference_tokens
    )
    out.mkdir(parents=True, exist_ok=True)
    excess_loss(table, audit, rule).save(out / FIGURE)
    header = {
        "schema_version": SCHEMA_VERSION,
        "recipe_id": str(recipes[0]),
        "common_lr": rule.lr,
        "lr_tokens_exponent": rule.exponent,
        "lr_reference_tokens": rule.reference_tokens,
    }
    fitted = None if fit is None else fit.as_dict()
    write_json(out / FILE, {**header, "fitted_rule": fitted, "families": families})
    report = markdown(audit, families, rule, len(table), dropped, fit=fit)
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
        "cells": [{"n_flop": n, "tokens": tokens} for n, tokens in audit.cells.get(family, ())],
    }


def excess_loss(table: pd.DataFrame, audit: Audit, rule: RateRule) -> Figure:
    """Plot loss minus lowest loss against the learning rate relative to the study's: one panel per family."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for shape in audit.shapes:
        runs = table[(table["family"] == shape.family) & (table["shape"] == shape.shape)]
        relative = runs["peak_lr"] / runs["used_lr"]
        losses = runs["loss_nats_per_token"].groupby(relative).mean()
        rows.setdefault(shape.family, []).extend(
            {
                "x": rate,
                "y": loss - losses.min(),
                "series": shape.shape,
                "group": shape.shape,
                "tip": {
                    "shape": shape.shape,
                    "relative rate": f"{rate:.3g}",
                    "loss": f"{loss:.4f}",
                },
            }
            for rate, loss in losses.items()
        )
    x = Axis.around(
        [1.0, *(row["x"] for family in rows.values() for row in family)],
        "peak learning rate / learning rate of the study",
        log=True,
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
            vertical_rule(x=1.0),
            lines(rows[family], x, y, series),
            points(rows[family], x, y, series),
            series=series,
        )
    return Figure(
        "lr_audit",
        "Excess loss against learning rate by shape",
        f"One line per shape and token budget. Vertical line: learning rate of the study, {rule}.",
        panels(charts),
    )


def markdown(
    audit: Audit,
    families: Mapping[str, Mapping[str, Any]],
    rule: RateRule,
    runs: int,
    dropped: Counter[str],
    *,
    fit: RuleFit | None = None,
) -> str:
    """Return the content of lr_audit.md."""
    lines = [
        f"# Learning-rate audit of the learning rate {rule}",
        "",
        f"![Excess loss against learning rate, per family, size and token budget]({FIGURE})",
        "",
        "A family passes if the optimum of every shape lies inside the grid and the penalty of the audited "
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
        "audited LR",
        "penalty, nats/token",
        "cost of a factor 2, nats/token",
    ]
    lines += ["", f"| {' | '.join(headings)} |"]
    lines += ["|" + " --- |" * len(headings), *(_row(shape) for shape in audit.shapes)]
    if fit is not None:
        lines += ["", fit.describe()]
        if fit.falls and (rule.is_constant or audit.failed):
            lines += ["", f"To use this rule, set `{fit.settings()}`, and audit it."]
    return "\n".join(
        [*lines, "", f"{count(runs, 'run')}; left out: {format_dropped(dropped)}.", ""]
    )


def _row(shape: ShapeAudit) -> str:
    edge = "" if shape.interior else " (edge of the grid)"
    return (
        f"| {markdown_cell(str(shape.family))} | {markdown_cell(str(shape.shape))} | {shape.best_lr:.2e}{edge} | "
        f"{shape.used_lr:.2e} | {format_nats(shape.penalty)} "
        f"| {format_nats(shape.cost_of_two)} |"
    )
