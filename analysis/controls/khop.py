"""Report of the positive control: error rates of k-hop induction by number of hops k.

The task needs depth, so the deeper of two shapes with equal FLOPs must have the lower error rate.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.formatting import count
from analysis.runs.load import load_runs
from slm.console import Column, FittedTable, console, print_lines
from slm.errors import DataError
from slm.files import write_json, write_text
from slm.formatting import markdown_cell
from slm.rounding import snap_to_zero, stable_argsort


def write_khop_report(folder: Path, out: Path, only: Collection[str] | None = None) -> None:
    """Write report.md and results.json of the finished runs with data=khop below a folder.

    Args:
        only: ids of the runs to use; None: all.

    Raises:
        DataError: if there is no such run.
    """
    loaded = load_runs(folder, only)
    runs = loaded.table[loaded.table["val_errors"].notna()]
    if runs.empty:
        raise DataError(f"{folder}: no finished run with data=khop; run python sweep.py study=khop")
    table = errors_by_k(runs)
    sentence = verdict(runs)
    out.mkdir(parents=True, exist_ok=True)
    rows = table.to_dict(orient="records")
    content = {
        "runs": len(runs),
        "dropped": dict(loaded.dropped),
        "shapes": rows,
        "verdict": sentence,
    }
    write_json(out / "results.json", content)
    headings, cells = _format_table(table)
    lines = [
        "# k-hop induction: error rate by k",
        "",
        f"- {sentence}",
        "",
        "| " + " | ".join(headings) + " |",
        "|" + " --- |" * len(headings),
        *("| " + " | ".join(map(markdown_cell, row)) + " |" for row in cells),
        "",
    ]
    write_text(out / "report.md", "\n".join(lines))
    _print_table(headings, cells, sentence)
    console().print(f"report: {out / 'report.md'}", soft_wrap=True)


def errors_by_k(runs: pd.DataFrame) -> pd.DataFrame:
    """Return mean loss and error rates over seeds: one row per shape and token budget, deepest first."""
    rows: list[dict[str, Any]] = []
    for _, group in runs.groupby(["family", "shape", "tokens"]):
        first = group.iloc[0]
        errors = pd.DataFrame(list(group["val_errors"])).mean()
        rows.append(
            {
                **{key: first[key] for key in ("family", "shape")},
                **{key: int(first[key]) for key in ("n_layers", "tokens", "flops")},
                "seeds": len(group),
                "nats": float(group["loss_nats_per_token"].mean()),
                **{str(k): float(share) for k, share in errors.items()},
            }
        )
    return pd.DataFrame(rows).sort_values(["tokens", "n_layers"], ascending=[True, False])


def verdict(runs: pd.DataFrame) -> str:
    """Compare the deepest and the widest family at the largest k and the largest common token budget."""
    depth = runs.groupby("family")["n_layers"].mean()
    order = stable_argsort(depth)
    deep, wide = str(depth.index[order[-1]]), str(depth.index[order[0]])
    common = runs[runs["family"].isin([deep, wide])].groupby("tokens")["family"].nunique()
    shared = common[common == 2].index
    if not len(shared):
        return f"{deep} and {wide} have no token budget in common, so there is nothing to compare."
    last = runs[runs["tokens"] == shared.max()].set_index("seed")
    hardest = max(last["val_errors"].iloc[0], key=lambda k: int(k.removeprefix("k=")))
    error = last["val_errors"].map(lambda errors: errors[hardest])
    pairs = pd.DataFrame(
        {name: error[last["family"] == name].groupby(level=0).mean() for name in (deep, wide)}
    ).dropna()
    if pairs.empty:
        return f"{deep} and {wide} have no common seed: nothing to compare."
    better = int((snap_to_zero(pairs[wide] - pairs[deep]) > 0).sum())
    control = "passed" if better == len(pairs) else "not passed"
    return (
        f"At {hardest}, the error rate is {pairs[deep].mean():.2%} for {deep} and {pairs[wide].mean():.2%} for "
        f"{wide}; {deep} is better in {better} of {count(len(pairs), 'seed')}: positive control {control}."
    )


def _format_table(table: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    ks = [column for column in table if str(column).startswith("k=")]
    headings = [
        "family",
        "shape",
        "seeds",
        "tokens",
        "FLOPs",
        "loss, nats",
        *(f"error rate {k}" for k in ks),
    ]
    cells = []
    for row in table.to_dict(orient="records"):
        counts = [str(row["seeds"]), f"{row['tokens']:,}", f"{row['flops']:.4g}"]
        error_rates = [f"{row[k]:.2%}" for k in ks]
        cells.append([row["family"], row["shape"], *counts, f"{row['nats']:.4f}", *error_rates])
    return headings, cells


def _print_table(headings: list[str], cells: list[list[str]], sentence: str) -> None:
    columns = [
        Column(
            heading,
            [row[number] for row in cells],
            rank=int(heading not in {"family", "shape", headings[-1]}),
            is_left=heading in {"family", "shape"},
        )
        for number, heading in enumerate(headings)
    ]
    out = console()
    out.print(FittedTable(columns, "k-hop induction: error rate by k, mean over seeds"))
    print_lines(out, [sentence])
