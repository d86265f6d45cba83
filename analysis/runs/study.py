"""Prepare a table of finished runs for comparison: rename columns, match cells, identify deep and wide.

The prepared table has one row per run and the columns `family`, `shape` (unique within a family), `rung`,
`n` (N in the primary definition), `tokens`, `flops`, `tokens_per_param` (tokens / n, equal within a rung),
`loss_nats_per_token`, `seed`, `size` (numeric label of the rung), `aspect_ratio` if known, and other
definitions of N. `tokens_per_param` (or its older name `budget`) and `size` are copied from the given table
if it has them. Rows are sorted by family, FLOPs, tokens, shape and seed; the index is the position of the row in the given table.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from analysis.design.identifiability import SAME
from analysis.formatting import count
from analysis.runs.partners import partner_warnings
from analysis.runs.validate import (
    count_warnings,
    is_complete,
    label_column,
    label_warnings,
    loss_ratio_warnings,
    loss_warnings,
    positive_columns,
    stripped,
)
from slm.errors import DataError, nearest
from slm.rounding import exceeds, merge_close, round_to_three_digits, stable_argsort
from slm.summary import Summarized

OTHER_DEFINITIONS = ("n_flop", "params_non_embedding", "params_total")
SAME_RUNG = math.log(1.25)  # ln N: shapes of two families closer than this are paired in one rung
SAME_BUDGET = math.log(1.3)  # ln tokens_per_param: runs closer than this have the same token budget
BUDGET_COLUMNS = ("budget", "tokens_per_param")  # in order of preference
MAX_BUDGET_RATIO = 5.0  # a budget further from tokens / n is another quantity, such as FLOPs
DEEP_WORDS, WIDE_WORDS = ("deep", "thin"), ("wide", "shallow")


@dataclass(frozen=True)
class Columns:
    """Names of the columns in a table of runs. None: the column is absent and is computed where possible."""

    n: str = "n_flop"
    tokens: str = "tokens"
    loss: str = "loss_nats_per_token"
    family: str = "family"
    shape: str = "shape"
    flops: str | None = None
    rung: str | None = None
    seed: str | None = None
    aspect: str | None = None


@dataclass(frozen=True, repr=False)
class Study(Summarized):
    """Prepared runs of one or more families, with the names of the two that are compared."""

    table: pd.DataFrame
    deep: str
    wide: str
    n_name: str
    n_definitions: tuple[str, ...]
    warnings: tuple[str, ...] = field(default=())
    are_budgets_grouped: bool = False
    """Whether `tokens_per_param` is the mean of a group of runs with nearly equal tokens / n, as none was given."""

    def title(self) -> str:
        families = count(len(self.families), "family", "families")
        return (
            f"prepared table of {count(len(self.table), 'run')}, {families}, {self.deep} against {self.wide}, "
            f"N = {self.n_name}"
        )

    @property
    def families(self) -> list[str]:
        return list(dict.fromkeys(self.table["family"]))

    @property
    def pair(self) -> pd.DataFrame:
        """Runs of `deep` and `wide` only."""
        return self.table[self.table["family"].isin([self.deep, self.wide])]


def prepare(
    table: pd.DataFrame,
    columns: Columns,
    deep: str | None,
    wide: str | None,
    vocab_size: int | None = None,
) -> Study:
    """Rename columns, group shapes into rungs and tokens into budgets, and identify the deep and wide families.

    Args:
        deep, wide: family names; None: identified by mean aspect ratio, else by words in the name.
        vocab_size: if known, losses above its logarithm are an error.

    Raises:
        DataError: if a column is missing or has invalid values, or the deep and wide families cannot be identified.
    """
    if table.empty:
        raise DataError("the table has no runs; load runs with load_runs(FOLDER)")
    required = (columns.n, columns.tokens, columns.loss, columns.family, columns.shape)
    _check_columns(table, (*required, columns.flops, columns.rung, columns.seed, columns.aspect))
    numbers = positive_columns(
        **{name: table[name] for name in (columns.n, columns.tokens, columns.loss)}
    )
    size, tokens, loss = (numbers[name] for name in (columns.n, columns.tokens, columns.loss))
    prepared = pd.DataFrame({"n": size, "tokens": merge_close(tokens), "loss_nats_per_token": loss})
    for name, column in (("family", columns.family), ("shape", columns.shape)):
        prepared[name] = [str(x) for x in label_column(column, table[column], len(table))]
    warnings = [*loss_warnings(loss, vocab_size), *label_warnings("family", prepared["family"])]
    if columns.flops is None:
        prepared["flops"] = 6 * size * tokens
        if columns.n != "n_flop":
            warnings.append(
                f"training FLOPs are approximated by 6 x {columns.n} x {columns.tokens}"
            )
    else:
        prepared["flops"] = positive_columns(**{columns.flops: table[columns.flops]})[columns.flops]
    given = None if columns.flops is None else prepared["flops"].to_numpy()
    if "recipe_id" not in table:  # runs of slm have consistent units
        warnings += count_warnings(columns.n, size, tokens, given)
    prepared["seed"] = 0
    if columns.seed:
        prepared["seed"] = list(label_column(columns.seed, table[columns.seed], len(table)))
    _add_shape_columns(prepared, table, columns.aspect)
    warnings += _merge_shapes(prepared)
    others = [name for name in OTHER_DEFINITIONS if name in table and name != columns.n]
    for name in others:
        prepared[name] = positive_columns(**{name: table[name]})[name]
    if columns.rung and table[columns.rung].notna().any():
        prepared["rung"] = list(label_column(columns.rung, table[columns.rung], len(table)))
    else:
        prepared["rung"] = _matched_rungs(prepared)
    by_rung = prepared.groupby("rung", sort=False)
    prepared["tokens"] = by_rung["tokens"].transform(lambda rows: merge_close(rows, SAME))
    mean = by_rung["n"].transform("mean")
    has_size = "size" in table and is_complete("size", table["size"])
    prepared["size"] = pd.to_numeric(table["size"]).to_numpy() if has_size else mean
    labels, notes, is_grouped = _budget_labels(
        table, (prepared["tokens"] / mean).to_numpy(), columns.n
    )
    prepared["tokens_per_param"] = labels
    warnings += notes + partner_warnings(prepared, columns.n, columns.tokens, SAME_RUNG)
    # Runs of slm have one unit, and on a task that needs depth very different losses.
    warnings += [] if "recipe_id" in table else loss_ratio_warnings(prepared)
    prepared = _sorted_rows(prepared)
    deep, wide = _deep_and_wide(prepared, deep, wide)
    return Study(prepared, deep, wide, columns.n, tuple(others), tuple(warnings), is_grouped)


def _add_shape_columns(prepared: pd.DataFrame, table: pd.DataFrame, aspect: str | None) -> None:
    """Add aspect_ratio and n_layers, where they are known."""
    if aspect:
        prepared["aspect_ratio"] = _aspect_ratios(aspect, table[aspect])
    elif {"d_model", "n_layers"} <= set(table):
        width, depth = (_numbers(name, table[name]) for name in ("d_model", "n_layers"))
        prepared["aspect_ratio"] = width / depth
    if "n_layers" in table:
        prepared["n_layers"] = pd.to_numeric(table["n_layers"], errors="coerce").to_numpy()


def _numbers(name: str, column: Any) -> np.ndarray:
    """Return a column as floats; a missing value is nan."""
    try:
        return np.asarray(column, dtype=float)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name}: values must be numbers ({error})") from None


def _aspect_ratios(name: str, column: Any) -> np.ndarray:
    """Return aspect ratios; a missing value is nan."""
    values = _numbers(name, column)
    bad = np.flatnonzero(~np.isnan(values) & ~((values > 0) & np.isfinite(values)))
    if len(bad):
        raise DataError(f"{name}={values[bad[0]]:g} in row {bad[0]}: must be finite and above 0")
    return values


def _merge_shapes(prepared: pd.DataFrame) -> list[str]:
    """Give one label to shapes of a family with the same N and aspect ratio: run ids are no shapes."""
    keys = [prepared["family"], pd.Series(merge_close(prepared["n"], SAME), index=prepared.index)]
    if "aspect_ratio" in prepared:
        keys.append(
            pd.Series(merge_close(prepared["aspect_ratio"].fillna(0), SAME), index=prepared.index)
        )
    groups = prepared.groupby(keys, sort=False)["shape"]
    if groups.nunique().max() < 2:
        return []
    merged = groups.transform("first")
    others = int((merged != prepared["shape"]).sum())
    prepared["shape"] = merged
    return [
        f"{count(others, 'run')} with another shape label than runs of the same family, N and aspect ratio: they count as "
        "one shape"
    ]


def _sorted_rows(prepared: pd.DataFrame) -> pd.DataFrame:
    """Sort the rows, so that no result depends on their order in the given table; keep the index."""
    names = ["family", "flops", "tokens", "shape", "seed", "loss_nats_per_token"]
    keys = prepared[names].copy()
    keys["flops"] = merge_close(keys["flops"])
    if keys["seed"].dtype == object:
        keys["seed"] = keys["seed"].map(str)
    return prepared.loc[keys.sort_values(names).index]


def _check_columns(table: pd.DataFrame, names: Sequence[str | None]) -> None:
    for name in names:
        if name is not None and name not in table:
            raise DataError(f"the table has no column {name!r}; {nearest(name, table.columns)}")


def _matched_rungs(prepared: pd.DataFrame) -> list[Any]:
    """Group shapes of nearly equal N into rungs, from small to large, with at most one shape per family.

    A shape joins the nearest rung within SAME_RUNG that has no shape of its family, or starts a new rung.
    """
    sizes = prepared.groupby(["family", "shape"])["n"].mean()
    sizes = sizes.iloc[stable_argsort(sizes)]
    rungs: list[tuple[float, set[str]]] = []
    rung_of: dict[tuple[str, str], int] = {}
    for key, size in sizes.items():
        family, shape = str(key[0]), str(key[1])  # type: ignore[index]
        log_size = math.log(size)
        near = [
            (round(abs(log_size - centre), 9), index)
            for index, (centre, members) in enumerate(rungs)
            if family not in members and exceeds(SAME_RUNG, abs(log_size - centre))
        ]
        if near:
            index = min(near)[1]
            rungs[index][1].add(family)
        else:
            index = len(rungs)
            rungs.append((log_size, {family}))
        rung_of[family, shape] = index
    return [rung_of[key] for key in zip(prepared["family"], prepared["shape"], strict=True)]


def _budget_labels(
    table: pd.DataFrame, ratio: np.ndarray, n_name: str
) -> tuple[np.ndarray, list[str], bool]:
    """Return tokens_per_param as requested, equal for all runs of one budget; else group the runs by `ratio`.

    The requested values are in the column `budget`, or in `tokens_per_param` of our own runs, which have a
    `recipe_id`. A column of another table with this name may hold each run's own ratio. It is used if it has no
    more distinct values than there are groups. Columns of words are not used, and columns far from `ratio`
    neither, with a warning. The last value returned is whether the runs were grouped.
    """
    grouped = _tokens_per_param(np.log(ratio))
    warnings = []
    for name in BUDGET_COLUMNS:
        if name not in table or not is_complete(name, table[name]):
            continue
        values = pd.to_numeric(table[name]).to_numpy(dtype=float)
        is_own = "recipe_id" in table
        middle = float(np.median(values / ratio))
        if not is_own and not 1 / MAX_BUDGET_RATIO < middle < MAX_BUDGET_RATIO:
            warnings.append(
                f"{name} is not used: it is {middle:.3g} times tokens / {n_name} (median), so not in tokens per parameter"
            )
            continue
        labels = merge_close(values)
        if name == "budget" or is_own or len(np.unique(labels)) <= len(np.unique(grouped)):
            return labels, warnings, False
    return grouped, warnings, True


def _tokens_per_param(log_ratio: np.ndarray) -> np.ndarray:
    """Group runs of nearly equal tokens / n and return the geometric mean of each run's group."""
    order = np.argsort(log_ratio, kind="stable")
    groups = np.concatenate([[0], np.cumsum(exceeds(np.diff(log_ratio[order]), SAME_BUDGET))])
    values = np.empty(len(log_ratio))
    for group in range(groups[-1] + 1):
        rows = order[groups == group]
        values[rows] = round_to_three_digits(math.exp(log_ratio[rows].mean()))
    return values


