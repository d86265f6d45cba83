"""Time and memory of the head loss, forward and backward, by the tokens in a chunk, eager and compiled."""

from __future__ import annotations

import statistics
import time
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from slm.model.loss import ChunkLoss, chunk_loss, compile_chunk_loss, head_loss
from tests.benchmarks import engine
from tests.benchmarks.acceptance.rows import Options, Rows

VOCAB_SIZE, D_MODEL, TOKENS = 32_000, 576, 32_768
QUICK_VOCAB_SIZE, QUICK_D_MODEL, QUICK_TOKENS = 512, 32, 512
CHUNKS = (512, 1024, 2048, 4096, 8192, 16_384)
COMPILED_CHUNKS = (2048, 4096, 8192)  # each size takes seconds to compile
QUICK_CHUNKS = (128, 256)
REPEATS, QUICK_REPEATS = 7, 2


def run(options: Options, rows: Rows) -> None:
    sizes = (QUICK_VOCAB_SIZE, QUICK_TOKENS) if options.quick else (VOCAB_SIZE, TOKENS)
    default = engine.loss_chunk_tokens(*sizes, options.device)
    _add(options, rows, "all logits", None)
    for name, chunks in {
        "eager": QUICK_CHUNKS if options.quick else CHUNKS,
        "compiled": QUICK_CHUNKS if options.quick else COMPILED_CHUNKS,
    }.items():
        body = chunk_loss
        if name == "compiled":
            body = compile_chunk_loss("aot_eager" if options.quick else "inductor")
        milliseconds = {}
        for chunk in sorted({*chunks, default}):
            with engine.loss_chunks_of(chunk):
                check = f"{name}, chunks of {chunk} tokens"
                milliseconds[chunk] = _add(options, rows, check, body)
        best = min(milliseconds, key=milliseconds.__getitem__)
        note = f"default {default}, best {best} tokens"
        ratio = milliseconds[default] / milliseconds[best]
        rows.measured(f"{name}, default chunk / best chunk", ratio, note=note)


def _add(options: Options, rows: Rows, check: str, body: ChunkLoss | None) -> float:
    milliseconds, peak_bytes = _measure(options, body)
    memory = f"{peak_bytes / 1e9:.2f} GB" if options.on_gpu else ""
    rows.measured(check, milliseconds, "ms", memory)
    return milliseconds


def _measure(options: Options, body: ChunkLoss | None) -> tuple[float, int]:
    """Return the median milliseconds of forward and backward, and the peak bytes on a GPU.

    Without a chunk loss, all logits are stored.
    """
    hidden, weight, targets = _inputs(options)
    durations = []
    if options.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    for _ in range(1 + (QUICK_REPEATS if options.quick else REPEATS)):
        _synchronize(options)
        start_seconds = time.perf_counter()
        autocast = torch.autocast("cuda", torch.bfloat16) if options.on_gpu else nullcontext()
        with autocast:
            if body is None:
                logits = hidden.flatten(0, 1) @ weight.T
                loss = F.cross_entropy(logits.float(), targets.flatten(), reduction="sum")
            else:
                loss = head_loss(hidden, weight, targets, per_chunk=body).objective
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
