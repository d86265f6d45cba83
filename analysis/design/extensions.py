"""What a finished study could add: whole extensions with their cost, and single runs."""

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
    top = max(design.tokens_per_param)
    choices = {
        "one more seed of every cell": lambda row: single.tokens_per_param[row] <= top,
        f"a {MORE_TOKENS:g}-fold token budget": lambda row: single.tokens_per_param[row] > top,
        "the next larger size": lambda row: str(single.rung[row]).startswith(LARGER),
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
    invented = str(single.rung[row]).startswith((LARGER, BETWEEN))
    return invented == ("size" in name)


def candidates(design: Design, deep: str, wide: str) -> Design:
    """Runs that could be added to both families: cells that are missing, one more seed of each cell, the
    next token budget, the next size, and sizes between.
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
                rows.append(_run(family, rung, shape, size, budget, tokens, seed))
        for rung, size in _new_sizes(shapes):
            rows += [
                _run(
                    family, rung, f"{family} {rung}", size, budget,
                    _tokens(design, rung, size, budget), 0,
                )
                for budget in budgets
            ]  # fmt: skip
    return Design(**{key: [row[key] for row in rows] for key in vars(design)})


def _shapes(design: Design, family: str) -> Iterator[tuple[Any, tuple[str, float]]]:
    for row, name in enumerate(design.family):
        if name == family:
            yield design.rung[row], (design.shape[row], design.n_flop[row])


def _new_sizes(shapes: Mapping[Any, tuple[str, float]]) -> Iterator[tuple[str, float]]:
    """The next size and a size between each two, with the name of their rung, the same for all families."""
    ladder = sorted(((size, rung) for rung, (_, size) in shapes.items()), key=itemgetter(0))
    if len(ladder) < 2:
        return
    sizes = [size for size, _ in ladder]
    names = [f"{rung:,}" if isinstance(rung, int) else str(rung) for _, rung in ladder]
    yield f"{LARGER} than {names[-1]}", sizes[-1] * float(np.exp(np.diff(np.log(sizes)).mean()))
    for at, (below, above) in enumerate(pairwise(sizes)):
        yield f"{BETWEEN} {names[at]} and {names[at + 1]}", math.sqrt(below * above)


def _tokens(design: Design, rung: Any, size: float, budget: float) -> float:
    """Tokens of a budget in its rung; at a size without it, as many per N as at the nearest size with it."""
    known = [
        (r, n, tokens)
        for r, n, tokens, own in zip(
            design.rung, design.n_flop, design.tokens, design.tokens_per_param, strict=True
        )
        if own == budget
    ]
    for r, _, tokens in known:
        if r == rung:
            return tokens
    _, n, tokens = min(known, key=lambda cell: abs(math.log(cell[1] / size)))
    return tokens * size / n


def _next_seed(design: Design, family: str, shape: str, rung: Any, budget: float) -> int:
    columns = (design.family, design.shape, design.rung, design.tokens_per_param, design.seed)
    taken = [
        int(seed)
        for *cell, seed in zip(*columns, strict=True)
        if cell[:3] == [family, shape, rung] and cell[3] == budget
    ]
    return max(taken, default=-1) + 1


def _run(  # noqa: PLR0917 (a row, in the order of its columns)
    family: str, rung: Any, shape: str, size: float, budget: float, tokens: float, seed: int
) -> dict[str, Any]:
    return {
        "family": family, "rung": rung, "shape": shape, "n_flop": size, "tokens": tokens, "seed": seed,
        "flops": 6 * size * tokens, "tokens_per_param": budget,
    }  # fmt: skip
