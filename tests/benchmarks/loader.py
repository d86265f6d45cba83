"""Loading throughput of slm, of a plain DataLoader on the same memory map, and of a training model.

    python -m tests.benchmarks.loader [--repeats 5]

The plain DataLoader reads one window per item, shuffles with torch and collates, as most training scripts
do. Both yield pairs (rows, 2, seq_len) of int64. Prints medians of tokens/s over alternating repeats, after a warm-up batch, and their ratio.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from tempfile import gettempdir

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from slm.config.load import load_config
from slm.data.examples import TextExamples
from slm.data.tokens.prepare import prepare
from slm.model.build import build_model
from slm.model.loss import token_nats
from slm.run.spec import resolve
from tests.benchmarks import engine

BATCH_TOKENS = 65_536
STEPS = 100


class PlainWindows(Dataset[torch.Tensor]):
    """Windows of a memory-mapped shard, one pair (2, seq_len) per item."""

    def __init__(self, path: Path, seq_len: int):
        self._tokens = np.memmap(path, dtype="<u2", mode="r")
        self._seq_len = seq_len

    def __len__(self) -> int:
        return (len(self._tokens) - 1) // self._seq_len

    def __getitem__(self, index: int) -> torch.Tensor:
        start = index * self._seq_len
        window = self._tokens[start : start + self._seq_len + 1].astype(np.int64)
        return torch.stack([torch.from_numpy(window[:-1]), torch.from_numpy(window[1:])])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--repeats", type=int, default=5, help="measurements per loader (default 5)"
    )
    repeats = parser.parse_args().repeats
    config = load_config(
        {
            "cache_dir": str(Path(gettempdir()) / "slm-benchmarks"),
            "size": 128_000,
            "family": {"name": "deep_thin", "aspect_ratio": 4.0},
            "ladder": {"aspect_ratios": {"deep_thin": 4.0, "balanced": 11.0, "wide_shallow": 32.0}},
            "budget": {"tokens": 4096},
        }
    )
    data = prepare(config, print)
    (path,) = [data.folder / s["file"] for s in data.manifest["splits"]["train"]["shards"]]
    for seq_len in (128, 1024, 2048):
        examples = TextExamples(data, seq_len, 1024)
        for workers in (0, 2):
            plain = PlainWindows(path, seq_len)
            compare(examples, plain, seq_len, workers=workers, repeats=repeats)
    spec = resolve(config)
    model = build_model(config, spec.shape)
    rate = measure_training_rate(model, spec.shape.vocab_size, config.model.seq_len)
    print(f"forward and backward pass of the default model on this machine: {rate:,.0f} tokens/s")


def compare(
    examples: TextExamples, plain: PlainWindows, seq_len: int, *, workers: int, repeats: int
) -> None:
    """Print the median tokens/s of both loaders and their ratio."""
    batch = BATCH_TOKENS // seq_len

    def slm_loader() -> Iterable[torch.Tensor]:
        return engine.load_pairs(examples, batch, STEPS, workers)

    def plain_loader() -> Iterable[torch.Tensor]:
        return DataLoader(
            plain, batch_size=batch, shuffle=True, drop_last=True, num_workers=workers
        )

    rates: dict[str, list[float]] = {"slm": [], "plain": []}
    for _ in range(repeats):
        for name, build_loader in (("slm", slm_loader), ("plain", plain_loader)):
            rates[name].append(measure_tokens_per_second(build_loader, batch * seq_len))
    slm, plain_rate = (statistics.median(rates[name]) for name in ("slm", "plain"))
    print(
        f"seq_len {seq_len:5}, {workers} workers: slm {slm / 1e6:6.1f}M tokens/s, "
        f"plain DataLoader {plain_rate / 1e6:6.1f}M tokens/s, ratio {slm / plain_rate:.2f}"
    )


def measure_tokens_per_second(
    build_loader: Callable[[], Iterable[torch.Tensor]], batch_tokens: int
) -> float:
    """Return the tokens/s of STEPS - 1 batches, after a first batch that starts the workers."""
    batches = iter(build_loader())
    next(batches)
    start_seconds = time.perf_counter()
    steps = sum(1 for _ in islice(batches, STEPS - 1))
    return steps * batch_tokens / (time.perf_counter() - start_seconds)


def measure_training_rate(
    model: torch.nn.Module, vocab_size: int, seq_len: int, steps: int = 10
) -> float:
    """Return the tokens/s of forward and backward passes with 4096 tokens each, after 2 for warm-up."""
    tokens = torch.randint(vocab_size, (4096 // seq_len, seq_len + 1))
    start_seconds = 0.0
    for step in range(steps + 2):
        if step == 2:
            start_seconds = time.perf_counter()
        token_nats(model(tokens[:, :-1]), tokens[:, 1:]).mean().backward()
    return steps * 4096 / (time.perf_counter() - start_seconds)


if __name__ == "__main__":
    main()
