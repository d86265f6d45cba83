"""The file of measured speeds, speed.json: how fast each shape decodes, prefills and trains on a device. Torch-free.

`python -m slm speed` writes it, `analysis` compares families at equal latency with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

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
        DataError: naming the file and what cannot be read.
    """
    content = read_object(path, MEASURE_AGAIN, ["schema_version", "speeds"])
    if content["schema_version"] != SCHEMA_VERSION:
        raise DataError(
            f"{path}: schema_version {content['schema_version']} is not supported; {MEASURE_AGAIN}"
        )
    try:
        return [_speed_from(saved) for saved in content["speeds"]]
    except (TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{path}: not readable ({error}); {MEASURE_AGAIN}") from None


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


def _speed_from(saved: dict[str, Any]) -> ShapeSpeed:
    inference = saved["inference"]
    if inference is not None:
        inference = InferenceSpeed.from_dict(inference)
    trained = tuple(saved["train_tokens_per_second"])
    return ShapeSpeed(**{**saved, "inference": inference, "train_tokens_per_second": trained})
