"""Rules for a user's columns: errors before anything is fitted, and warnings about suspicious values."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from analysis.arrays import Floats
from slm.errors import DataError
from slm.rounding import exceeds

LARGEST_VOCABULARY = 2**18
FLAGS = {
    **dict.fromkeys(("yes", "y", "true", "t", "on", "1"), True),
    **dict.fromkeys(("no", "n", "false", "f", "off", "0"), False),
}
SMALLEST_N, FEWEST_TOKENS = 1e4, 1e5  # below them N and tokens look like millions or billions
MAX_FLOPS_ERROR = 1.25  # factor between flops and 6 n_flop tokens, which are equal by definition
MAX_FLOPS_RATIO = 2.0  # the same for another definition of N, without attention or embeddings
MAX_FLOPS_SPREAD = 2.0  # largest over smallest ratio of flops to 6 N tokens
MOST_FLOPS = 30.0  # factor between flops and 6 N tokens in either direction, beyond which they contradict each other
LEAST_RATIO, LARGEST_RATIO = 1e-2, 1e9  # of tokens to N, for any training run
SUSPICIOUS_RATIO = 1e5
MAX_LOSS_RATIO = 1.3  # between two families at equal size and tokens
SMALLEST_LOG10, LARGEST_LOG10 = 3.0, 30.0
MAX_POWER = 300  # of ten, in a float
FLOPS_UNITS = {-9: "GFLOPs", -12: "TFLOPs", -15: "PFLOPs", -18: "EFLOPs"}
EMPTY_WORDS = ("nan", "-nan", "na", "n/a", "#n/a", "#na", "<na>", "none", "null")
NO_NUMBER = (
    *EMPTY_WORDS,
    "-",
    "--",
    "\u2013",
    "\u2014",
    "diverged",
    "oom",
    "inf",
    "-inf",
)
NUMBER_ADVICE = "write 125M as 1.25e8, without thousands separators"
INVISIBLE = re.compile(
    "[\u200b\u200c\u200d\u2060\ufeff]"
)  # zero-width characters of web pages and spreadsheets
NAMES_OF_EXTREMES = re.compile(r"(?<![a-z])(min|max|best|lowest)(?![a-z])", re.IGNORECASE)
NAMES_OF_BITS = re.compile(r"bpc|bpb|bpt|(?<![a-z])bits?(?![a-z])", re.IGNORECASE)
NAMES_OF_PERPLEXITY = re.compile(r"ppl|perplexity", re.IGNORECASE)
LOSS_ADVICE = "if these are perplexities, pass their logarithm; if bits, multiply by ln 2"
SUSPICIOUS_LOSS = math.log(50_257)  # nats; loss of a uniform guess over GPT-2's vocabulary


def positive_columns(**columns: ArrayLike) -> dict[str, Floats]:
    """Return the columns as float arrays of equal length, with all values finite and above 0.

    Raises:
        DataError: if a column breaks this rule; the message names the column, its first bad row and the fix.
    """
    arrays: dict[str, Floats] = {}
    for name, column in columns.items():
        try:
            array = np.asarray(column, dtype=float)
        except (TypeError, ValueError) as error:
            raise DataError(f"{name}: values must be numbers ({error})") from None
        if array.ndim != 1:
            raise DataError(f"{name}: must be one-dimensional, not of shape {array.shape}")
        arrays[name] = array
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"columns must have equal length, one entry per run; lengths are {lengths}")
    for name, array in arrays.items():
        bad = np.flatnonzero(~(np.isfinite(array) & (array > 0)))
        if len(bad):
            raise DataError(
                f"{name}: {len(bad)} of {len(array)} values are not finite and above 0 (first: "
                f"{array[bad[0]]} in row {bad[0]}); remove unfinished runs, as load_runs does"
            )
    return arrays


def label_column(name: str, values: Any, length: int) -> NDArray[Any]:
    """Return the labels, one per run, as an array of objects; text without surrounding spaces.

    Raises:
        DataError: if their number is not `length`, or a label is missing or empty.
    """
    array = np.empty(len(values), dtype=object)
    array[:] = [stripped(value) for value in values]
    if len(array) != length:
        raise DataError(f"{name}: {len(array)} labels for {length} runs; give one label per run")
    for row, value in enumerate(array):
        if is_missing(value):
            raise DataError(f"{name}: no label in row {row}; give every run a label")
        if isinstance(value, Mapping | list | set | np.ndarray):
            raise DataError(f"{name}={value!r} in row {row}: must be a word or number")
    return array


def stripped(value: Any) -> Any:
    """Return text in composed Unicode without surrounding spaces and invisible characters, any other value as it is."""
    if not isinstance(value, str):
        return value
    return unicodedata.normalize("NFC", INVISIBLE.sub("", value).strip())


def is_missing(value: Any) -> bool:
    """Return whether a cell is empty: None, nan or empty text."""
    return pd.api.types.is_scalar(value) and (value == "" or bool(pd.isna(value)))


def without_empty_word(value: Any) -> Any:
    """Return None for a word that stands for an empty cell, such as NA or None, and any other value as it is."""
    is_word = isinstance(value, str) and value.strip().lower() in EMPTY_WORDS
    return None if is_word else value


def is_no_number(value: Any) -> bool:
    """Return whether a cell holds a usual word for a missing or diverged loss."""
    return isinstance(value, str) and value.strip().lower() in NO_NUMBER


def number_advice(value: Any) -> str:
    """Return how to write a number, to append to a message; empty if the value has no digit."""
    has_digit = isinstance(value, str) and any(character.isdigit() for character in value)
    return f"; {NUMBER_ADVICE}" if has_digit else ""


def loss_name_notes(name: str) -> list[str]:
    """Return a note if the name of a column of losses is that of bits, of perplexities, or of an extreme."""
    if NAMES_OF_BITS.search(name):
        return [
            f"column {name}: losses must be nats per token; if these are bits, multiply by ln 2"
        ]
    if found := NAMES_OF_EXTREMES.search(name):
        return [
            f"column {name}: losses must be the final ones; a {found[0].lower()} over steps or over a group of runs is biased"
        ]
    if NAMES_OF_PERPLEXITY.search(name):
        return [
            f"column {name}: losses must be nats per token; if these are perplexities, take the logarithm"
        ]
    return []


def flag_column(name: str, values: Iterable[Any]) -> NDArray[np.bool_]:
    """Return a column of yes/no, true/false or 1/0 as booleans.

    Raises:
        DataError: if a value is none of them.
    """
    flags = []
    for row, value in enumerate(values):
        flag = FLAGS.get(str(value).strip().lower().removesuffix(".0"))
        if flag is None:
            raise DataError(
                f"{name}={value!r} in row {row}: must be yes or no, true or false, 1 or 0"
            )
        flags.append(flag)
    return np.array(flags, dtype=bool)


def is_complete(name: str, column: pd.Series) -> bool:
    """Return whether an optional column has a number in every row; False if it holds words, or nothing.

    Raises:
        DataError: if numbers are missing in some rows only.
    """
    missing = np.array([is_missing(stripped(value)) for value in column])
    numbers = pd.to_numeric(column[~missing], errors="coerce")
    if missing.all() or numbers.isna().any():
        return False
    if missing.any():
        raise DataError(
            f"{name}: no number in row {np.flatnonzero(missing)[0]}; give every run a number, or remove the column"
        )
    return True


def label_warnings(name: str, labels: Iterable[str]) -> Iterator[str]:
    """Yield a warning for labels that differ in case or spaces only."""
    spellings: dict[str, list[str]] = {}
    for label in dict.fromkeys(labels):
        plain = unicodedata.normalize("NFKC", label).casefold()
        spellings.setdefault("".join(plain.split()), []).append(label)
    for alike in spellings.values():
        if len(alike) > 1:
            different = " and ".join(repr(label) for label in alike)
            yield f"{name}: {different} count as different; use one spelling if they are the same"


def count_warnings(
    n_name: str,
    n: Floats,
    tokens: Floats,
    flops: Floats | None = None,
    shown: Mapping[str, str] | None = None,
    *,
    source: str = "",
) -> list[str]:
    """Return warnings for sizes, tokens and FLOPs that look small or contradict each other.

    `n_name`: definition of N, `n_flop` or another. `shown`: names of the columns in messages, if they are others.
    `source`: path, for messages of errors.

    Raises:
        DataError: if they cannot be counts, because they are logarithms or in millions, billions or GFLOPs.
    """
    names = {name: (shown or {}).get(name, name) for name in (n_name, "tokens", "flops")}
    try:
        return list(_count_warnings(n_name, n, tokens, flops, names))
    except DataError as error:
        raise DataError(f"{source}: {error}" if source else str(error)) from None


def _count_warnings(
    n_name: str, n: Floats, tokens: Floats, flops: Floats | None, names: Mapping[str, str]
) -> Iterator[str]:
    n_shown, tokens_shown, flops_shown = (names[name] for name in (n_name, "tokens", "flops"))
    yield from _small_counts({n_shown: (n, SMALLEST_N), tokens_shown: (tokens, FEWEST_TOKENS)})
    ratio = float(np.median(tokens / n))
    if not LEAST_RATIO <= ratio <= LARGEST_RATIO:
        raise DataError(
            f"{tokens_shown} is {ratio:.3g} times {n_shown} (median): one of them has another unit; give both as counts, "
            "for example 1.5e8 instead of 150 millions"
        )
    low, high = (int(row) for row in (np.argmin(tokens / n), np.argmax(tokens / n)))
    if exceeds(LEAST_RATIO, tokens[low] / n[low]):
        raise DataError(
            f"{tokens_shown}={tokens[low]:.4g} and {n_shown}={n[low]:.4g} of a run: one of them has another unit than in "
            "the other runs; give both as counts"
        )
    if ratio > SUSPICIOUS_RATIO:
        yield f"{tokens_shown} is {ratio:.3g} times {n_shown} (median); check their units"
    elif tokens[high] / n[high] > SUSPICIOUS_RATIO:
        yield (
            f"{tokens_shown}={tokens[high]:.4g} and {n_shown}={n[high]:.4g} of a run, a ratio of "
            f"{tokens[high] / n[high]:.3g}; check their units"
        )
    if flops is None:
        return
    if text := flops_contradiction(n_shown, n, tokens, flops, flops_shown):
        raise DataError(text)
    quotient = flops / (6 * n * tokens)
    middle, spread = float(np.median(quotient)), float(quotient.max() / quotient.min())
    limit = MAX_FLOPS_ERROR if n_name == "n_flop" else MAX_FLOPS_RATIO
    if exceeds(abs(math.log(middle)), math.log(limit)) or exceeds(spread, MAX_FLOPS_SPREAD):
        yield (
            f"{flops_shown} are {middle:.3g} times 6 {n_shown} tokens (median; {quotient.min():.3g} to {quotient.max():.3g}); "
            "compute is taken from flops: check its unit, and that it covers forward and backward pass of all tokens"
        )


def _are_sixths(values: Floats) -> bool:
    return bool(np.allclose(6 * values, np.round(6 * values), rtol=0, atol=1e-6))


def _small_counts(columns: Mapping[str, tuple[Floats, float]]) -> Iterator[str]:
    """Yield a warning if the values of one column are below its limit.

    Logarithms, values far below the limit and fractions of millions are refused: a count is a whole number, and n_flop
    a sixth of one.
    """
    small = {
        name: (values, limit)
        for name, (values, limit) in columns.items()
        if exceeds(limit, values.max())
    }
    ranges = " and ".join(
        f"{name} is {values.min():.4g} to {values.max():.4g}" for name, (values, _) in small.items()
    )
    for values, _ in small.values():
        if _looks_like_log10(values):
            raise DataError(
                f"{ranges}, which looks like log10 or ln; give the count itself, 10 or e to its power"
            )
    if len(small) > 1 or any(
        exceeds(limit / 10, values.max()) or not _are_sixths(values)
        for values, limit in small.values()
    ):
        raise DataError(
            f"{ranges}: too small for a count; multiply millions by 1e6 and billions by 1e9"
        )
    if small:
        yield f"{ranges}, which is small for a count; check its unit"


def _looks_like_log10(values: Floats) -> bool:
    low, high = float(values.min()), float(values.max())
    return low >= SMALLEST_LOG10 and high <= LARGEST_LOG10 and bool((values % 1 != 0).any())


def flops_contradiction(
    n_name: str, n: Floats, tokens: Floats, flops: Floats, flops_name: str = "flops"
) -> str | None:
    """Return why FLOPs cannot be those of N and tokens: their ratio to 6 N tokens and the probable unit; None if they can.

    Attention and the head cost FLOPs that 6 N tokens does not count, at most a factor of 10 in small models.
    """
    middle = float(np.median(np.log10(flops) - np.log10(6) - np.log10(n) - np.log10(tokens)))
    if abs(middle) < math.log10(MOST_FLOPS):
        return None
    if _looks_like_log10(flops):
        return f"{flops_name} are {flops.min():.4g} to {flops.max():.4g}, which looks like log10; give 10 to its power"
    power = round(middle / 3) * 3
    unit = (
        f"; if they are in {FLOPS_UNITS[power]}, multiply by 1e{-power}"
        if power in FLOPS_UNITS
        else ""
    )
    times = f"{10**middle:.3g}" if abs(middle) < MAX_POWER else f"1e{middle:.0f}"
    return f"{flops_name} are {times} times 6 {n_name} tokens (median), so not the training FLOPs{unit}"


def check_unit_of_loss(loss: Floats, place: str = "") -> None:
    """Refuse losses that are too large for nats per token; `place`: start of the message."""
    if exceeds(median := float(np.median(loss)), math.log(LARGEST_VOCABULARY)):
        raise DataError(
            f"{place}a median loss of {median:g} is worse than a uniform guess over {LARGEST_VOCABULARY} "
            f"tokens, so it is not nats per token; {LOSS_ADVICE}"
        )


def loss_ratio_warnings(table: pd.DataFrame) -> list[str]:
    """Return a warning if the losses of two families at equal rung and tokens differ too much for one unit."""
    cells = table.pivot_table("loss_nats_per_token", ["rung", "tokens"], "family", sort=False)
    for one, other in combinations(cells.columns, 2):
        ratio = float((cells[one] / cells[other]).median())
        small, large = (one, other) if ratio < 1 else (other, one)
        if exceeds(abs(math.log(ratio)), math.log(MAX_LOSS_RATIO)):
            return [
                f"losses of {large} are {max(ratio, 1 / ratio):.3g} times those of {small} at equal size and tokens (median); "
                "check that both are in nats per token (1/ln 2 = 1.443 times as large in bits), on the same text and tokenizer"
            ]
    return []


def loss_warnings(loss: Floats, vocab_size: int | None = None) -> list[str]:
    """Return warnings if the losses look too large for nats per token.

    Raises:
        DataError: if they cannot be nats per token: above ln(vocab_size), the loss of a uniform guess.
    """
    worst = float(loss.max())
    if vocab_size is not None and exceeds(worst, math.log(vocab_size)):
        raise DataError(
            f"loss={worst:g}: cannot exceed ln({vocab_size}) = {math.log(vocab_size):.2f} nats per token "
            f"after training; {LOSS_ADVICE}"
        )
    check_unit_of_loss(loss)
    if exceeds(worst, SUSPICIOUS_LOSS):
        return [
            f"losses up to {worst:.2f} are high for nats per token (a uniform guess over 50,257 tokens "
            f"has {SUSPICIOUS_LOSS:.2f}); {LOSS_ADVICE}"
        ]
    return []
