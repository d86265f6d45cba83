"""How many hops each family follows: errors of k-hop induction by k, side by side.

The positive control of the instrument: the task needs depth, so of two shapes at equal FLOPs the
deeper one must come out better.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from analysis.formatting import count
from analysis.runs.load import load_runs
from slm.errors import DataError
from slm.files import write_json, write_text
from slm.rounding import snap_to_zero, stable_argsort


def write_khop_report(folder: Path, out: Path, only: Collection[str] | None = None) -> None:
    """Compare the finished runs of data=khop below a folder, or those with the given run ids.

    Raises:
        DataError: if there are none.
    """
    loaded = load_runs(folder, only)
    runs = loaded.table[loaded.table["val_errors"].notna()]
    if runs.empty:
        raise DataError(f"{folder}: no finished run of data=khop; try python sweep.py study=khop")
    table = errors_by_k(runs)
    said = verdict(runs)
    out.mkdir(parents=True, exist_ok=True)
    rows = table.to_dict(orient="records")
    content = {"runs": len(runs), "dropped": dict(loaded.dropped), "shapes": rows, "verdict": said}
    write_json(out / "results.json", content)
    headings, cells = _shown(table)
    lines = [
        "# k-hop induction: error by k",
        "",
        f"- {said}",
        "",
        "| " + " | ".join(headings) + " |",
        "|" + " --- |" * len(headings),
        *("| " + " | ".join(row) + " |" for row in cells),
        "",
    ]
    write_text(out / "report.md", "\n".join(lines))
    _print(headings, cells, said)
    Console().print(f"report: {out / 'report.md'}", soft_wrap=True)


def errors_by_k(runs: pd.DataFrame) -> pd.DataFrame:
    """A row a shape and budget, deepest first: means over seeds of loss and of the errors by k."""
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
    """Whether the deepest family beats the widest where both saw the same tokens."""
    depth = runs.groupby("family")["n_layers"].mean()
    order = stable_argsort(depth)
    deep, wide = str(depth.index[order[-1]]), str(depth.index[order[0]])
    common = runs[runs["family"].isin([deep, wide])].groupby("tokens")["family"].nunique()
    shared = common[common == 2].index
    if not len(shared):
        return "No two families were trained on the same tokens: nothing to compare."
    last = runs[runs["tokens"] == shared.max()].set_index("seed")
    hardest = max(last["val_errors"].iloc[0], key=lambda k: int(k.removeprefix("k=")))
    error = last["val_errors"].map(lambda errors: errors[hardest])
    pairs = pd.DataFrame(
        {name: error[last["family"] == name].groupby(level=0).mean() for name in (deep, wide)}
    ).dropna()
    if pairs.empty:
        return f"{deep} and {wide} share no seed: nothing to compare."
    better = int((snap_to_zero(pairs[wide] - pairs[deep]) > 0).sum())
    reading = "depth shows" if better == len(pairs) else "depth does not show in every seed"
    return (
        f"At {hardest} {deep} errs in {pairs[deep].mean():.2%} and {wide} in {pairs[wide].mean():.2%} "
        f"of the answers; {deep} is better in {better} of {count(len(pairs), 'seed')}: {reading}."
    )


def _shown(table: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    ks = [column for column in table if str(column).startswith("k=")]
    headings = ["family", "shape", "seeds", "tokens", "FLOPs", "nats", *(f"error {k}" for k in ks)]
    cells = [
        [
            row["family"], row["shape"], str(row["seeds"]), f"{row['tokens']:,}", f"{row['flops']:.4g}",
            f"{row['nats']:.4f}", *(f"{row[k]:.2%}" for k in ks),
        ]
        for row in table.to_dict(orient="records")
    ]  # fmt: skip
    return headings, cells


def _print(headings: list[str], cells: list[list[str]], said: str) -> None:
    table = Table(title="k-hop induction: error by k, means over seeds", title_justify="left")
    for heading in headings:
        table.add_column(heading, justify="left" if heading in {"family", "shape"} else "right")
    for row in cells:
        table.add_row(*row)
    console = Console(width=None if Console().is_terminal else 150)
    console.print(table)
    console.print(said)
