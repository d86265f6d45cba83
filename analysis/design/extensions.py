"""What a finished study could add: whole extensions with their cost, and single runs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from analysis.design.linear import Design, Law
from analysis.design.power import design_power

MORE_TOKENS = 3.0  # the next token budget over the largest
LARGER, BETWEEN = "larger", "between"


@dataclass(frozen=True)
class Extension:
    """Runs to add together, their FLOPs, and what the study could then find: see `DesignPower`."""

    name: str
    runs: int
    flops: float
    se_exponent: float | None
    mde80_exponent: float | None
    mde80_difference: float | None


def extensions(
    design: Design, deep: str, wide: str, *, law: Law, sigma: float | None, tau: float
) -> Iterator[Extension]:
    """One more seed of every cell, the next token budget, the next size, a size between all others."""
    single = candidates(design, deep, wide)
    top = max(design.multiplier)
    choices = {
        "one more seed of every cell": lambda row: single.multiplier[row] <= top,
        f"a {MORE_TOKENS:g}-fold token budget": lambda row: single.multiplier[row] > top,
        "the next larger size": lambda row: single.rung[row] == LARGER,
        "a size between each two": lambda row: str(single.rung[row]).startswith(BETWEEN),
    }
    for name, wanted in choices.items():
        rows = [row for row in range(len(single)) if wanted(row) and _is_new(single, row, name)]
        if not rows:
            continue
        joined = Design(
            **{
                key: [*getattr(design, key), *(getattr(single, key)[row] for row in rows)]
                for key in vars(design)
            }
        )
        power = design_power(joined, deep, wide, law=law, sigma=sigma, tau=tau, simulations=0)
        yield Extension(
            name=name,
            runs=len(rows),
            flops=float(sum(single.flops[row] for row in rows)),
            se_exponent=power.se_exponent,
            mde80_exponent=power.mde80_exponent,
            mde80_difference=power.mde80_difference,
        )


def _is_new(single: Design, row: int, name: str) -> bool:
    """Whole sizes come with all budgets; seeds and budgets are of the sizes that there are."""
    invented = single.rung[row] == LARGER or str(single.rung[row]).startswith(BETWEEN)
    return invented == ("size" in name)


def candidates(design: Design, deep: str, wide: str) -> Design:
    """For both families: cells that are missing, one more seed of each cell, the next token budget,
    the next size, and sizes between.
    """
    rows: list[dict[str, Any]] = []
    multipliers = sorted(set(design.multiplier))
    budgets = [*multipliers, multipliers[-1] * MORE_TOKENS]
    for family in (deep, wide):
        shapes = dict(_shapes(design, family))
        for rung, (shape, size) in shapes.items():
            rows += [
                _run(
                    family,
                    rung,
                    shape,
                    size,
                    budget,
                    _next_seed(design, family, shape, rung, budget),
                )
                for budget in budgets
            ]
        if len(shapes) > 1:
            sizes = sorted(size for _, size in shapes.values())
            larger = sizes[-1] * float(np.exp(np.diff(np.log(sizes)).mean()))
            new = [(LARGER, larger)]
            new += [
                (f"{BETWEEN} {at}", math.sqrt(a * b)) for at, (a, b) in enumerate(pairwise(sizes))
            ]
            rows += [
                _run(family, rung, f"{family} {rung}", size, budget, 0)
                for rung, size in new
                for budget in multipliers
            ]
    return Design(**{key: [row[key] for row in rows] for key in vars(design)})


def _shapes(design: Design, family: str) -> Iterator[tuple[Any, tuple[str, float]]]:
    for row, name in enumerate(design.family):
        if name == family:
            yield design.rung[row], (design.shape[row], design.n_flop[row])


def _next_seed(design: Design, family: str, shape: str, rung: Any, budget: float) -> int:
    columns = (design.family, design.shape, design.rung, design.multiplier, design.seed)
    taken = [
        int(seed)
        for *cell, seed in zip(*columns, strict=True)
        if cell[:3] == [family, shape, rung] and cell[3] == budget
    ]
    return max(taken, default=-1) + 1


def _run(  # noqa: PLR0917 (a row, in the order of its columns)
    family: str, rung: Any, shape: str, size: float, budget: float, seed: int
) -> dict[str, Any]:
    tokens = budget * size
    return {
        "family": family, "rung": rung, "shape": shape, "n_flop": size, "tokens": tokens, "seed": seed,
        "flops": 6 * size * tokens, "multiplier": budget,
    }  # fmt: skip
