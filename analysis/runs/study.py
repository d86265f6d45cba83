"""A table of finished runs made ready to be compared: columns named, cells matched, families told apart.

The prepared table has one row a run and the columns `family`, `shape` (unique within a family), `rung`,
`n` (N in the primary definition), `tokens`, `flops`, `tokens_per_param` (tokens / n, equal within a rung),
`loss_nats_per_token`, `seed`, `size` (a label of the rung in numbers), `aspect_ratio` if known, and any
further definitions of N. `tokens_per_param` (or its older name `budget`) and `size` are taken from the table
where it has them. Its index is the row of the given table, and its order is by family, FLOPs, tokens, shape and seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from analysis.runs.validate import label_column, loss_warnings, positive_columns
from slm.errors import DataError, nearest
from slm.rounding import exceeds, merge_close, round_to_three_digits, stable_argsort

OTHER_DEFINITIONS = ("n_flop", "params_non_embedding", "params_total")
SAME_SIZE = math.log(1.25)  # shapes of two families are paired if N differs by less than this
SAME_BUDGET = math.log(1.3)  # ln tokens_per_param closer than this is one token budget
BUDGET_COLUMNS = ("tokens_per_param", "budget")  # of a given table, the first that it has
DEEP_WORDS, WIDE_WORDS = ("deep", "thin"), ("wide", "shallow")


@dataclass(frozen=True)
class Columns:
    """How the columns of a table of runs are called. None: absent, and worked out where possible."""

    n: str = "n_flop"
    tokens: str = "tokens"
    loss: str = "loss_nats_per_token"
    family: str = "family"
    shape: str = "shape"
    flops: str | None = None
    rung: str | None = None
    seed: str | None = None
    aspect: str | None = None


@dataclass(frozen=True)
class Study:
    """Runs of two or more families, of which `deep` and `wide` are compared."""

    table: pd.DataFrame
    deep: str
    wide: str
    n_name: str
    n_definitions: tuple[str, ...]
    warnings: tuple[str, ...] = field(default=())

    @property
    def families(self) -> list[str]:
        return list(dict.fromkeys(self.table["family"]))

    @property
    def pair(self) -> pd.DataFrame:
        """Runs of the two families alone."""
        return self.table[self.table["family"].isin([self.deep, self.wide])]


def prepare(
    table: pd.DataFrame,
    columns: Columns,
    deep: str | None,
    wide: str | None,
    vocab_size: int | None = None,
) -> Study:
    """Name the columns, match shapes into rungs and tokens into budgets, tell the families apart.

    Raises:
        DataError: if a column is absent or holds what cannot be, or the families cannot be told apart.
    """
    if table.empty:
        raise DataError("the table has no runs; load some with load_runs(FOLDER)")
    needed = (columns.n, columns.tokens, columns.loss, columns.family, columns.shape)
    _check_columns(table, (*needed, columns.flops, columns.rung, columns.seed, columns.aspect))
    numbers = positive_columns(
        **{name: table[name] for name in (columns.n, columns.tokens, columns.loss)}
    )
    size, tokens, loss = (numbers[name] for name in (columns.n, columns.tokens, columns.loss))
    made = pd.DataFrame({"n": size, "tokens": merge_close(tokens), "loss_nats_per_token": loss})
    made["family"] = [
        str(x) for x in label_column(columns.family, table[columns.family], len(table))
    ]
    made["shape"] = [str(x) for x in label_column(columns.shape, table[columns.shape], len(table))]
    warnings = loss_warnings(loss, vocab_size)
    if columns.flops is None:
        made["flops"] = 6 * size * tokens
        if columns.n != "n_flop":
            warnings.append(f"training FLOPs taken as 6 x {columns.n} x {columns.tokens}")
    else:
        made["flops"] = positive_columns(**{columns.flops: table[columns.flops]})[columns.flops]
    made["seed"] = list(table[columns.seed]) if columns.seed else 0
    if columns.aspect:
        made["aspect_ratio"] = table[columns.aspect].to_numpy(dtype=float)
    others = [name for name in OTHER_DEFINITIONS if name in table and name != columns.n]
    for name in others:
        made[name] = positive_columns(**{name: table[name]})[name]
    made["rung"] = list(table[columns.rung]) if columns.rung else _matched_rungs(made)
    mean = made.groupby("rung", sort=False)["n"].transform("mean")
    made["size"] = table["size"].to_numpy() if "size" in table else mean
    given = next((table[name] for name in BUDGET_COLUMNS if name in table), None)
    made["tokens_per_param"] = (
        _tokens_per_param(np.log((made["tokens"] / mean).to_numpy()))
        if given is None
        else merge_close(given)
    )
    made = _in_order(made)
    deep, wide = _told_apart(made, deep, wide)
    return Study(made, deep, wide, columns.n, tuple(others), tuple(warnings))


def _in_order(made: pd.DataFrame) -> pd.DataFrame:
    """The rows in an order of their own, so that nothing depends on how they came; the index keeps that."""
    names = ["family", "flops", "tokens", "shape", "seed", "loss_nats_per_token"]
    keys = made[names].copy()
    keys["flops"] = merge_close(keys["flops"])
    if keys["seed"].dtype == object:
        keys["seed"] = keys["seed"].map(str)
    return made.loc[keys.sort_values(names).index]


def _check_columns(table: pd.DataFrame, names: Sequence[str | None]) -> None:
    for name in names:
        if name is not None and name not in table:
            raise DataError(f"no column {name!r}; {nearest(name, table.columns)}")


def _matched_rungs(made: pd.DataFrame) -> list[Any]:
    """Shapes of about one N are a rung: from the smallest, each family's next joins if it is near."""
    sizes = made.groupby(["family", "shape"])["n"].mean()
    sizes = sizes.iloc[stable_argsort(sizes)]
    rungs: list[tuple[float, set[str]]] = []
    place: dict[tuple[str, str], int] = {}
    for key, size in sizes.items():
        family, shape = str(key[0]), str(key[1])  # type: ignore[index]
        log_size = math.log(size)
        near = [
            (round(abs(log_size - centre), 9), index)
            for index, (centre, members) in enumerate(rungs)
            if family not in members and exceeds(SAME_SIZE, abs(log_size - centre))
        ]
        if near:
            index = min(near)[1]
            rungs[index][1].add(family)
        else:
            index = len(rungs)
            rungs.append((log_size, {family}))
        place[family, shape] = index
    return [place[key] for key in zip(made["family"], made["shape"], strict=True)]


