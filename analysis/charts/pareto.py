"""Pareto charts: loss of each shape against decode latency, decoding memory and training FLOPs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from analysis.charts.rows import PER_TOKEN, budget_name, families_of, records
from analysis.compare.latency_result import format_seconds
from analysis.formatting import power_of_ten
from slm.architecture.shape_solver import MATCH_TOLERANCE
from slm.charts import INK, Axis, Figure, data, layered, lines, points
from slm.charts.encodings import Kind
from slm.charts.pareto import frontier, frontier_steps
from slm.formatting import BYTE_UNITS, in_one_unit, short_count

if TYPE_CHECKING:
    from analysis.report.study_report import StudyReport

RING = 150  # size of the mark around a shape of the frontier


def pareto_figures(report: StudyReport) -> list[Figure]:
    """Return the charts of the shapes whose decode latency is measured; none without measured speeds."""
    latency = report.latency
    if latency is None or latency.decoding is None:
        return []
    rows = _shapes(report)
    if not rows:
        return []
    setting = latency.decoding.setting
    chosen = (
        f"Each mark is a shape, mean over seeds, at tokens_per_param {budget_name(rows[0]['budget'])}; thin lines follow N. "
        f"Circles and steps: no other shape has a lower loss at the same (within {MATCH_TOLERANCE:.0%}) or a lower"
    )
    largest_ms = max(row["seconds"] for row in rows) * 1e3
    scale, unit = (1e3, "ms") if largest_ms >= 1 else (1e6, "µs")
    byte_unit, _ = in_one_unit([row["memory_bytes"] for row in rows], BYTE_UNITS)
    size = dict(BYTE_UNITS)[byte_unit]
    tokens = (setting.prompt_tokens or 0) + (setting.new_tokens or 0)
    return [
        _figure(
            report,
            "latency",
            (
                "Loss against decode latency",
                f"{chosen} latency. Measured on {setting.conditions()}.",
            ),
            [row | {"x": row["seconds"] * scale} for row in rows],
            (f"decode latency ({unit}/token)", "number"),
        ),
        _figure(
            report,
            "memory",
            (
                "Loss against decoding memory",
                f"{chosen} memory. Memory: bytes of all weights and of the KV cache of {tokens} tokens in "
                f"{setting.dtype} at batch size {setting.batch_size}, computed from the shape; not the memory of a process.",
            ),
            [row | {"x": row["memory_bytes"] / size} for row in rows],
            (f"weights and KV cache ({byte_unit})", "number"),
        ),
        _figure(
            report,
            "flops",
            (
                "Loss against training FLOPs of the same shapes",
                f"{chosen} number of FLOPs.",
            ),
            [row | {"x": row["flops"]} for row in rows],
            ("training FLOPs", "flops"),
        ),
    ]


def _shapes(report: StudyReport) -> list[dict[str, Any]]:
    """Return a row per measured shape at the token budget that most of them have, the largest one of several."""
    assert report.latency is not None
    measured = {(row["family"], row["shape"]): row for row in report.latency.shapes}
    keys = ["tokens_per_param", "family", "shape"]
    means = report.table.groupby(keys, sort=False)[["n", "flops", "loss_nats_per_token"]].mean()
    cells = [
        {**row, **measured[row["family"], row["shape"]]}
        for row in records(means.reset_index())
        if (row["family"], row["shape"]) in measured
    ]
    budgets = [cell["tokens_per_param"] for cell in cells]
    budget = max(budgets, key=lambda value: (budgets.count(value), value), default=None)
    return [_row(cell) for cell in cells if cell["tokens_per_param"] == budget]


def _row(cell: dict[str, Any]) -> dict[str, Any]:
    unit, (memory,) = in_one_unit([cell["memory_bytes"]], BYTE_UNITS)
    tip = {
        "family": cell["family"],
        "shape": cell["shape"],
        "N (FLOPs per token / 6)": short_count(cell["n"]),
        f"loss ({PER_TOKEN})": f"{cell['loss_nats_per_token']:.4f}",
        "decode latency": f"{format_seconds(cell['seconds'])}/token",
        "weights and KV cache": f"{memory} {unit}",
        "training FLOPs": power_of_ten(cell["flops"], 3),
    }
    names = "seconds", "memory_bytes", "flops", "n"
    return {
        **{name: cell[name] for name in names},
        "y": cell["loss_nats_per_token"],
        "series": cell["family"],
        "group": cell["family"],
        "budget": cell["tokens_per_param"],
        "tip": tip,
    }


def pareto_front(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the frontier; x values that differ by up to MATCH_TOLERANCE are equal (`slm.charts.pareto.frontier`)."""
    return frontier(rows, lambda row: (row["x"], row["y"]), tolerance=(MATCH_TOLERANCE, 0))


def _figure(
    report: StudyReport,
    name: str,
    words: tuple[str, str],
    rows: list[dict[str, Any]],
    axis: tuple[str, Kind],
) -> Figure:
    import altair

    families = families_of(report)
    rows = [{key: row[key] for key in ("x", "y", "series", "group", "n", "tip")} for row in rows]
    x = Axis.around([row["x"] for row in rows], axis[0], log=True, kind=axis[1])
    y = Axis.around([row["y"] for row in rows], f"validation loss ({PER_TOKEN})", log=True)
    chart = layered(
        _steps(pareto_front(rows), x, y),
        lines(rows, x, y, families, width=1).encode(order=altair.Order("n", type="quantitative")),
        points(rows, x, y, families, size=55),
        series=families,
    )
    return Figure(f"pareto_{name}", *words, chart, 320)


def _steps(front: list[dict[str, Any]], x: Axis, y: Axis) -> Any:
    """Return the frontier as steps, up to the right end of the chart, with a ring around its shapes."""
    import altair

    places = [{"x": row["x"], "y": row["y"]} for row in front]
    steps = frontier_steps([(row["x"], row["y"]) for row in front], x, y, width=5, opacity=0.25)
    rings = altair.Chart(data(places)).mark_point(filled=False, size=RING, strokeWidth=1.5)
    return altair.layer(
        steps,
        rings.encode(x=x.x(), y=y.y(), color=altair.value(INK), opacity=altair.value(1)),
    )
