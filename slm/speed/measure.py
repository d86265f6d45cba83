"""Measurement of the shapes of a study in rounds: every round measures each shape once.

The speed of a machine drifts, and other programs may use it; in rounds, all shapes share that.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from slm.architecture.shapes import ModelShape
from slm.config.schema import Config
from slm.errors import ConfigError, Problem
from slm.evaluation.speed import measure_inference
from slm.formatting import count
from slm.model.build import build_model
from slm.model.dtypes import DTYPES
from slm.model.parametrization import Parametrization, initialize
from slm.model.transformer import Transformer
from slm.model.weight_layout import prepare_for_decoding
from slm.run.spec import RunSpec
from slm.tracking.environment import cpu_instruction_set, cpu_multiplies_bf16, cpu_name
from slm.tracking.speeds import InferenceSpeed, ShapeSpeed
from slm.training.device.accelerator import resolve_accelerator, set_threads
from slm.training.throughput_probe import measure_tokens_per_second

TRAINING_SECONDS = 2.0  # per shape and round


@dataclass(frozen=True)
class Device:
    """Device of a measurement."""

    accelerator: str
    name: str
    """Name of the GPU, or of the CPU with its number of threads."""


def prepare_device(config: Config) -> Device:
    """Choose the device and the threads of a config.

    Raises:
        ConfigError: if there is no such device, or bf16 is requested on a CPU without bf16 instructions.
    """
    accelerator = resolve_accelerator(config.trainer)
    threads = set_threads(config.trainer, accelerator)
    if accelerator == "gpu":
        return Device(accelerator, torch.cuda.get_device_name())
    if config.speed.dtype == "bf16" and cpu_multiplies_bf16() is False:
        rule = f"this CPU ({cpu_instruction_set()}) has no bf16 instructions and would emulate them"
        raise ConfigError([Problem("speed.dtype", "bf16", rule, "use fp32")])
    return Device(accelerator, f"{cpu_name()}, {count(threads, 'thread')}")


def distinct_shapes(specs: Sequence[RunSpec]) -> dict[ModelShape, RunSpec]:
    """Return the first run of each shape, smallest FLOPs per token first."""
    by_shape: dict[ModelShape, RunSpec] = {}
    for spec in sorted(specs, key=lambda spec: (spec.flops_per_token, spec.shape.depth)):
        by_shape.setdefault(spec.shape, spec)
    return by_shape


def measure_rounds(specs: Sequence[RunSpec], device: Device) -> Iterator[list[ShapeSpeed]]:
    """Yield the speeds of all shapes so far, once after every round."""
    settings = specs[0].config.speed
    speeds: list[ShapeSpeed | None] = [None] * len(specs)
    for _ in range(settings.rounds):
        for index, spec in enumerate(specs):
            one = _measure_once(spec, device)
            earlier = speeds[index]
            speeds[index] = one if earlier is None else add_round(earlier, one)
        yield [speed for speed in speeds if speed is not None]


def _measure_once(spec: RunSpec, device: Device) -> ShapeSpeed:
    settings = spec.config.speed
    rates: tuple[float, ...] = ()
    if settings.training:
        rates = (measure_tokens_per_second(spec, TRAINING_SECONDS),)
    gc.collect()
    return ShapeSpeed(
        shape=spec.shape.as_dict(),
        device=device.name,
        inference=_generate_once(spec, device),
        train_tokens_per_second=rates,
        train_batch_tokens=spec.batch_tokens if settings.training else None,
        torch=torch.__version__,
    )


def _generate_once(spec: RunSpec, device: Device) -> InferenceSpeed:
    settings = spec.config.speed
    return measure_inference(
        random_model(spec, device.accelerator),
        prompt_tokens=settings.prompt_tokens,
        new_tokens=settings.new_tokens,
        batch_size=settings.batch_size,
        dtype=settings.dtype,
        rounds=1,
    )


def random_model(spec: RunSpec, accelerator: str) -> Transformer:
    """Build the model of a spec with its initial weights, for generation; longer than seq_len if necessary.

    Only the RoPE table is longer: no parameter depends on seq_len.
    """
    shape = replace(spec.shape, seq_len=max(spec.shape.seq_len, needed_tokens(spec.config)))
    config = replace(spec.config, model=replace(spec.config.model, attention="sdpa"))
    model = build_model(config, shape)
    initialize(model, Parametrization.of(config.parametrization, shape), seed=0)
    dtype = DTYPES[config.speed.dtype]
    if accelerator == "gpu":
        return model.to("cuda", dtype).eval()
    prepare_for_decoding(model, dtype)
    return model.eval()


def needed_tokens(config: Config) -> int:
    return config.speed.prompt_tokens + config.speed.new_tokens


def add_round(speed: ShapeSpeed, one: ShapeSpeed) -> ShapeSpeed:
    """Return a speed with the values of one more round."""
    before, new = speed.inference, one.inference
    assert before is not None and new is not None
    peaks = [peak for peak in (before.peak_memory_bytes, new.peak_memory_bytes) if peak is not None]
    inference = replace(
        before,
        prefill_seconds=before.prefill_seconds + new.prefill_seconds,
        decode_seconds_per_token=before.decode_seconds_per_token + new.decode_seconds_per_token,
        peak_memory_bytes=max(peaks, default=None),
    )
    rates = speed.train_tokens_per_second + one.train_tokens_per_second
    return replace(speed, inference=inference, train_tokens_per_second=rates)
