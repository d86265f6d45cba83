"""The columns of a table of runs: their names and kinds, and how those of a user's table are mapped to them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from shlex import quote
from typing import Any

import numpy as np
import pandas as pd

from analysis.runs.validate import FLAGS, is_missing, number_advice, stripped, without_empty_word
from slm.errors import DataError, nearest

POSITIVE, NUMBER, LABEL, FLAG = "a number above 0", "a number", "a word or number", "yes or no"
NUMBERS = (POSITIVE, NUMBER)


@dataclass(frozen=True)
class KnownColumn:
    """A column that the analysis uses. `aliases`: usual names of other programs and papers, in lower case."""

    kind: str
    meaning: str
    aliases: tuple[str, ...] = ()


COLUMNS = {
    "family": KnownColumn(
        LABEL, "architecture family", ("mix", "arch", "architecture", "variant", "group", "model_family", "mixture")
    ),
    "shape": KnownColumn(
        LABEL, "name of the shape; without it, each N of a family is one shape", ("model", "model_name", "config_name")
    ),
    "n_flop": KnownColumn(
        POSITIVE, "training FLOPs per token / 6", ("n", "n_params", "num_params", "params", "parameters", "model_size")
    ),
    "params_non_embedding": KnownColumn(
        POSITIVE, "parameters without embedding and head", ("non_embedding_params", "n_nonembed", "weight_params")
    ),
    "params_total": KnownColumn(POSITIVE, "all parameters", ("total_params", "n_total")),
    "tokens": KnownColumn(
        POSITIVE, "training tokens", ("d", "n_tokens", "num_tokens", "train_tokens", "tokens_seen", "data_tokens")
    ),
    "loss_nats_per_token": KnownColumn(
        NUMBER,
        "final validation loss in nats per token",
        ("loss", "val_loss", "final_loss", "eval_loss", "validation_loss", "test_loss", "l"),
    ),
    "flops": KnownColumn(POSITIVE, "training FLOPs", ("c", "compute", "total_flops", "train_flops", "n_flops")),
    "seed": KnownColumn(LABEL, "seed", ("random_seed", "trial")),
    "rung": KnownColumn(LABEL, "label of the size, equal in all families", ("size_class",)),
    "tokens_per_param": KnownColumn(POSITIVE, "token budget as requested", ("tokens_per_parameter",)),
    "budget": KnownColumn(POSITIVE, "older name of tokens_per_param"),
    "size": KnownColumn(POSITIVE, "number that labels the rung"),
    "aspect_ratio": KnownColumn(POSITIVE, "d_model / n_layers", ("aspect",)),
    "d_model": KnownColumn(POSITIVE, "width", ("width", "hidden_size", "n_embd", "dim")),
    "n_layers": KnownColumn(POSITIVE, "depth", ("depth", "num_layers", "num_hidden_layers", "n_layer", "layers")),
    "run_id": KnownColumn(LABEL, "id of the run", ("id", "run", "name")),
    "status": KnownColumn(LABEL, "finished, or why not", ("state",)),
    "decayed": KnownColumn(FLAG, "whether the learning rate has decayed"),
    "val_fingerprint": KnownColumn(LABEL, "id of the validation set"),
    "peak_lr": KnownColumn(POSITIVE, "peak learning rate", ("lr", "learning_rate", "max_lr")),
}  # fmt: skip
SIZES = ("n_flop", "params_non_embedding", "params_total")
MAY_BE_EMPTY = (
    "run_id",
    "seed",
    "rung",
    "aspect_ratio",
    "peak_lr",
    "val_fingerprint",
)  # in some rows
UNKNOWN_SEED = "unknown, "  # and the place of the row, in a table where some seeds are missing
TEXT_LABELS = ("family", "shape")  # numbers as labels become text, and None is a label
REQUIRED = ("family", "tokens", "loss_nats_per_token")
WANDB_CHART = re.compile(r" - .*__(MIN|MAX)$")
UNIT = re.compile(r"\s*[\[(](k|m|b|t|thousands?|millions?|billions?|trillions?|nats)[\])]$", re.I)
SEPARATOR = re.compile(r",(?=\s*[A-Za-z_]\w*\s*=)")  # a name in the file may contain commas


def parse_pairs(text: str, example: str) -> dict[str, str]:
    """Parse NAME=VALUE,NAME=VALUE with names of `COLUMNS`.

    Raises:
        DataError: if it has another form, or a name is unknown or occurs twice.
    """
    pairs: dict[str, str] = {}
    for part in SEPARATOR.split(text) if text else ():
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not (name and equals and value):
            raise DataError(f"{part!r}: not of the form NAME=VALUE; for example {example}")
        _check_name(name, value)
        if name in pairs:
            raise DataError(f"{name}={value}: {name} was given before, as {pairs[name]}")
        pairs[name] = value
    return pairs


def _check_name(name: Any, value: Any) -> None:
    if name not in COLUMNS:
        raise DataError(f"{name}={value}: no such column; {nearest(str(name), COLUMNS)}")


def _check_pairs(columns: Mapping[str, str], constants: Mapping[str, Any]) -> None:
    """Refuse unknown names, names that are given as a column and as a constant, and values of a wrong type.

    A column of the file has a name; a constant is a word or a number.
    """
    for option, pairs in (("columns", columns), ("constants", constants)):
        if not isinstance(pairs, Mapping):
            raise DataError(f"{option}={pairs!r}: must be a dictionary, such as {{'tokens': 'D'}}")
        for name, value in pairs.items():
            _check_name(name, value)
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not (isinstance(value, str) and value.strip()) and not (
                option == "constants" and is_number
            ):
                rule = "a word or a number" if option == "constants" else "the name of a column"
                raise DataError(f"{option}: {name}={value!r}: must be {rule}")
    if both := [name for name in columns if name in constants]:
        name = both[0]
        raise DataError(
            f"{name} is given both as column {columns[name]!r} and as constant {constants[name]!r}; remove one of them"
        )


def rename_columns(
    table: pd.DataFrame, columns: Mapping[str, str], constants: Mapping[str, str], source: str
) -> pd.DataFrame:
    """Return a table with the mapped columns and constants under the names of `COLUMNS`.

    One column of the file may have several names, and a given name replaces a column of that name. Without a column
    `shape`, each N is a shape of its own.

    Raises:
        DataError: if a mapped column does not exist, a required one is missing, or a name is unknown.
    """
    _check_pairs(columns, constants)
    columns = {name: unicodedata.normalize("NFC", given) for name, given in columns.items()}
    names = [str(name) for name in table.columns]
    for name, name_in_file in columns.items():
        if name_in_file not in names:
            if numbered := _numbered(name_in_file, names):
                raise DataError(
                    f"{source}: has no column {name_in_file!r} (given for {name}), since it occurs {len(numbered)} times; "
                    f"choose one of: {', '.join(numbered)}"
                )
            constant = (
                f"; for one value in all runs, give --constant {name}={name_in_file} or "
                f"constants={{{name!r}: {name_in_file!r}}}"
            )
            raise DataError(
                f"{source}: has no column {name_in_file!r} (given for {name}); {nearest(name_in_file, names)}"
                f"{constant if COLUMNS[name].kind == LABEL else ''}"
            )
    mapped = {name: table[name_in_file] for name, name_in_file in columns.items()}
    kept = table.drop(columns=list(set(columns.values()) - set(columns)))
    renamed = kept.assign(**mapped).assign(**constants)
    missing = [name for name in REQUIRED if name not in renamed]
    if not set(SIZES) & set(renamed.columns):
        missing.append("n_flop")
    if missing:
        raise DataError(_missing_text(missing, names, source))
    if "shape" not in renamed:
        size = next(name for name in SIZES if name in renamed)
        renamed["shape"] = [str(value) for value in renamed[size]]
    return renamed


def _missing_text(missing: Collection[str], names: Collection[str], source: str) -> str:
    guessed = guess_columns(names)
    guessed |= {name: twins[0] for name in missing if (twins := _numbered(name, names))}
    if any(WANDB_CHART.search(name) for name in names):
        return (
            f"{source}: lacks {', '.join(missing)}; it looks like the export of a W&B chart, with one column per run; "
            "export the table of the runs instead, with one row per run"
        )
    pairs = ",".join(f"{name}={guessed.get(name, 'NAME')}" for name in missing)
    meanings = "; ".join(f"{name}: {_meaning(name)}" for name in missing)
    python = ", ".join(f"{name!r}: {guessed.get(name, 'NAME')!r}" for name in missing)
    return (
        f"{source}: lacks {', '.join(missing)} ({meanings}); give their names in the file, as --columns '{pairs}' or "
        f"columns={{{python}}}; its columns are {', '.join(names)}"
    )


def _numbered(name: str, names: Iterable[str]) -> list[str]:
    """Return the numbered names of a column that occurs more than once (`analysis.runs.files`)."""
    pattern = re.compile(rf"{re.escape(name)} \(column \d+\)")
    return [each for each in names if pattern.fullmatch(each)]


def guess_columns(names: Iterable[str]) -> dict[str, str]:
    """Guess which column of a file is which of `COLUMNS`, by their usual names; columns of the same name are left out."""
    by_key = {_key(name): name for name in reversed([str(each) for each in names])}
    guessed: dict[str, str] = {}
    for name, column in COLUMNS.items():
        if name in by_key.values():
            continue
        for alias in (name, *column.aliases):
            found = by_key.get(_key(alias))
            if found is not None and found not in guessed.values():
                guessed[name] = found
                break
    return guessed


def missing_columns(names: Sequence[str], given: Collection[str] = ()) -> list[str]:
    """Return what is needed and neither in a source, nor guessed, nor `given` in an option, each with its meaning."""
    present = {*guess_columns(names), *names, *given}
    missing = [name for name in REQUIRED if name not in present]
    if not present & set(SIZES):
        missing.append("n_flop")
    return [f"{name} ({_meaning(name)})" for name in missing]


def _meaning(name: str) -> str:
    """Return the meaning of a required column; parameters suffice for N."""
    others = f", or instead {' or '.join(SIZES[1:])}" if name == SIZES[0] else ""
    return f"{COLUMNS[name].meaning}{others}"


def describe_columns(names: Sequence[str]) -> str:
    """Return the columns of a source, a guess of --columns by their names, and what else to give."""
    guessed = guess_columns(names)
    present = {*guessed, *names}
    lines = [f"columns: {', '.join(names)}"]
    if guessed:
        pairs = ",".join(f"{name}={column}" for name, column in guessed.items())
        lines.append(f"guess, to be checked: --columns {quote(pairs)}")
    lines += [
        f"column {column} is in a unit: give plain numbers (1.2e6, not 1.2 M)"
        for name, column in guessed.items()
        if COLUMNS[name].kind == POSITIVE and UNIT.search(column)
    ]
    if "aspect_ratio" not in present and not {"d_model", "n_layers"} <= present:
        lines.append(
            "no width and depth: name the two families to compare, as --contrast DEEP,WIDE"
        )
    own = [name for name in names if name in COLUMNS]
    if own:
        lines.append(f"used under their own names: {', '.join(own)}")
    return "\n".join(lines)


def _key(name: str) -> str:
    """Return the last part of a nested name without case, signs and unit: `eval/loss` and `Loss (nats)` give `loss`.

    Of a name that ends with `.name` or `.value`, such as `family.name`, it is the part before.
    """
    *outer, last = re.split(r"[./]", UNIT.sub("", name.strip()))
    if outer and last.lower() in ("name", "value"):
        last = outer[-1]
    return re.sub(r"[\s_-]+", "", last).lower()


def check_values(
    table: pd.DataFrame, names: Mapping[str, str], source: str, optional: Collection[str]
) -> tuple[pd.DataFrame, list[str]]:
    """Return the table with numbers as floats and labels as stripped text, and notes on columns that are not used.

    Args:
        table: with the names of `COLUMNS`; the index says where a row is in the source.
        names: name in the source of each mapped column.
        source: path, for messages.
        optional: columns that are set aside with a note, instead of an error, where a value is invalid.

    Raises:
        DataError: naming the column and the place of the first invalid value.
    """
    notes = []
    checked = {}
    for name, column in COLUMNS.items():
        if name not in table or name == "loss_nats_per_token":
            continue
        values = table[name].map(stripped)
        if name not in TEXT_LABELS:
            values = values.map(without_empty_word)
        bad = [row for row, value in enumerate(values) if not _is_valid(value, column.kind)]
        is_empty = values.map(is_missing).to_numpy(dtype=bool)
        if name in MAY_BE_EMPTY:
            bad = [row for row in bad if not is_empty[row]]
        if not bad:
            checked[name] = _converted(name, values, column.kind)
            continue
        shown = names.get(name, name)
        value = "empty" if is_empty[bad[0]] else repr(values.tolist()[bad[0]])
        example = f"{shown}={value} in {table.index[bad[0]]}"
        if name not in optional:
            advice = _advice(values.tolist()[bad[0]], shown, column.kind)
            raise DataError(f"{source}: {example}: must be {column.kind} for {name}{advice}")
        if not is_empty.all():
            notes.append(f"column {shown} is not used: {example} is not {column.kind}")
        table = table.drop(columns=name)
    if "seed" in checked:  # a run without a seed is no replicate of another one
        seeds = checked["seed"].astype(object)
        unknown = seeds.map(is_missing).to_numpy(dtype=bool)
        seeds[unknown] = [f"{UNKNOWN_SEED}{place}" for place in table.index[unknown]]
        checked["seed"] = seeds.infer_objects()
    return table.assign(**checked), notes


def _advice(value: Any, shown: str, kind: str) -> str:
    """Return how to give a value that is refused, to append to a message."""
    if isinstance(value, dict) and value:
        return (
            f"; it has fields, so give one of them: {', '.join(f'{shown}.{key}' for key in value)}"
        )
    return number_advice(value) if kind in NUMBERS else ""


def _is_valid(value: Any, kind: str) -> bool:
    if isinstance(value, (dict, list, np.ndarray)) or is_missing(value):
        return False
    if kind == LABEL:
        return True
    if kind == FLAG:
        return str(value).lower().removesuffix(".0") in FLAGS
    if isinstance(value, bool | np.bool_):
        return False
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return bool(np.isfinite(number)) and (kind != POSITIVE or number > 0)


def _converted(name: str, values: pd.Series, kind: str) -> pd.Series:
    if kind in NUMBERS:
        return values.map(lambda value: np.nan if is_missing(value) else float(value)).astype(float)
    return values.map(str) if name in TEXT_LABELS else values