def _tokens_per_param(log_ratio: np.ndarray) -> np.ndarray:
    """The same number for all runs of about one tokens / n: their geometric mean."""
    order = np.argsort(log_ratio, kind="stable")
    groups = np.concatenate([[0], np.cumsum(exceeds(np.diff(log_ratio[order]), SAME_BUDGET))])
    values = np.empty(len(log_ratio))
    for group in range(groups[-1] + 1):
        mine = order[groups == group]
        values[mine] = round_to_three_digits(math.exp(log_ratio[mine].mean()))
    return values


def _told_apart(made: pd.DataFrame, deep: str | None, wide: str | None) -> tuple[str, str]:
    families = list(dict.fromkeys(made["family"]))
    for asked in (deep, wide):
        if asked is not None and asked not in families:
            raise DataError(f"no runs of a family named {asked!r} here; {nearest(asked, families)}")
    if deep and wide:
        if deep == wide:
            raise DataError(f"deep and wide are both {deep!r}; name two families")
        return deep, wide
    rest = [name for name in families if name not in (deep, wide)]
    if len(families) == 1:
        return families[0], families[0]
    if "aspect_ratio" in made:
        aspects = made.groupby("family")["aspect_ratio"].mean()
        rest = list(aspects.index[stable_argsort(aspects)])
        rest = [name for name in rest if name not in (deep, wide)]
        return deep or rest[0], wide or rest[-1]
    if len(families) == 2 and (deep or wide):
        return deep or rest[0], wide or rest[0]
    found = {
        side: [name for name in families if any(word in name.lower() for word in words)]
        for side, words in (("deep", DEEP_WORDS), ("wide", WIDE_WORDS))
    }
    if len(found["deep"]) == len(found["wide"]) == 1 and found["deep"] != found["wide"]:
        return deep or found["deep"][0], wide or found["wide"][0]
    raise DataError(
        f"which family is deep and which is wide? Pass deep= and wide=; there are {', '.join(families)}"
    )
