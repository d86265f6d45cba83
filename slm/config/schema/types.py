"""Types of the values in `conf/`, and the decorator that declares a section of the schema."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, dataclass_transform

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainValidator,
    Tag,
)
from pydantic.dataclasses import dataclass as pydantic_dataclass

# A target that is not scored and counts as 0 nats; the default of torch's cross entropy
IGNORED = -100
MAX_INTEGER = 2**63 - 1  # larger numbers overflow in torch and in floats
MFU_TABLE = "a table such as {125m: 0.23, 1b: 0.37}"
SIZE_SUFFIXES = {"k": 10**3, "m": 10**6, "b": 10**9}


def parse_size(value: object) -> object:
    """Convert `200k`, `1.5m` or `1b` to an integer; return values that are not strings unchanged.

    Raises:
        ValueError: for a string that is neither a number nor a number with a suffix.
    """
    if not isinstance(value, str):
        return value
    factor = SIZE_SUFFIXES.get(value[-1:].lower(), 1)
    try:
        return round(float(value[:-1] if factor > 1 else value) * factor)
    except (ValueError, OverflowError):
        raise ValueError("must be a number such as 200000, 200k or 1.5m") from None


def _count_or_auto(value: object) -> object:
    """Validate the union in one function: pydantic would report one error for each of its members."""
    is_count = isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MAX_INTEGER
    if not is_count and value != "auto":
        raise ValueError("must be a whole number from 1, or auto")
    return value


def _share_or_table(value: object) -> str:
    return "[table]" if isinstance(value, Mapping) else "[share]"


def _mfu_share(value: object) -> float:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not 0 < value <= 1:  # type: ignore[operator]
        raise ValueError(f"must be above 0 and at most 1, or {MFU_TABLE}")
    return float(value)  # type: ignore[arg-type]


def _mfu_table(table: dict[int, float]) -> dict[int, float]:
    if not table:
        raise ValueError(f"must be a number, or {MFU_TABLE}")
    return dict(sorted(table.items()))


def _no_bool(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")
    return value


def _scalar(value: object) -> object:
    if not isinstance(value, (bool, int, float, str)):
        raise ValueError("must be one number, one word, true or false")
    return value


def _to_tuple(value: object) -> object:
    return (value,) if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_to_tuple)]
Scalar = Annotated[Any, BeforeValidator(_scalar)]
Count = Annotated[int, BeforeValidator(_no_bool), Field(gt=0, le=MAX_INTEGER)]
CountOrAuto = Annotated[int | Literal["auto"], PlainValidator(_count_or_auto)]
Index = Annotated[int, BeforeValidator(_no_bool), Field(ge=0, le=MAX_INTEGER)]
Size = Annotated[
    int, BeforeValidator(_no_bool), BeforeValidator(parse_size), Field(gt=0, le=MAX_INTEGER)
]
ModelSize = Annotated[
    int, BeforeValidator(_no_bool), BeforeValidator(parse_size), Field(gt=0, le=10**11)
]
Amount = Annotated[
    float, BeforeValidator(_no_bool), BeforeValidator(parse_size), Field(gt=0, allow_inf_nan=False)
]
Positive = Annotated[float, BeforeValidator(_no_bool), Field(gt=0, allow_inf_nan=False)]
# The bounds of sizes and of ratios of widths keep the search of a shape to seconds.
Ratio = Annotated[float, BeforeValidator(_no_bool), Field(ge=0.001, le=10_000)]
NonNegative = Annotated[float, BeforeValidator(_no_bool), Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, BeforeValidator(_no_bool), Field(ge=0, le=1)]
ShareOfOne = Annotated[float, BeforeValidator(_no_bool), Field(gt=0, le=1)]
# A union without tags would report one error for each of its members.
Mfu = Annotated[
    Annotated[float, PlainValidator(_mfu_share), Tag("[share]")]
    | Annotated[dict[Size, ShareOfOne], AfterValidator(_mfu_table), Tag("[table]")],
    Discriminator(_share_or_table),
]
FractionBelowOne = Annotated[float, BeforeValidator(_no_bool), Field(ge=0, lt=1)]
OpenFraction = Annotated[float, BeforeValidator(_no_bool), Field(gt=0, lt=1)]
ParametrizationKind = Literal["standard", "mup", "completep"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]


@dataclass_transform(kw_only_default=True, frozen_default=True)
def section(cls: type) -> Any:
    """Declare a frozen, strict section of the schema; the strings under its fields become descriptions."""
    strict = ConfigDict(extra="forbid", use_attribute_docstrings=True)
    return pydantic_dataclass(frozen=True, kw_only=True, config=strict)(cls)
