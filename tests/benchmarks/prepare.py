"""Preparing the whole prose corpus with a BPE of 4096, against a plain loop over `tokenizers`.

    python -m tests.benchmarks.prepare [--repeats 3]

Both read the same documents and write their tokens with the same, trained tokenizer; times are of the
work, without starting Python and its libraries. slm also counts, splits, removes duplicates, indexes,
hashes and measures the overlap of its splits. Each runs in a process of its own, in turn; printed are
medians and the median of the ratios.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

VOCAB_SIZE = 4096


def plain(tokenizer_file: Path, out: Path) -> dict[str, float]:
    """One thread, one document after the other."""
    from tokenizers import Tokenizer

    from slm.config.schema import DataConfig
    from slm.data.corpus.sources import open_parts

    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    open_parts(DataConfig())
    import datasets  # noqa: F401  both start with it loaded

    start_seconds = time.perf_counter()
    tokens = 0
    with (out / "tokens.bin").open("wb") as stream:
        for document in open_parts(DataConfig())["all"]():
            ids = tokenizer.encode(document.text).ids
            stream.write(
                np.asarray([tokenizer.get_vocab_size() - 1, *ids], dtype=np.uint16).tobytes()
            )
            tokens += 1 + len(ids)
    return {"tokens": tokens, "seconds": time.perf_counter() - start_seconds}


def ours(tokenizer_file: Path, out: Path) -> dict[str, float]:
    """`slm prepare` on every core."""
    import datasets  # noqa: F401

    from slm.config.load import load_config
    from slm.data.tokens.prepare import prepare

    config = load_config(
        {
            "cache_dir": str(out),
            "size": 128_000,
            "family": {"name": "deep_thin", "aspect_ratio": 4.0},
            "budget": {"tokens": 1},
            "tokenizer": {"kind": "file", "path": str(tokenizer_file)},
        }
    )
    start_seconds = time.perf_counter()
    data = prepare(config)
    seconds = time.perf_counter() - start_seconds
    return {
        "tokens": sum(s["tokens"] for s in data.manifest["splits"].values()),
        "seconds": seconds,
    }


WORKERS = {"plain": plain, "ours": ours}


def measured(name: str, tokenizer_file: Path) -> dict[str, float]:
    with TemporaryDirectory() as out:
        command = [sys.executable, "-m", __spec__.name, "--worker", name, str(tokenizer_file), out]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--worker", nargs=3, metavar=("NAME", "TOKENIZER", "OUT"))
    arguments = parser.parse_args()
    if arguments.worker:
        name, tokenizer_file, out = arguments.worker
        result: dict[str, Any] = WORKERS[name](Path(tokenizer_file), Path(out))
        peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({**result, "peak_bytes": peak_bytes}))
        return
    with TemporaryDirectory() as folder:
        report(trained_tokenizer(Path(folder)), arguments.repeats)


def trained_tokenizer(folder: Path) -> Path:
    from slm.config.schema import DataConfig
    from slm.data.corpus.sources import open_parts
    from slm.data.tokenizers.hf_files import train_bpe

    texts = (document.text or "" for document in open_parts(DataConfig())["all"]())
    path = folder / "tokenizer.json"
    train_bpe(texts, VOCAB_SIZE).save(str(path))
    return path


def report(tokenizer_file: Path, repeats: int) -> None:
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in WORKERS}
    for _ in range(repeats):
        for name, results in runs.items():
            results.append(measured(name, tokenizer_file))
    for name, results in runs.items():
        rate = statistics.median(r["tokens"] / r["seconds"] for r in results)
        peak = statistics.median(r["peak_bytes"] for r in results)
        tokens = results[0]["tokens"]
        print(f"{name:6} {tokens:,.0f} tokens, {rate:,.0f} tokens/s, peak {peak / 1e6:,.0f} MB")
    ratios = [p["seconds"] / o["seconds"] for p, o in zip(runs["plain"], runs["ours"], strict=True)]
    print(
        f"ours is {statistics.median(ratios):.2f} times as fast ({', '.join(f'{r:.2f}' for r in ratios)})"
    )


if __name__ == "__main__":
    main()
