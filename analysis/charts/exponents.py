"""Charts of exponents, of the joint law and of IsoFLOP parabolas."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from analysis.charts.rows import PER_TOKEN, families_of, forest_plot, forest_row, rows_height
from analysis.compare.exponents import EQUIVALENT, ExponentDifference
from analysis.formatting import power_of_ten, short_count
from slm.charts import (
    INK,
    MUTED,
    Axis,
    Figure,
    layered,
    lines,
    points,
)

if TYPE_CHECKING:
    from analysis.report.study_report import StudyReport

DOTTED = (2, 4)
N_NAMES = {"params_non_embedding": "non-embedding", "params_total": "all parameters"}


def alphas(report: StudyReport) -> Figure | None:
    """Plot the exponent of each family; if not identified, the accepted range without an estimate."""
    exponents, families = report.comparison.exponents, families_of(report)
    if exponents.refused:
        return None
    is_identified = exponents.status != "UNIDENTIFIED"
    rows = []
    for name in (name for name in report.families if name in exponents.alpha):
        value = exponents.alpha[name] if is_identified else None
        ends = exponents.alpha_intervals[name] if is_identified else exponents.accepted_alpha(name)
        rows.append(forest_row(name, value, ends, families.colour(name), families.shape(name)))
    values = [value for row in rows for value in (row["low"], row["high"], row["x"])]
    caption = (
        "Joint law with common E, B and beta; loss in nats against N = FLOPs per token / 6. Bars: 95% confidence "
        f"interval (jackknife over shapes). Status {exponents.status}."
        if is_identified
        else "Status UNIDENTIFIED: there is no estimate. Dashed: range of exponents that the runs accept."
    )
    axis = Axis.around(values, "alpha of the term A / N^alpha")
    return Figure(
        "alphas", "Exponent of each family", caption, forest_plot(rows, axis), rows_height(rows)
    )


def exponent_difference(report: StudyReport) -> Figure | None:
    """Plot the exponent difference for each definition of N and each sensitivity analysis."""
    found, primary = report.comparison, report.comparison.exponents
    if primary.refused or primary.status == "UNIDENTIFIED":
        return None
    rows = [
        _definition_row(N_NAMES.get(name, name), one, INK if index == 0 else MUTED)
        for index, (name, one) in enumerate(found.by_definition.items())
    ]
    rows.append(forest_row("profile likelihood", primary.difference, primary.profile, MUTED))
    if primary.without is not None:
        shape, value = primary.without
        rows.append(forest_row(f"without {shape}", value, None, MUTED, "diamond"))
    if primary.fit is not None:
        for delta, law in primary.fit.by_delta.items():
            if math.isfinite(delta):
                value = law[f"alpha[{found.deep}]"] - law[f"alpha[{found.wide}]"]
                rows.append(forest_row(f"Huber delta {delta:g}", value, None, MUTED, "diamond"))
    values = [0.0, *(row[key] for row in rows for key in ("low", "high", "x"))]
    axis = Axis.around(values, f"alpha of {found.deep} minus alpha of {found.wide}")
    rules = {0.0: (1, 0), -EQUIVALENT: DOTTED, EQUIVALENT: DOTTED}
    inside = {value: dash for value, dash in rules.items() if axis.low <= value <= axis.high}
    return Figure(
        "exponent_difference",
        "Exponent difference by definition of N and method",
        f"First row: primary estimate with its 95% confidence interval. Right of 0, {found.deep} gains with size. "
        f"Dotted lines: exponents within {EQUIVALENT:g} are equivalent. The other rows are sensitivity analyses and "
        "must agree with the first.",
        forest_plot(rows, axis, inside),
        rows_height(rows),
    )


def _definition_row(label: str, one: ExponentDifference, colour: str) -> dict[str, Any]:
    if one.status == "UNIDENTIFIED":
        return forest_row(label, None, one.profile, colour)
    return forest_row(label, one.difference, one.interval, colour)


def isoflop(report: StudyReport) -> Figure | None:
    """Plot the optimal size at each compute budget for each family."""
    rows: list[dict[str, Any]] = []
    texts = []
    for family, fit in report.isoflop.items():
        for one in fit.parabolas:
            if one.n_best is None:
                continue
            rows.append(
                {
                    "x": one.flops,
                    "y": one.n_best,
                    "series": family,
                    "group": family,
                    "flops": power_of_ten(one.flops, 3),
                    "n": short_count(one.n_best),
                    "loss": "" if one.loss_best is None else f"{one.loss_best:.4f}",
                }
            )
        if fit.exponent is None or fit.interval is None:
            texts.append(f"{family} {fit.status}: {'; '.join(fit.reasons)}")
        else:
            low, high = fit.interval
            texts.append(
                f"{family}: best N grows as C to the {fit.exponent:.2f} [{low:.2f}, {high:.2f}]"
            )
    if not rows:
        return None
    families = families_of(report)
    tooltip = {
        "series": "family",
        "flops": "training FLOPs",
        "n": "best N",
        "loss": f"loss ({PER_TOKEN})",
    }
    x = Axis.around([row["x"] for row in rows], "training FLOPs", log=True, kind="flops")
    y = Axis.around(
        [row["y"] for row in rows], "best N (FLOPs per token / 6)", log=True, kind="count"
    )
    return Figure(
        "isoflop",
        "IsoFLOP: best size at each compute budget",
        f"{'. '.join(texts)}. A secondary estimate: parabolas are biased, and more so if their points lie far from "
        "the minimum.",
        layered(
            lines(rows, x, y, families), points(rows, x, y, families, tooltip), series=families
        ),
        300,
    )
