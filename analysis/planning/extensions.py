"""Propose additions to a study: cost, standard errors and MDE with each of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from analysis.design.linear import Design, Law
from analysis.formatting import count, format_number, power_of_ten
from analysis.planning.power import DesignPower, design_error, design_power
from slm.formatting import short_count
from slm.rounding import ITERATION_TOLERANCE, merge_close, stable_argsort
from slm.summary import Summarized

MORE_TOKENS = 3.0  # next token budget / largest token budget
Row = dict[str, Any]  # one run, with the columns of a `Design`


@dataclass(frozen=True, repr=False)
class Extension(Summarized):
    """Runs to add to a study: number, FLOPs, and precision of the extended study (fields of `DesignPower`)."""

    name: str
    runs: int
    flops: float
    se_exponent: float | None
    mde80_exponent: float | None
    mde80_level: float | None

    def title(self) -> str:
        return (
            f"extension, {self.name}: {count(self.runs, 'run')}, {power_of_ten(self.flops)} FLOPs, MDE (80% "
            f"power) {format_number(self.mde80_exponent)} for the exponents and "
            f"{format_number(self.mde80_level)} nats/token for the loss"
        )


@dataclass(frozen=True, repr=False)
class NextRuns(Summarized):
    """One addition: a seed or a shape with all its token budgets, or a token budget of one size.

    `se`: standard error with it, of alpha_deep - alpha_wide, or of the level in nats if the exponent is refused.
    """

    name: str
    runs: int
    flops: float
    se: float

    def title(self) -> str:
        return f"{self.name}: {count(self.runs, 'run')}, {power_of_ten(self.flops)} FLOPs, SE {self.se:.5f}"


def extensions(design: Design, deep: str, wide: str, **assumed: Any) -> Iterator[Extension]:
    """Yield extensions of all sizes at once: another aspect ratio, one more seed, tokens, sizes.

    `assumed`: law and noise, the keyword arguments of `design_power`.
    """
    for name, parts in additions(design).items():
        rows = [row for part in parts.values() for row in part]
        if rows:
            joined = design.with_runs(rows)
            power = design_power(joined, deep, wide, **assumed)
            flops = float(sum(row["flops"] for row in rows))
            errors = power.se_exponent, power.mde80_exponent, power.mde80_level
            yield Extension(name, len(rows), flops, *errors)


def most_valuable_next(
    design: Design,
    power: DesignPower,
    *,
    law: Law = Law(),
    sigma: float | None = None,
    count: int = 5,
) -> list[NextRuns]:
    """Return the additions with the largest decrease of the squared standard error per FLOP, in order.

    Each is ranked alone. `power` is that of the design; its tau and trunk_sigma are assumed.
    """
    index = 0 if power.se_exponent is None else 1
    now = power.se_level if power.se_exponent is None else power.se_exponent
    if now is None:
        return []
    found: list[NextRuns] = []
    for parts in additions(design).values():
        for name, rows in parts.items():
            joined = design.with_runs(rows)
            errors = design_error(
                joined,
                power.deep,
                power.wide,
                law=law,
                sigma=sigma,
                tau=power.tau,
                trunk_sigma=power.trunk_sigma,
            )
            if len(errors) <= index:  # the exponent of the joined design is refused
                continue
            error = errors[index]
            if now - error > ITERATION_TOLERANCE * now:
                flops = float(sum(row["flops"] for row in rows))
                found.append(NextRuns(name, len(rows), flops, error))
    found.sort(key=lambda addition: addition.name)  # ties do not depend on the order of the runs
    # Errors are merged before the difference, in which their rounding is a large part.
    merged = merge_close([addition.se for addition in found], ITERATION_TOLERANCE)
    cost = merge_close([addition.flops for addition in found])
    order = stable_argsort((merged**2 - now**2) / cost, ITERATION_TOLERANCE)
    return [found[i] for i in order[:count]]


def additions(design: Design) -> dict[str, dict[str, list[Row]]]:
    """Return the runs of each possible addition, by kind and name.

    A new size gets the same families and budgets as the nearest one; a new aspect ratio lies in the widest gap.
    """
    rows = [
        dict(zip(design.columns(), row, strict=True))
        for row in zip(*design.columns().values(), strict=True)
    ]
    rungs = sorted({row["rung"] for row in rows}, key=lambda rung: _size(rows, rung))
    found: dict[str, dict[str, list[Row]]] = {
        "another aspect ratio at every size": dict(_new_aspects(rows, rungs)),
        "one more seed per shape": dict(_new_seeds(rows)),
        f"a token budget {MORE_TOKENS:g}x the largest": {
            f"{MORE_TOKENS:g}x the tokens, size {_label(rung)}": _more_tokens(rows, rung)
            for rung in rungs
        },
    }
    if len(rungs) > 1:
        sizes = [_size(rows, rung) for rung in rungs]
        next_size = sizes[-1] * math.exp(float(np.diff(np.log(sizes)).mean()))
        name = f"larger than size {_label(rungs[-1])}"
        found["the next larger size"] = {name: _new_size(rows, rungs[-1], name, next_size)}
        found["a size between each pair of adjacent sizes"] = {
            name: _new_size(rows, low, name, math.sqrt(_size(rows, low) * _size(rows, high)))
            for low, high in pairwise(rungs)
            for name in [f"between sizes {_label(low)} and {_label(high)}"]
        }
    return found


def _size(rows: Sequence[Row], rung: Any) -> float:
    return float(np.exp(np.mean([math.log(row["n_flop"]) for row in rows if row["rung"] == rung])))


def _label(rung: Any) -> str:
    return short_count(rung) if isinstance(rung, int) else str(rung)


def _more_tokens(rows: Sequence[Row], rung: Any) -> list[Row]:
    """Return the longest runs of a rung with more tokens."""
    here = [row for row in rows if row["rung"] == rung]
    longest = max(row["tokens"] for row in here)
    keys = ("tokens", "flops", "tokens_per_param")
    return [
        row | {key: row[key] * MORE_TOKENS for key in keys}
        for row in here
        if row["tokens"] == longest
    ]


def _new_seeds(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    for family, rung, shape in dict.fromkeys((r["family"], r["rung"], r["shape"]) for r in rows):
        same = [
            row
            for row in rows
            if (row["family"], row["rung"], row["shape"]) == (family, rung, shape)
        ]
        seed = max(_seed(row) for row in same) + 1
        cells = {row["tokens"]: row | {"seed": seed} for row in same}
        yield f"seed {seed} of {family}, size {_label(rung)}", list(cells.values())


def _seed(row: Row) -> int:
    return int(row["seed"]) if str(row["seed"]).isdecimal() else 0


def _new_aspects(rows: Sequence[Row], rungs: Sequence[Any]) -> Iterator[tuple[str, list[Row]]]:
    if "aspect_ratio" not in rows[0]:
        return
    for rung in rungs:
        here = [row for row in rows if row["rung"] == rung]
        ratios = sorted({row["aspect_ratio"] for row in here})
        if len(ratios) > 1 and all(ratios):
            low, high = max(pairwise(ratios), key=lambda pair: pair[1] / pair[0])
            ratio = math.sqrt(low * high)
            name = f"aspect ratio {ratio:.3g}, size {_label(rung)}"
            new = {"family": f"aspect_{ratio:.3g}", "shape": name, "aspect_ratio": ratio, "seed": 0}
            yield name, list({row["tokens"]: row | new for row in here}.values())


def _new_size(rows: Sequence[Row], nearest: Any, name: str, size: float) -> list[Row]:
    """Return the runs of the nearest rung at another size, with tokens in proportion to N."""
    here = [row for row in rows if row["rung"] == nearest]
    ratio = size / _size(rows, nearest)
    return [
        row
        | {
            "rung": name,
            "n_flop": row["n_flop"] * ratio,
            "tokens": row["tokens"] * ratio,
            "flops": row["flops"] * ratio**2,
        }
        for row in here
    ]
