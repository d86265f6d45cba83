"""Warn about runs without a partner: a run of another family with equal rung and tokens."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.design.identifiability import SAME
from analysis.formatting import count
from slm.rounding import exceeds

NEAR_SIZE = np.log(2)  # ln N; a larger difference is another size


def partner_warnings(
    prepared: pd.DataFrame, n_name: str, tokens_name: str, same_size: float
) -> list[str]:
    """Return a warning with the number of runs without a partner, and the probable reason.

    Args:
        prepared: runs with family, rung, n and tokens.
        n_name, tokens_name: names of the columns, for the message.
        same_size: largest difference in ln N within a rung; a larger one in ln tokens is another token budget.
    """
    if prepared["family"].nunique() < 2:
        return []
    alone = prepared.groupby(["rung", "tokens"])["family"].transform("nunique") == 1
    if not alone.any():
        return []
    found = (
        f"{alone.sum()} of {count(len(prepared), 'run')} share no token count with another family of their rung, so their "
        "losses are not compared at equal compute"
    )
    reason = _reason(prepared, alone.to_numpy(), n_name, tokens_name, same_size)
    return [f"{found}{reason or '; run the other family at these tokens, or remove these runs'}"]


def _reason(
    prepared: pd.DataFrame, alone: np.ndarray, n_name: str, tokens_name: str, same_size: float
) -> str | None:
    """Return why most runs without a partner have none, if another family has nearly equal ones; else None."""
    in_rung, in_size = (
        [],
        [],
    )  # differences in ln N and ln tokens to the nearest run of another family
    log_n, log_tokens = np.log(prepared["n"].to_numpy()), np.log(prepared["tokens"].to_numpy())
    family, rung = prepared["family"].to_numpy(), prepared["rung"].to_numpy()
    for row in np.flatnonzero(alone):
        others = family != family[row]
        n, tokens = log_n - log_n[row], log_tokens - log_tokens[row]
        near = np.flatnonzero(others & (rung == rung[row]) & ~exceeds(np.abs(tokens), same_size))
        if len(near):
            nearest = near[np.argmin(np.abs(tokens[near]).round(9))]
            in_rung.append((n[nearest], tokens[nearest]))
        equal = np.flatnonzero(
            others & ~exceeds(np.abs(tokens), SAME) & ~exceeds(np.abs(n), NEAR_SIZE)
        )
        if len(equal):
            in_size.append(np.abs(n[equal]).min())
    half = alone.sum() / 2
    if len(in_rung) > half:
        n, tokens = np.array(in_rung).T
        own = ~exceeds(np.abs(n - tokens), SAME) & exceeds(np.abs(n), SAME)
        if own.all():
            return f": {tokens_name} are proportional to each family's own N; give all families of a rung the same tokens"
    if len(in_size) > half:
        return (
            f": at equal {tokens_name}, {n_name} of the nearest run of another family differs by "
            f"{_percent(in_size)} (median), and sizes within {np.expm1(same_size):.0%} are one rung; compare models of "
            "nearly equal size, or name the pairs in a column, with --columns rung=NAME"
        )
    if len(in_rung) > half:
        return (
            f": {tokens_name} of the nearest run of another family in the rung differ by {_percent(np.abs(tokens))} "
            f"(median), and counts within {SAME:.1%} are equal; give all families of a rung the same tokens"
        )
    return None


def _percent(log_ratios: list[float] | np.ndarray) -> str:
    """Return the median of absolute differences of logarithms as a percentage."""
    return f"{100 * np.expm1(np.median(log_ratios)):.2g}%"
