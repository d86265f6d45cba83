"""The file of measured speeds, speed.json: how fast each shape decodes, prefills and trains on a device. Torch-free.

`python -m slm speed` writes it, `analysis` compares families at equal latency with it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from statistics import median
from typing import Any

from slm.architecture.shapes import ModelShape
from slm.errors import DataError
from slm.files import read_object, write_json

SCHEMA_VERSION = 1
FILE_NAME = "speed.json"
MEASURE_AGAIN = "delete it, and measure again with python -m slm speed"


@dataclass(frozen=True, kw_only=True)
class InferenceSpeed:
    """Speed of generating text greedily, for one batch of prompts of equal length.

    Attributes:
        batch_size: number of sequences generated together.
        prompt_tokens, new_tokens: length of a prompt and of its continuation.
        dtype: fp32 or bf16, of the weights and activations.
        prefill_seconds: time from the prompt to its first new token (time to first token), one value per round.
        decode_seconds_per_token: mean time of the other new tokens, one value per round. A token is one step of the
            whole batch.
        peak_memory_bytes: GPU: largest allocated memory; CPU: the weights, and the growth of the process during
            generation. Of several rounds, the largest.
    """

    batch_size: int
    prompt_tokens: int
    new_tokens: int
    dtype: str
    prefill_seconds: tuple[float, ...]
    decode_seconds_per_token: tuple[float, ...]
    peak_memory_bytes: int | None

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> InferenceSpeed:
        """Return the speed in an object of JSON, which has lists instead of tuples."""
        rounds = {
            name: tuple(saved[name]) for name in ("prefill_seconds", "decode_seconds_per_token")
        }
        return cls(**{**saved, **rounds})

    @property
    def time_to_first_token_seconds(self) -> float:
        return median(self.prefill_seconds)

    @property
    def prefill_tokens_per_second(self) -> float:
        return self.batch_size * self.prompt_tokens / median(self.prefill_seconds)

    @property
    def decode_tokens_per_second(self) -> float:
        return self.batch_size / median(self.decode_seconds_per_token)


@dataclass(frozen=True, kw_only=True)
class ShapeSpeed:
    """Speeds of one shape on one device, measured with random weights.

    Attributes:
        shape: fields of `ModelShape`.
        device: name of the GPU, or of the CPU with its number of threads.
        inference: None if only training was measured.
        train_tokens_per_second: one value per round; empty if training was not measured.
        train_batch_tokens: tokens of a global batch of the training.
        torch: version of torch.
    """

    shape: dict[str, Any]
    device: str
    inference: InferenceSpeed | None
    train_tokens_per_second: tuple[float, ...]
    train_batch_tokens: int | None
    torch: str


def read_speeds(path: Path) -> list[ShapeSpeed]:
    """Read the speeds of all shapes and devices.

    Raises:
        DataError: naming the file, the field and its value.
    """
    content = read_object(path, MEASURE_AGAIN, ["schema_version", "speeds"])
    if content["schema_version"] != SCHEMA_VERSION:
        raise DataError(
            f"{path}: schema_version {content['schema_version']} is not supported; {MEASURE_AGAIN}"
        )
    speeds = content["speeds"]
    try:
        if not isinstance(speeds, list):
            raise ValueError("speeds must be a list")
        return [_speed_from(saved, f"speeds[{index}]") for index, saved in enumerate(speeds)]
    except ValueError as error:
        raise DataError(f"{path}: {error}; {MEASURE_AGAIN}") from None


def write_speeds(path: Path, speeds: Sequence[ShapeSpeed]) -> None:
    """Write speeds, replacing the whole file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"schema_version": SCHEMA_VERSION, "speeds": [asdict(speed) for speed in speeds]}
    write_json(path, content)


def merge_speeds(stored: Sequence[ShapeSpeed], measured: Sequence[ShapeSpeed]) -> list[ShapeSpeed]:
    """Return the stored speeds with those of the same shape, device and settings replaced by the measured ones.

    A stored training speed is kept if the new measurement has none.
    """
    merged = {_key(speed): speed for speed in stored}
    for speed in measured:
        before = merged.get(_key(speed), speed)
        merged[_key(speed)] = (
            speed
            if speed.train_tokens_per_second
            else replace(
                speed,
                train_tokens_per_second=before.train_tokens_per_second,
                train_batch_tokens=before.train_batch_tokens,
            )
        )
    return list(merged.values())