def _deep_and_wide(prepared: pd.DataFrame, deep: str | None, wide: str | None) -> tuple[str, str]:
    """Return the names of the deep and the wide family: as given, else by aspect ratio, else by name."""
    families = list(dict.fromkeys(prepared["family"]))
    deep, wide = (None if name is None else stripped(str(name)) for name in (deep, wide))
    for name in (deep, wide):
        if name is not None and name not in families:
            raise DataError(f"the table has no family {name!r}; {nearest(name, families)}")
    if deep and wide:
        if deep == wide:
            raise DataError(f"deep and wide are both {deep!r}; pass two different families")
        return deep, wide
    rest = [name for name in families if name not in (deep, wide)]
    if len(families) == 1:
        return families[0], families[0]
    if "aspect_ratio" in prepared:
        aspects = np.log(prepared["aspect_ratio"]).groupby(prepared["family"]).mean().dropna()
        known = list(aspects.index[stable_argsort(aspects)])
        known = [name for name in known if name not in (deep, wide)]
        if len(known) >= 2 - len({deep, wide} - {None}):
            return deep or known[0], wide or known[-1]
    if len(families) == 2 and (deep or wide):
        return deep or rest[0], wide or rest[0]
    matches = {
        side: [name for name in families if any(word in name.lower() for word in words)]
        for side, words in (("deep", DEEP_WORDS), ("wide", WIDE_WORDS))
    }
    if len(matches["deep"]) == len(matches["wide"]) == 1 and matches["deep"] != matches["wide"]:
        return deep or matches["deep"][0], wide or matches["wide"][0]
    raise DataError(
        f"cannot identify the deep and the wide family among {', '.join(families)}; name them with "
        "--contrast DEEP,WIDE (in Python: deep=, wide=)"
    )
