"""Deep minus wide at matched FLOPs: the pairs of shapes. They describe; the inference is the block model's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.block.pooled_law import PooledLaw
from analysis.formatting import count, format_number
from slm.architecture.shape_solver import MATCH_TOLERANCE
from slm.formatting import short_count
from slm.rounding import ITERATION_TOLERANCE, exceeds, round_to_three_digits, snap_to_zero
from slm.summary import Readable, Rows


@dataclass(frozen=True, repr=False)
class Contrast(Readable):
    """Loss of one family minus that of another, in nats per token, over matched pairs.

    `pairs` has a row per (rung, token budget) with the seeds averaged, `summary` a row per token budget with the
    mean and standard deviation over its pairs, and the difference of the largest pair. `unpaired` counts the runs of the
    two families without a partner. `is_corrected`: the differences are corrected to equal FLOPs; else they are the raw
    ones, also in the column `difference_at_equal_flops`.
    """

    deep: str
    wide: str
    pairs: pd.DataFrame
    summary: pd.DataFrame
    unpaired: int
    is_corrected: bool

    @property
    def difference_name(self) -> str:
        """Return what the differences are: those at equal FLOPs, or the raw ones."""
        return "difference at equal FLOPs" if self.is_corrected else "raw difference"

    @property
    def matched(self) -> bool:
        return not exceeds(self.pairs["flops_mismatch"].abs(), MATCH_TOLERANCE).any()

    def title(self) -> str:
        pairs, budgets = count(len(self.pairs), "pair"), count(len(self.summary), "token budget")
        flops = "at equal FLOPs" if self.is_corrected else "not corrected for unequal FLOPs"
        return f"loss of {self.deep} minus loss of {self.wide} {flops}, nats per token, {pairs} at {budgets}"

    def details(self) -> Iterator[tuple[str, str]]:
        for row in self.summary.to_dict("records"):
            mean = format_number(row["mean"], signed=True)
            yield (
                f"at tokens_per_param {row['tokens_per_param']:g}",
                f"mean {mean} over {count(int(row['pairs']), 'pair')}",
            )
        if self.unpaired:
            yield "runs without a partner", str(self.unpaired)

    def rows(self) -> Rows:
        """Return one row per pair of shapes with equal tokens."""
        return [
            {
                "tokens_per_param": f"{row['tokens_per_param']:g}",
                "size": short_count(row["size"]),
                "tokens": short_count(row["tokens"]),
                "FLOPs": f"{row['flops']:.3g}",
                "FLOPs mismatch": f"{row['flops_mismatch']:+.1%}",
                self.deep: f"{row['loss_nats_per_token_deep']:.4f}",
                self.wide: f"{row['loss_nats_per_token_wide']:.4f}",
                self.difference_name: f"{row['difference_at_equal_flops']:+.4f}",
            }
            for row in self.pairs.to_dict(orient="records")
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return a dictionary for JSON, with one record per row."""
        return {
            "deep": self.deep,
            "wide": self.wide,
            "pairs_within_3_percent": self.matched,
            "corrected_to_equal_flops": self.is_corrected,
            "unpaired_runs": self.unpaired,
            "summary": self.summary.to_dict(orient="records"),
            "pairs": self.pairs.to_dict(orient="records"),
        }


def paired_differences(
    table: pd.DataFrame, deep: str, wide: str, law: PooledLaw | None = None
) -> Contrast:
    """Pair the runs of two families by rung and tokens, seeds averaged.

    `law` corrects each difference to equal FLOPs at equal tokens; without it nothing is corrected.
    """
    keys = ["rung", "tokens"]
    values = {
        "size": "mean",
        "tokens_per_param": "mean",
        "flops": "mean",
        "loss_nats_per_token": "mean",
        "seed": "count",
    }
    sides = [table[table["family"] == name].groupby(keys).agg(values) for name in (deep, wide)]
    pairs = sides[0].join(sides[1], lsuffix="_deep", rsuffix="_wide", how="inner").reset_index()
    members = int(table["family"].isin([deep, wide]).sum())
    unpaired = members - int(pairs["seed_deep"].sum() + pairs["seed_wide"].sum())
    for column in (
        "size",
        "tokens_per_param",
    ):  # equal within a rung, except for variants of a preset
        pairs[column] = pairs[[f"{column}_deep", f"{column}_wide"]].mean(axis=1)
    pairs["tokens_per_param"] = [round_to_three_digits(x) for x in pairs["tokens_per_param"]]
    pairs["flops"] = np.sqrt(pairs["flops_deep"] * pairs["flops_wide"])
    pairs["flops_mismatch"] = pairs["flops_deep"] / pairs["flops_wide"] - 1
    losses = [pairs[f"loss_nats_per_token_{side}"] for side in ("deep", "wide")]
    pairs["difference"] = snap_to_zero(losses[0] - losses[1])
    correction = np.zeros(len(pairs))
    if law is not None:
        sizes = [pairs[f"flops_{side}"] / (6 * pairs["tokens"]) for side in ("deep", "wide")]
        correction = law.size_term(sizes[0]) - law.size_term(sizes[1])
    pairs["difference_at_equal_flops"] = snap_to_zero(
        pairs["difference"] - correction, ITERATION_TOLERANCE
    )
    pairs = pairs.sort_values(["tokens_per_param", "flops"], ignore_index=True)
    rows = [_summarize(value, group) for value, group in pairs.groupby("tokens_per_param")]
    return Contrast(deep, wide, pairs, pd.DataFrame(rows), unpaired, law is not None)


def _summarize(tokens_per_param: object, rows: pd.DataFrame) -> dict[str, float | int]:
    differences = rows["difference_at_equal_flops"].to_numpy()
    value = float(str(tokens_per_param))
    return {
        "tokens_per_param": value,
        "budget": value,  # its older name, which scripts of users read
        "pairs": len(differences),
        "deep_lower": int((differences < 0).sum()),
        "largest": float(differences[-1]),  # at the largest FLOPs
        "mean": snap_to_zero(differences.mean(), ITERATION_TOLERANCE),
        "sd": float(differences.std(ddof=1)) if len(differences) > 1 else float("nan"),
    }
