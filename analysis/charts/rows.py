"""Chart data and encodings that several charts of a study share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from analysis.formatting import power_of_ten, short_count
from slm.charts import (
    Axis,
    Series,
    finite_or_none,
    forest,
)

if TYPE_CHECKING:
    from analysis.report.study_report import StudyReport

PER_TOKEN = "nats/token"
RUN_TOOLTIP = {
    "run_id": "run id",
    "series": "family",
    "shape": "shape",
    "n": "N (FLOPs per token / 6)",
    "tokens": "tokens",
    "tokens_per_param": "tokens_per_param",
    "flops": "training FLOPs",
    "loss": f"loss ({PER_TOKEN})",
    "seed": "seed",
    "lr": "peak learning rate",
}


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


def line_columns(family: Any, budget: Any) -> dict[str, str]:
    """Return the columns that separate lines by family and token budget."""
    return {"series": str(family), "group": f"{family} {budget_name(budget)}"}


def run_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the chart data of a run: FLOPs, loss, and the texts of `RUN_TOOLTIP`."""
    lr = finite_or_none(row.get("peak_lr"))
    return {
        "x": row["flops"],
        "y": row["loss_nats_per_token"],
        "series": row["family"],
        "run_id": row["run_id"],
        "shape": row["shape"],
        "n": short_count(row["n"]),
        "tokens": short_count(row["tokens"]),
        "tokens_per_param": budget_name(row["tokens_per_param"]),
        "flops": power_of_ten(row["flops"], 3),
        "loss": f"{row['loss_nats_per_token']:.4f}",
        "seed": str(row["seed"]),
        "lr": None if lr is None else f"{lr:.3g}",
    }


def run_tooltip(table: pd.DataFrame) -> dict[str, str]:
    return {key: title for key, title in RUN_TOOLTIP.items() if key != "lr" or "peak_lr" in table}


def forest_row(
    label: str,
    value: float | None,
    ends: tuple[float, float] | None,
    colour: str,
    shape: str = "circle",
) -> dict[str, Any]:
    text = "no estimate" if value is None else f"{value:+.4f}"
    if ends is not None:
        text += f" [{ends[0]:+.4f}, {ends[1]:+.4f}]"
    return {
        "row": label,
        "x": value,
        "low": None if ends is None else ends[0],
        "high": None if ends is None else ends[1],
        "colour": colour,
        "mark": colour,
        "shape": shape,
        "value": text,
    }


def forest_plot(
    rows: list[dict[str, Any]], axis: Axis, rules: Mapping[float, tuple[int, int]] | None = None
) -> Any:
    clipped = [
        {**row, **{end: axis.clip(row[end]) for end in ("low", "high") if row[end] is not None}}
        for row in rows
    ]
    zero = {0.0: (1, 0)} if axis.low <= 0 <= axis.high else {}
    return forest(
        clipped, axis, {"row": "", "value": axis.title}, rules=zero if rules is None else rules
    )


def rows_height(rows: list[dict[str, Any]]) -> int:
    return 30 + 26 * len(rows)