def _key(speed: ShapeSpeed) -> tuple[object, ...]:
    inference = speed.inference
    settings = (
        None
        if inference is None
        else (
            inference.dtype,
            inference.batch_size,
            inference.prompt_tokens,
            inference.new_tokens,
        )
    )
    return speed.device, tuple(sorted(speed.shape.items())), settings


def _speed_from(saved: Any, where: str) -> ShapeSpeed:
    """Build a speed from JSON; `where` is its place in the file.

    Raises:
        ValueError: naming the field and its value.
    """
    _check_fields(saved, _OF_SHAPE_SPEED, where)
    _check_fields(saved["shape"], _OF_SHAPE, f"{where}.shape", _WITH_DEFAULT)
    inference = saved["inference"]
    if inference is not None:
        _check_fields(inference, _OF_INFERENCE, f"{where}.inference")
        inference = InferenceSpeed.from_dict(inference)
    trained = tuple(saved["train_tokens_per_second"])
    return ShapeSpeed(**{**saved, "inference": inference, "train_tokens_per_second": trained})


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_positive(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and 0 < value < math.inf


def _is_rounds(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_positive, value))


Rule = tuple[Callable[[Any], bool], str]
_TEXT: Rule = (_is_text, "text")
_COUNT: Rule = (_is_count, "an integer of at least 1")
_COUNT_OR_NULL: Rule = (lambda v: v is None or _is_count(v), "an integer of at least 1, or null")
_ROUNDS: Rule = (lambda v: bool(v) and _is_rounds(v), "a list of numbers above 0, one per round")
_ROUNDS_OR_NONE: Rule = (_is_rounds, "a list of numbers above 0")
_OBJECT: Rule = (lambda v: isinstance(v, dict), "an object")
_FLAG: Rule = (lambda v: isinstance(v, bool), "true or false")
_OF_SHAPE_SPEED: Mapping[str, Rule] = {
    "shape": _OBJECT,
    "device": _TEXT,
    "inference": (lambda v: v is None or isinstance(v, dict), "an object or null"),
    "train_tokens_per_second": _ROUNDS_OR_NONE,
    "train_batch_tokens": _COUNT_OR_NULL,
    "torch": _TEXT,
}
_RULES_BY_TYPE: Mapping[str, Rule] = {"int": _COUNT, "bool": _FLAG, "str": _TEXT}
_OF_SHAPE: Mapping[str, Rule] = {
    each.name: _RULES_BY_TYPE.get(str(each.type), _TEXT) for each in fields(ModelShape)
}
_WITH_DEFAULT = frozenset(each.name for each in fields(ModelShape) if each.default is not MISSING)
_OF_INFERENCE: Mapping[str, Rule] = {
    "batch_size": _COUNT,
    "prompt_tokens": _COUNT,
    "new_tokens": _COUNT,
    "dtype": _TEXT,
    "prefill_seconds": _ROUNDS,
    "decode_seconds_per_token": _ROUNDS,
    "peak_memory_bytes": _COUNT_OR_NULL,
}


def _check_fields(
    value: Any, rules: Mapping[str, Rule], where: str, optional: Collection[str] = ()
) -> None:
    """Raise ValueError unless `value` is an object with these fields and no other, each of its type."""
    if not isinstance(value, dict):
        raise ValueError(f"{where} must be an object")
    if missing := [key for key in rules if key not in value and key not in optional]:
        raise ValueError(f"{where} has no {missing[0]}")
    if unknown := [key for key in value if key not in rules]:
        raise ValueError(f"{where} has an unknown field {unknown[0]}")
    for key, (is_valid, rule) in rules.items():
        if key in value and not is_valid(value[key]):
            raise ValueError(f"{where}.{key}={json.dumps(value[key])} must be {rule}")
