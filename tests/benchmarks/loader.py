"""Batches per second against a plain DataLoader over the same memory map, and what a model can take.

    python -m tests.benchmarks.loader [--repeats 5]

The peer reads one window a call, shuffled by torch, and collates: what most training scripts do.
Printed are medians of tokens/s over repeats in turn, after a warm-up, and their ratio.
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
from slm.data.datamodule import GlobalBatches
from slm.data.examples import TextExamples
from slm.data.tokens.prepare import prepare
from slm.model.build import build_model
from slm.model.loss import token_nats
from slm.run.spec import resolve

BATCH_TOKENS = 65_536
STEPS = 100


class PlainWindows(Dataset[torch.Tensor]):
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
    parser.add_argument("--repeats", type=int, default=5)
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
    rate = training_rate(model, spec.shape.vocab_size, config.model.seq_len)
    print(f"the default model trains on {rate:,.0f} tokens/s here, without its optimizer")


def compare(
    examples: TextExamples, plain: PlainWindows, seq_len: int, *, workers: int, repeats: int
) -> None:
    batch = BATCH_TOKENS // seq_len

    def ours() -> Iterable[torch.Tensor]:
        batches = GlobalBatches(examples, 0, batch)
        return DataLoader(batches, batch_size=None, sampler=range(STEPS), num_workers=workers)

    def peer() -> Iterable[torch.Tensor]:
        return DataLoader(
            plain, batch_size=batch, shuffle=True, drop_last=True, num_workers=workers
        )

    rates: dict[str, list[float]] = {"ours": [], "peer": []}
    for _ in range(repeats):
        for name, make in (("ours", ours), ("peer", peer)):
            rates[name].append(tokens_per_second(make, batch * seq_len))
    mine, other = (statistics.median(rates[name]) for name in ("ours", "peer"))
    print(
        f"seq_len {seq_len:5}, {workers} workers: {mine / 1e6:6.1f}M tokens/s, "
        f"plain DataLoader {other / 1e6:6.1f}M, ratio {mine / other:.2f}"
    )


def tokens_per_second(make: Callable[[], Iterable[torch.Tensor]], batch_tokens: int) -> float:
    batches = iter(make())
    next(batches)
    start_seconds = time.perf_counter()
    steps = sum(1 for _ in islice(batches, STEPS - 1))
    return steps * batch_tokens / (time.perf_counter() - start_seconds)


def training_rate(model: torch.nn.Module, vocab_size: int, seq_len: int, steps: int = 10) -> float:
    tokens = torch.randint(vocab_size, (4096 // seq_len, seq_len + 1))
    start_seconds = 0.0
    for step in range(steps + 2):
        if step == 2:
            start_seconds = time.perf_counter()
        token_nats(model(tokens[:, :-1]), tokens[:, 1:]).mean().backward()
    return steps * 4096 / (time.perf_counter() - start_seconds)


if __name__ == "__main__":
    main()
