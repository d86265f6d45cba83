"""Measurement of decoding and prefill speed of a model."""

from __future__ import annotations

import resource
import time

import torch
from torch import Tensor

from slm.model.generate import generate
from slm.model.transformer import Transformer
from slm.tracking.speeds import InferenceSpeed


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

    The model must be in eval mode, on its device and in its dtype; `dtype` is the name that is recorded.

    Raises:
        ValueError: if prompt and new tokens exceed the model's seq_len.
    """
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    size = (batch_size, prompt_tokens)
    prompt = torch.randint(model.shape.vocab_size, size, generator=generator).to(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    prefill, decode = [], []
    for _ in range(rounds + 1):
        prefill.append(_seconds(model, prompt, 1))
        decode.append((_seconds(model, prompt, new_tokens) - prefill[-1]) / (new_tokens - 1))
    return InferenceSpeed(
        batch_size=batch_size,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        dtype=dtype,
        prefill_seconds=tuple(prefill[1:]),
        decode_seconds_per_token=tuple(decode[1:]),
        peak_memory_bytes=_peak_memory_bytes(device),
    )


def _seconds(model: Transformer, prompt: Tensor, new_tokens: int) -> float:
    start = time.perf_counter()
    generate(model, prompt, new_tokens)
    if prompt.is_cuda:
        torch.cuda.synchronize(prompt.device)
    return time.perf_counter() - start


def _peak_memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
