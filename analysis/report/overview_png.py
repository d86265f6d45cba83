"""Plot the overview figure of a report, loss_vs_flops.png."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from analysis.compare.matched_pairs import Contrast
from analysis.plotting import COLOURS, LINES, MARKERS, NEUTRAL


def save_overview(
    table: pd.DataFrame, families: list[str], contrast: Contrast | None, path: Path
) -> None:
    """Loss against FLOPs per family and, beside it, the matched differences with their intervals."""
    columns = 1 if contrast is None else 2
    figure = Figure(figsize=(5.2 * columns, 4.2), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    plot_loss_against_flops(axes[0], table, families)
    if contrast is not None:
        plot_differences(axes[1], contrast)
    figure.savefig(path, dpi=150)


def plot_loss_against_flops(axes: Axes, table: pd.DataFrame, families: list[str]) -> None:
    """One line per family and token budget, along the sizes; every run is a point."""
    budgets = sorted(table["tokens_per_param"].unique())
    for family, colour, marker in zip(families, cycle(COLOURS), cycle(MARKERS), strict=False):
        for budget, line in zip(budgets, cycle(LINES), strict=False):
            rows = table[(table["family"] == family) & (table["tokens_per_param"] == budget)]
            means = rows.groupby("size").agg({"flops": "mean", "loss_nats_per_token": "mean"})
            label = f"{family}, tokens_per_param {budget:g}"
            x, y = means["flops"], means["loss_nats_per_token"]
            axes.plot(x, y, color=colour, ls=line, marker=marker, ms=5, lw=1.3, label=label)
            axes.plot(rows["flops"], rows["loss_nats_per_token"], marker, color=colour, ms=3)
    axes.set_yscale("log")
    _flops_axis(axes)
    axes.set_ylabel("validation loss (nats/token)")
    _plain_log_ticks(axes, table["loss_nats_per_token"].min(), table["loss_nats_per_token"].max())
    axes.set_title("Loss against compute", loc="left", fontsize=10)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=7, frameon=False)


def plot_differences(axes: Axes, contrast: Contrast) -> None:
    """Each pair's difference and, per token budget, the endpoint with its 95% interval."""
    axes.axhline(0, color=NEUTRAL, lw=0.8)
    budgets = contrast.pairs.groupby("tokens_per_param")
    for (budget, rows), colour, marker in zip(
        budgets, cycle(COLOURS[2:]), cycle(MARKERS[2:]), strict=False
    ):
        label = f"tokens_per_param {budget:g}"
        y = rows["difference_at_equal_flops"]
        axes.plot(rows["flops"], y, marker, color=colour, ms=6, ls=":", lw=0.8, label=label)
        summary = contrast.summary[contrast.summary["tokens_per_param"] == budget].iloc[0]
        if pd.notna(summary["largest_low"]):
            half = summary["largest_high"] - summary["largest"]
            at = summary["largest_flops"] * 1.08
            axes.errorbar(at, summary["largest"], half, color=colour, marker="_", capsize=4, lw=1.6)
    _flops_axis(axes)
    axes.set_ylabel(f"{contrast.deep} minus {contrast.wide} (nats/token)")
    title = "Below zero, deep is better; bars: 95% interval at the largest FLOPs"
    axes.set_title(title, loc="left", fontsize=8)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=7, frameon=False)


def _flops_axis(axes: Axes) -> None:
    axes.set(xscale="log", xlabel="training FLOPs")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda flops, _: f"{flops:.0e}".replace("e+", "e"))
    )


def _plain_log_ticks(axes: Axes, low: float, high: float) -> None:
    """A loss axis spans less than a decade: label it with plain numbers, a few of them."""
    step = 0.05 if high - low < 0.4 else 0.1 if high - low < 1 else 0.25
    first, last = int(low / step), int(high / step) + 1
    axes.yaxis.set_major_locator(FixedLocator([n * step for n in range(first, last + 1)]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
