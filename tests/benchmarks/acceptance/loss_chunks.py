"""Time and memory of the head loss, forward and backward, by the number of tokens in a chunk."""

from __future__ import annotations

import statistics
import time
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from slm.model.loss import head_loss
from tests.benchmarks import engine
from tests.benchmarks.acceptance.rows import Options, Rows

VOCAB_SIZE, D_MODEL, TOKENS = 32_000, 576, 32_768
QUICK_VOCAB_SIZE, QUICK_D_MODEL, QUICK_TOKENS = 512, 32, 512
CHUNKS = (256, 512, 1024, 2048, 4096, 8192, 16_384)
QUICK_CHUNKS = (128, 256)
REPEATS, QUICK_REPEATS = 7, 2
ALL_LOGITS = "all logits"


def run(options: Options, rows: Rows) -> None:
    vocab_size = QUICK_VOCAB_SIZE if options.quick else VOCAB_SIZE
    default = engine.loss_chunk_tokens(vocab_size, options.device)
    milliseconds: dict[int | str, float] = {}
    for chunk in sorted({*(QUICK_CHUNKS if options.quick else CHUNKS), default}):
        with engine.loss_chunks_of(chunk):
            milliseconds[chunk] = _add(options, rows, f"chunks of {chunk} tokens", chunk)
    milliseconds[ALL_LOGITS] = _add(options, rows, ALL_LOGITS, None)
    best = min(
        (chunk for chunk in milliseconds if chunk != ALL_LOGITS), key=milliseconds.__getitem__
    )
    ratio = milliseconds[default] / milliseconds[best]
    rows.measured(
        "default chunk / best chunk", ratio, note=f"default {default}, best {best} tokens"
    )


def _add(options: Options, rows: Rows, check: str, chunk: int | None) -> float:
    milliseconds, peak_bytes = _measure(options, chunked=chunk is not None)
    memory = f"{peak_bytes / 1e9:.2f} GB" if options.on_gpu else ""
    rows.measured(check, milliseconds, "ms", memory)
    return milliseconds


def _measure(options: Options, *, chunked: bool) -> tuple[float, int]:
    """Return the median milliseconds of forward and backward, and the peak bytes on a GPU."""
    hidden, weight, targets = _inputs(options)
    durations = []
    if options.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    for _ in range(1 + (QUICK_REPEATS if options.quick else REPEATS)):
        _synchronize(options)
        start_seconds = time.perf_counter()
        autocast = torch.autocast("cuda", torch.bfloat16) if options.on_gpu else nullcontext()
        with autocast:
            if chunked:
                loss = head_loss(hidden, weight, targets).objective
            else:
                logits = hidden.flatten(0, 1) @ weight.T
                loss = F.cross_entropy(logits.float(), targets.flatten(), reduction="sum")
        loss.backward()
        _synchronize(options)
        durations.append(1e3 * (time.perf_counter() - start_seconds))
        hidden.grad = weight.grad = None
    peak_bytes = torch.cuda.max_memory_allocated() if options.on_gpu else 0
    return statistics.median(durations[1:]), peak_bytes


def _inputs(options: Options) -> tuple[Tensor, Tensor, Tensor]:
    sizes = (QUICK_VOCAB_SIZE, QUICK_D_MODEL, QUICK_TOKENS)
    vocab_size, d_model, tokens = sizes if options.quick else (VOCAB_SIZE, D_MODEL, TOKENS)
    torch.manual_seed(0)
    hidden = torch.randn(1, tokens, d_model, device=options.device, requires_grad=True)
    weight = (0.02 * torch.randn(vocab_size, d_model, device=options.device)).requires_grad_()
    return hidden, weight, torch.randint(vocab_size, (1, tokens), device=options.device)


def _synchronize(options: Options) -> None:
    if options.on_gpu:
        torch.cuda.synchronize()
