"""Chart data and encodings that several charts of a study share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from analysis.formatting import power_of_ten
from slm.charts import (
    Axis,
    Figure,
    Series,
    finite_or_none,
    forest,
)
from slm.formatting import short_count

if TYPE_CHECKING:
    from analysis.report.study_report import StudyReport

PER_TOKEN = "nats/token"
LOSS = f"loss ({PER_TOKEN})"


def families_of(report: StudyReport, *, interactive: bool = True) -> Series:
    """Return the encodings of the families: the same colours in all charts of a study."""
    return Series(tuple(report.families), interactive=interactive)


def budgets_of(values: Iterable[float], *, interactive: bool = True) -> Series:
    """Return the encodings of token budgets, in ascending order."""
    names = tuple(dict.fromkeys(map(budget_name, sorted(values))))
    return Series(names, is_ordered=True, title="tokens_per_param", interactive=interactive)


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    rows: list[Any] = table.to_dict("records")
    return rows


def budget_name(value: Any) -> str:
    return f"{float(value):g}"


def line_columns(family: str | None, budget: Any) -> dict[str, str]:
    """Return the columns that separate lines by family and token budget."""
    return {"series": str(family), "group": f"{family} {budget_name(budget)}"}


def run_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the chart data of a run: FLOPs, loss and tooltip."""
    lr = finite_or_none(row.get("peak_lr"))
    tip = {
        "run id": row["run_id"],
        "family": row["family"],
        "shape": row["shape"],
        "N": short_count(row["n"]),
        "tokens": short_count(row["tokens"]),
        "tokens_per_param": budget_name(row["tokens_per_param"]),
        "training FLOPs": power_of_ten(row["flops"], 3),
        LOSS: f"{row['loss_nats_per_token']:.4f}",
        "seed": str(row["seed"]),
        "peak learning rate": "not recorded" if lr is None else f"{lr:.3g}",
    }
    return {"x": row["flops"], "y": row["loss_nats_per_token"], "series": row["family"], "tip": tip}


def forest_row(
    label: str,
    value: float | None,
    ends: tuple[float, float] | None,
    colour: str,
    shape: str = "circle",
) -> dict[str, Any]:
    """Return the row of a forest plot for an estimate, an interval, or both."""
    text = "no estimate" if value is None else f"{value:+.4f}"
    low, high = ends or (None, None)
    if ends is not None:
        text += f" [{ends[0]:+.4f}, {ends[1]:+.4f}]"
    row = {"row": label, "x": value, "low": low, "high": high, "colour": colour, "mark": colour}
    return row | {"shape": shape, "tip": {"estimate": label, "value": text}}


def forest_figure(
    figure: tuple[str, str, str],
    rows: list[dict[str, Any]],
    title: str,
    *rules: float,
    within: list[dict[str, Any]] | None = None,
) -> Figure:
    """Return a forest plot with a solid line at 0 and dotted lines at `rules`, each if it lies inside.

    `figure`: its name, title and caption. `title`: of the axis, which includes 0 if there are rules, and otherwise
    the estimates of all rows and the intervals of the rows `within`; None: of all rows.
    """
    values = [row[key] for row in within or rows for key in ("low", "high", "x")]
    values += [row["x"] for row in rows]
    axis = Axis.around([*values, *([0.0] if rules else [])], title)
    dashes = {0.0: (1, 0)} | dict.fromkeys((rule for rule in rules if rule), (2, 4))
    inside = {value: dash for value, dash in dashes.items() if axis.low <= value <= axis.high}
    ends = [
        {key: axis.clip(row[key]) for key in ("low", "high") if row[key] is not None}
        for row in rows
    ]
    clipped = [row | end for row, end in zip(rows, ends, strict=True)]
    return Figure(*figure, forest(clipped, axis, inside), 30 + 26 * len(rows))
