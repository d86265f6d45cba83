"""Propose extensions of a study with their cost and power, and single candidate runs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from operator import itemgetter
from typing import Any

import numpy as np

from analysis.design.linear import Design, Law
from analysis.design.power import design_power
from analysis.formatting import count, format_number, power_of_ten
from slm.summary import Summarized

MORE_TOKENS = 3.0  # next token budget / largest token budget
LARGER, BETWEEN = "larger", "between"  # first words of the names of new rungs


@dataclass(frozen=True, repr=False)
class Extension(Summarized):
    """A set of runs to add: number, FLOPs, and the power of the extended study (fields of `DesignPower`)."""

    name: str
    runs: int
    flops: float
    se_exponent: float | None
    mde80_exponent: float | None
    mde80_difference: float | None

    def title(self) -> str:
        return (
            f"extension, {self.name}: {count(self.runs, 'run')}, {power_of_ten(self.flops)} FLOPs, MDE (80% "
            f"power) {format_number(self.mde80_exponent)} for the exponents and "
            f"{format_number(self.mde80_difference)} nats/token for the loss"
        )


def extensions(
    design: Design, deep: str, wide: str, *, law: Law, sigma: float | None, tau: float
) -> Iterator[Extension]:
    """Yield four extensions: one more seed per cell, a larger token budget, a larger size, sizes in between."""
    single = candidates(design, deep, wide)
    budget, rung = single.tokens_per_param, [str(name) for name in single.rung]
    largest = max(design.tokens_per_param)
    choices = {
        "one more seed per cell": lambda row: budget[row] <= largest,
        f"a token budget {MORE_TOKENS:g}x the largest": lambda row: budget[row] > largest,
        "the next larger size": lambda row: rung[row].startswith(LARGER),
        "a size between each pair of adjacent sizes": lambda row: rung[row].startswith(BETWEEN),
    }
    for name, belongs in choices.items():
        rows = [row for row in range(len(single)) if belongs(row) and _is_part(single, row, name)]
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


def _is_part(single: Design, row: int, name: str) -> bool:
    """Return whether a run's rung fits an extension: new rungs for new sizes, existing rungs for the others."""
    is_new_rung = str(single.rung[row]).startswith((LARGER, BETWEEN))
    return is_new_rung == ("size" in name)


def candidates(design: Design, deep: str, wide: str) -> Design:
    """Return runs that could be added to both families: missing cells, one more seed of each cell, the next
    token budget, the next larger size, and sizes between adjacent ones.
    """
    rows: list[dict[str, Any]] = []
    budgets = sorted(set(design.tokens_per_param))
    for family in (deep, wide):
        shapes = dict(_shapes(design, family))
        for rung, (shape, size) in shapes.items():
            cells = [(budget, _tokens(design, rung, size, budget)) for budget in budgets]
            cells.append((cells[-1][0] * MORE_TOKENS, cells[-1][1] * MORE_TOKENS))
            for budget, tokens in cells:
                seed = _next_seed(design, family, shape, rung, budget)
                rows.append(_run((family, rung, shape, size), budget, tokens, seed))
        for rung, size in _new_sizes(shapes):
            shape_columns = (family, rung, f"{family} {rung}", size)
            rows += [
                _run(shape_columns, budget, _tokens(design, rung, size, budget), seed=0)
                for budget in budgets
            ]
    return Design(**{key: [row[key] for row in rows] for key in vars(design)})


def _shapes(design: Design, family: str) -> Iterator[tuple[Any, tuple[str, float]]]:
    for row, name in enumerate(design.family):
        if name == family:
            yield design.rung[row], (design.shape[row], design.n_flop[row])


def _new_sizes(shapes: Mapping[Any, tuple[str, float]]) -> Iterator[tuple[str, float]]:
    """Yield rung name and N of the next larger size and of a size between each pair of adjacent sizes.

    The names are equal for all families, so that the new shapes are paired.
    """
    ladder = sorted(((size, rung) for rung, (_, size) in shapes.items()), key=itemgetter(0))
    if len(ladder) < 2:
        return
    sizes = [size for size, _ in ladder]
    names = [f"{rung:,}" if isinstance(rung, int) else str(rung) for _, rung in ladder]
    yield f"{LARGER} than {names[-1]}", sizes[-1] * float(np.exp(np.diff(np.log(sizes)).mean()))
    for (low_name, low), (high_name, high) in pairwise(zip(names, sizes, strict=True)):
        yield f"{BETWEEN} {low_name} and {high_name}", math.sqrt(low * high)


def _tokens(design: Design, rung: Any, size: float, budget: float) -> float:
    """Return the tokens of a budget at a rung; if the rung lacks it, scale tokens / N of the nearest size."""
    known = [
        (r, n, tokens)
        for r, n, tokens, label in zip(
            design.rung, design.n_flop, design.tokens, design.tokens_per_param, strict=True
        )
        if label == budget
    ]
    for r, _, tokens in known:
        if r == rung:
            return tokens
    _, n, tokens = min(known, key=lambda cell: abs(math.log(cell[1] / size)))
    return tokens * size / n


def _next_seed(design: Design, family: str, shape: str, rung: Any, budget: float) -> int:
    columns = (design.family, design.shape, design.rung, design.tokens_per_param, design.seed)
    taken = [
        int(seed) if str(seed).isdecimal() else 0
        for *cell, seed in zip(*columns, strict=True)
        if cell[:3] == [family, shape, rung] and cell[3] == budget
    ]
    return max(taken, default=-1) + 1


def _run(
    shape_columns: tuple[str, Any, str, float], budget: float, tokens: float, seed: int
) -> dict[str, Any]:
    """Return one row of a `Design`; `shape_columns`: family, rung, shape and N_flop."""
    family, rung, shape, n_flop = shape_columns
    return {
        "family": family,
        "rung": rung,
        "shape": shape,
        "n_flop": n_flop,
        "tokens": tokens,
        "seed": seed,
        "flops": 6 * n_flop * tokens,
        "tokens_per_param": budget,
    }
