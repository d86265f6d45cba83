"""Charts of the exponent difference, and of the influence of single shapes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from scipy import special

from analysis.block.effects import EQUIVALENT
from analysis.charts.rows import forest_figure, forest_row
from slm.charts import INK, MUTED, Figure

if TYPE_CHECKING:
    from analysis.report.study_report import StudyReport

N_NAMES = {
    "n_flop": "N = FLOPs per token / 6",
    "params_non_embedding": "N = non-embedding",
    "params_total": "N = all parameters",
}
MAX_SHAPES = 12  # in a chart of influence


def exponent_difference(report: StudyReport) -> Figure | None:
    """Plot the exponent difference by the block model, other assumptions, and the joint law."""
    found, block = report.comparison, report.comparison.block
    if block.d_alpha is None or found.robustness is None or block.df is None:
        return None
    rows = [forest_row("block model", block.d_alpha, block.d_alpha_ci, INK)]
    rows += [
        forest_row(N_NAMES.get(name, name), one.d_alpha, one.d_alpha_ci, MUTED)
        for name, one in found.by_definition.items()
        if name != block.n_name and one.d_alpha is not None
    ]
    for noise in found.robustness.noise:
        label = f"noise as N^{noise['noise_exponent']:g}"
        rows.append(forest_row(label, noise["d_alpha"], None, MUTED, "diamond"))
    joint = found.exponents
    if not joint.refused and joint.status != "UNIDENTIFIED":
        rows.append(forest_row("joint law M2, jackknife", joint.difference, joint.interval, MUTED))
    shown = rows
    if block.d_alpha_free_e is not None and block.d_alpha_free_e_se is not None:
        half = float(special.stdtrit(block.df - 1, 0.975)) * block.d_alpha_free_e_se
        ends = block.d_alpha_free_e - half, block.d_alpha_free_e + half
        rows = [*rows[:1], forest_row("E free in each family", block.d_alpha_free_e, ends, MUTED), *rows[1:]]  # fmt: skip
    text = (
        "exponent_difference",
        "Exponent difference by assumption and method",
        f"First row: primary estimate with its 95% confidence interval. Right of 0, {found.deep} gains with size. "
        f"Dotted lines: exponents within {EQUIVALENT:g} are equivalent. The other rows are sensitivity analyses; "
        "hollow marks have no interval, and intervals are cut at the axis.",
    )
    title = f"alpha of {found.deep} minus alpha of {found.wide}"
    return forest_figure(text, rows, title, 0.0, -EQUIVALENT, EQUIVALENT, within=shown)


def influence(report: StudyReport, quantity: Literal["level", "d_alpha"]) -> Figure | None:
    """Plot the level or the exponent difference without each shape, the most influential first."""
    found = report.comparison
    value = getattr(found.block, quantity)
    if value is None or found.robustness is None:
        return None
    known = [
        (one.name, getattr(one, quantity))
        for one in found.robustness.without
        if getattr(one, quantity) is not None
    ]
    if not known:
        return None
    known.sort(key=lambda one: -round(abs(one[1] - value), 9))
    rows = [forest_row("all shapes", value, None, INK, "diamond")]
    rows += [forest_row(name, other, None, MUTED) for name, other in known[:MAX_SHAPES]]  # fmt: skip
    is_level = quantity == "level"
    name = "Loss difference" if is_level else "Exponent difference"
    shown = (
        "" if len(known) <= MAX_SHAPES else f" The {MAX_SHAPES} largest of {len(known)} changes."
    )
    text = (
        f"influence_{'level' if is_level else 'exponent'}",
        f"{name} without one shape",
        "Estimate without the shape of the row, or without one size where two families have no third shape; everything is refitted. "
        f"Dotted line: estimate from all shapes. A mark on the other side of 0 makes a finding fragile.{shown}",
    )  # fmt: skip
    pair = f"{found.deep} minus {found.wide}"
    title = f"loss, {pair} (nats/token)" if is_level else f"alpha, {pair}"
    return forest_figure(text, rows, title, 0.0, value)
