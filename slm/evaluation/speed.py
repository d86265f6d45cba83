"""Measurement of the decoding and prefill speed of a model."""

from __future__ import annotations

import resource
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from slm.architecture.decoding import BYTES_PER_VALUE
from slm.architecture.shapes import ModelShape, count_parameters
from slm.model.dtypes import DTYPES
from slm.model.generate import Decoder, stream
from slm.model.transformer import Transformer, precompute_rope
from slm.model.weight_layout import prepare_for_decoding
from slm.tracking.speeds import InferenceSpeed

STATUS, CLEAR_PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")
WARM_UP = ModelShape(1, 32, 2, 2, 16, 64, 64, 16)


def measure_inference(
    model: Transformer,
    *,
    prompt_tokens: int,
    new_tokens: int,
    batch_size: int = 1,
    dtype: str = "fp32",
    rounds: int = 5,
) -> InferenceSpeed:
    """Generate greedily after random prompts, `rounds` times after one round that is not counted.

    The first new token ends the prefill; the time of a decoding step is the mean of the others in the same
    generation. Allocation of the cache, and on a GPU the recording of the CUDA graph, are in the round that is not
    counted. The model must be in eval mode, on its device and in its dtype; `dtype` is the name that is recorded.

    Raises:
        ConfigError: if prompt and new tokens exceed the model's seq_len.
    """
    device = model.cos_sin.device
    generator = torch.Generator().manual_seed(0)
    size = (batch_size, prompt_tokens)
    prompt = torch.randint(model.shape.vocab_size, size, generator=generator).to(device)
    if device.type == "cpu":
        _warm_up(dtype)
    resident_before = _reset_peak(device)
    decoder = Decoder(model, batch_size, prompt_tokens + new_tokens)
    measured = [_one_generation(model, prompt, new_tokens, decoder) for _ in range(rounds + 1)][1:]
    return InferenceSpeed(
        batch_size=batch_size,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        dtype=dtype,
        prefill_seconds=tuple(first for first, _ in measured),
        decode_seconds_per_token=tuple(other for _, other in measured),
        peak_memory_bytes=_peak_memory_bytes(model.shape, dtype, device, resident_before),
    )


def lengthen(model: Transformer, seq_len: int) -> None:
    """Extend the RoPE table to at least `seq_len` positions; no parameter depends on it."""
    if model.shape.seq_len >= seq_len:
        return
    model.shape = replace(model.shape, seq_len=seq_len)
    model.cos_sin = precompute_rope(seq_len, model.shape.d_head, model.rope_theta).to(model.cos_sin)


def _warm_up(dtype: str) -> None:
    """Generate with a tiny model: the first generation of a process allocates buffers of torch that remain."""
    model = Transformer(WARM_UP).eval()
    prepare_for_decoding(model, DTYPES[dtype])
    prompt = torch.zeros((1, 8), dtype=torch.int64)
    for _ in stream(model, prompt, 4, decoder=Decoder(model, 1, 12)):
        pass


def _one_generation(
    model: Transformer, prompt: Tensor, new_tokens: int, decoder: Decoder
) -> tuple[float, float]:
    """Return the seconds to the first token, and the mean seconds of each of the others."""
    _synchronize(prompt)
    start_seconds = time.perf_counter()
    steps = stream(model, prompt, new_tokens, decoder=decoder)
    next(steps)
    _synchronize(prompt)
    first_seconds = time.perf_counter()
    for _ in steps:
        pass
    _synchronize(prompt)
    others = (time.perf_counter() - first_seconds) / (new_tokens - 1)
    return first_seconds - start_seconds, others


def _synchronize(tokens: Tensor) -> None:
    if tokens.is_cuda:
        torch.cuda.synchronize(tokens.device)


def _reset_peak(device: torch.device) -> int | None:
    """Start a new measurement of the peak; on a CPU, return the current resident bytes; None if unavailable."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return None
    with suppress(OSError):
        CLEAR_PEAK.write_text("5")  # Linux: the resident peak (proc(5))
        return _resident_bytes("VmRSS")
    return None


def _peak_memory_bytes(
    shape: ModelShape, dtype: str, device: torch.device, resident_before: int | None
) -> int:
    """GPU: largest allocated memory. CPU: the weights, and what the process grew by while it generated.

    Without Linux's counters it is the largest resident memory of the process since its start.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if resident_before is not None:
        # Counted from the shape: in bf16 the packed matrices are no parameters of the module.
        weights = count_parameters(shape).params_total * BYTES_PER_VALUE[dtype]
        return weights + max(0, _resident_bytes("VmHWM") - resident_before)
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024


def _resident_bytes(field: str) -> int:
    lines = STATUS.read_text(encoding="utf-8").splitlines()
    (line,) = (line for line in lines if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024
