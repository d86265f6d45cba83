"""Time to prepare the prose corpus with a BPE of 4096 entries: slm and a plain loop over `tokenizers`.

    python -m tests.benchmarks.prepare [--repeats 3]

Both encode the same documents with the same trained tokenizer and write the tokens. Times exclude the
start of Python and its imports. slm also counts, splits, deduplicates, indexes and hashes the documents
and measures the overlap of the splits. Each measurement runs in a separate process, alternating; prints
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


def prepare_plain(tokenizer_file: Path, out: Path) -> dict[str, float]:
    """Encode and write one document after another in one thread; return tokens and seconds."""
    from tokenizers import Tokenizer

    from slm.config.schema import DataConfig
    from slm.data.corpus.sources import open_parts

    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    open_parts(DataConfig())
    import datasets  # noqa: F401  import time is not measured

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


def prepare_slm(tokenizer_file: Path, out: Path) -> dict[str, float]:
    """Run slm's preparation with one thread per core; return tokens and seconds."""
    import datasets  # noqa: F401  import time is not measured

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


METHODS = {"plain": prepare_plain, "slm": prepare_slm}


def measure(name: str, tokenizer_file: Path) -> dict[str, float]:
    """Run a method in a new process; return tokens, seconds and peak_bytes."""
    with TemporaryDirectory() as out:
        command = [sys.executable, "-m", __spec__.name, "--worker", name, str(tokenizer_file), out]
        process = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(process.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--repeats", type=int, default=3, help="measurements per method (default 3)"
    )
    parser.add_argument(
        "--worker",
        nargs=3,
        metavar=("NAME", "TOKENIZER", "OUT"),
        help="internal: run one measurement in this process",
    )
    arguments = parser.parse_args()
    if arguments.worker:
        name, tokenizer_file, out = arguments.worker
        result: dict[str, Any] = METHODS[name](Path(tokenizer_file), Path(out))
        peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({**result, "peak_bytes": peak_bytes}))
        return
    with TemporaryDirectory() as folder:
        print_comparison(write_tokenizer(Path(folder)), arguments.repeats)


def write_tokenizer(folder: Path) -> Path:
    """Train a BPE on the prose corpus and return the path of its tokenizer.json."""
    from slm.config.schema import DataConfig
    from slm.data.corpus.sources import open_parts
    from slm.data.tokenizers.hf_files import train_bpe

    texts = (document.text or "" for document in open_parts(DataConfig())["all"]())
    path = folder / "tokenizer.json"
    train_bpe(texts, VOCAB_SIZE).save(str(path))
    return path


def print_comparison(tokenizer_file: Path, repeats: int) -> None:
    """Measure each method `repeats` times, alternating, and print medians."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in METHODS}
    for _ in range(repeats):
        for name, results in runs.items():
            results.append(measure(name, tokenizer_file))
    for name, results in runs.items():
        rate = statistics.median(r["tokens"] / r["seconds"] for r in results)
        peak = statistics.median(r["peak_bytes"] for r in results)
        tokens = results[0]["tokens"]
        print(f"{name:6} {tokens:,.0f} tokens, {rate:,.0f} tokens/s, peak {peak / 1e6:,.0f} MB")
    ratios = [p["seconds"] / s["seconds"] for p, s in zip(runs["plain"], runs["slm"], strict=True)]
    listed = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    print(f"time ratio plain/slm: median {statistics.median(ratios):.2f} ({listed})")


if __name__ == "__main__":
    main()
