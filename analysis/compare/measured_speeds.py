"""Times per token of measured shapes, by setting, from speed.json."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from slm.architecture.decoding import BYTES_PER_VALUE, decoding_memory_bytes
from slm.architecture.shapes import ModelShape, shape_key
from slm.errors import DataError
from slm.formatting import count, short_count
from slm.rounding import exceeds
from slm.tracking.speeds import MEASURE_AGAIN, InferenceSpeed, ShapeSpeed, read_speeds

DECODING, TRAINING = "decode latency", "training time"
Settings = dict["Setting", dict[str, "MeasuredShape"]]


@dataclass(frozen=True)
class Setting:
    """What was measured, on which device. The fields after `device` are None for training."""

    quantity: str
    device: str
    dtype: str | None = None
    batch_size: int | None = None
    prompt_tokens: int | None = None
    new_tokens: int | None = None

    @property
    def is_decoding(self) -> bool:
        return self.quantity == DECODING

    @property
    def token(self) -> str:
        """The token whose time is measured."""
        return "generated token" if self.is_decoding else "training token"

    def describe(self) -> str:
        """Return the quantity, the device and the other conditions."""
        return f"{self.quantity} ({self.conditions()})"

    def conditions(self) -> str:
        if not self.is_decoding:
            return self.device
        return (
            f"{self.device}, {self.dtype}, batch size {self.batch_size}, prompt of {self.prompt_tokens} tokens, "
            f"{self.new_tokens} new tokens"
        )


@dataclass(frozen=True)
class MeasuredShape:
    """Mean ln(seconds per token) over rounds, and its standard error (0 for a single round).

    `memory_bytes`: weights and KV cache at the end of the generation; None for training.
    """

    log_seconds: float
    se: float
    rounds: int
    memory_bytes: int | None = None

    @property
    def seconds(self) -> float:
        return math.exp(self.log_seconds)


def falling_spans(times: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the spans (N, N) of measured sizes over which the time falls with N; `times`: (N, seconds) of one family."""
    spans: list[tuple[float, float]] = []
    ordered = sorted(times)
    for (n, seconds), (next_n, next_seconds) in pairwise(ordered):
        if not exceeds(next_n, n) or not exceeds(seconds, next_seconds):
            continue
        first = spans.pop()[0] if spans and spans[-1][1] == n else n
        spans.append((first, next_n))
    return spans


def range_text(ratios: Sequence[float]) -> str:
    """Return smallest and largest ratio over sizes, such as `range over 2 sizes: 1.88 to 3.32`."""
    if len(ratios) == 1:
        return "1 size"
    return f"range over {count(len(ratios), 'size')}: {min(ratios):.2f} to {max(ratios):.2f}"


def falling_note(spans: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Return what the times of each family fall over, such as `deep from N = 27k to 93k`; empty if they never fall."""
    found = [
        f"{family} from N = "
        + " and ".join(f"{short_count(low)} to {short_count(high)}" for low, high in each)
        for family, each in spans.items()
        if each
    ]
    return f"falls with N: {', '.join(found)} (noise, or a faster shape)" if found else ""


def load_settings(path: Path) -> Settings:
    """Read speed.json, and return the measured shapes of each setting by `shape_key`, decoding first.

    Settings are in the order of the file; of two measurements of a shape in one setting, the later one counts.

    Raises:
        DataError: if the file is missing, or naming the shape whose values cannot be used.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; measure it with python -m slm speed")
    return settings_of(read_speeds(path), str(path))


def settings_of(speeds: Iterable[ShapeSpeed], source: str = "speeds") -> Settings:
    """Return the measured shapes of each setting; see `load_settings`."""
    decoding: Settings = {}
    training: Settings = {}
    for speed in speeds:
        shape = _shape(speed, source)
        key = shape_key(speed.shape)
        if (one := speed.inference) is not None:
            setting = Setting(
                DECODING, speed.device, one.dtype, one.batch_size, one.prompt_tokens, one.new_tokens
            )
            memory = _memory_bytes(shape, one, source)
            measured = _measured(one.decode_seconds_per_token, f"{source}, {shape.label}", memory)
            decoding.setdefault(setting, {})[key] = measured
        if speed.train_tokens_per_second:
            values = _positive(speed.train_tokens_per_second, f"{source}, {shape.label}")
            measured = _measured([1 / rate for rate in values], source)
            training.setdefault(Setting(TRAINING, speed.device), {})[key] = measured
    if not decoding and not training:
        raise DataError(f"{source}: no measured speeds; {MEASURE_AGAIN}")
    return decoding | training


def _shape(speed: ShapeSpeed, source: str) -> ModelShape:
    try:
        return ModelShape(**speed.shape)
    except TypeError as error:
        raise DataError(f"{source}: shape not readable ({error}); {MEASURE_AGAIN}") from None


def _memory_bytes(shape: ModelShape, one: InferenceSpeed, source: str) -> int:
    if one.dtype not in BYTES_PER_VALUE:
        known = " or ".join(BYTES_PER_VALUE)
        raise DataError(
            f"{source}, {shape.label}: dtype={one.dtype!r} must be {known}; {MEASURE_AGAIN}"
        )
    tokens = one.prompt_tokens + one.new_tokens
    return decoding_memory_bytes(shape, tokens=tokens, batch_size=one.batch_size, dtype=one.dtype)


def _measured(
    seconds: Sequence[float], source: str, memory_bytes: int | None = None
) -> MeasuredShape:
    logs = [math.log(value) for value in _positive(seconds, source)]
    se = statistics.stdev(logs) / math.sqrt(len(logs)) if len(logs) > 1 else 0.0
    return MeasuredShape(statistics.fmean(logs), se, len(logs), memory_bytes)


def _positive(values: Sequence[float], source: str) -> Sequence[float]:
    for value in values:
        if not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise DataError(f"{source}: {value!r} must be a number above 0; {MEASURE_AGAIN}")
    if not values:
        raise DataError(f"{source}: no measured rounds; {MEASURE_AGAIN}")
    return values
