"""Log-likelihoods of HellaSwag: our adapter to lm-eval against lm-eval's own model of the same export.

    python -m tests.benchmarks.zero_shot [--examples 500] [--shape L30-d576] [--batch-sizes 1 16 64] [--rounds 3]
        [--threads 2] [--dtype fp32] [--json FILE]

Each contender is a process with the same random model, GPT-2's tokenizer and the same requests. Every round scores
all answers of all examples once per contender; a ratio is the median of the ratios within rounds. Target: our
seconds are at most those of lm-eval at its best batch size. Needs SLM_TEST_DATA, transformers and accelerate.
"""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.benchmarks.paired import (
    Measure,
    Result,
    Worker,
    check_target,
    measure_in_rounds,
    measuring_parser,
    median_ratio,
    parse_and_describe,
    print_table,
    started_workers,
    write_results,
)

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
D_HEAD, SEQ_LEN = 64, 1024
OURS = "slm"


def test_data() -> Path:
    return Path(os.environ.get("SLM_TEST_DATA", "../shared/data"))


def export_model(shape: str, folder: Path) -> None:
    """Write a random model with GPT-2's tokenizer in the format of transformers."""
    import torch

    from slm.architecture.shapes import ModelShape
    from slm.data.tokenizers.export import save_for_transformers
    from slm.data.tokenizers.hf_files import load_hf_tokenizer
    from slm.data.tokenizers.tokenizer import HFTokenizer
    from slm.model.hf import export_llama
    from slm.model.transformer import Transformer

    layers, width = (int(part[1:]) for part in shape.split("-"))
    heads = width // D_HEAD
    kv_heads = next(n for n in range(max(1, heads // 3), 0, -1) if heads % n == 0)
    tokenizer = HFTokenizer(load_hf_tokenizer(test_data() / "gpt2_bpe"))
    torch.manual_seed(0)
    d_ff = round(8 / 3 * width / 64) * 64
    sizes = ModelShape(layers, width, heads, kv_heads, D_HEAD, d_ff, tokenizer.vocab_size, SEQ_LEN)
    export_llama(Transformer(sizes), folder, tokenizer.eot_id)
    save_for_transformers(tokenizer, folder)


def contender(
    folder: Path, batch_size: int | None, examples: int, dtype: str
) -> tuple[Result, Measure]:
    """Build our adapter (batch_size None) or lm-eval's model, and a function that scores all requests once."""
    import torch

    lm: Any
    if batch_size is None:
        from slm.evaluation.load import load_with_tokenizer
        from slm.evaluation.zero_shot.adapter import SlmLM

        loaded = load_with_tokenizer(folder)
        lm = SlmLM(loaded.model.to(getattr(torch, DTYPES[dtype])), loaded.tokenizer)
    else:
        from lm_eval.models.huggingface import HFLM

        lm = HFLM(pretrained=str(folder), device="cpu", dtype=DTYPES[dtype], batch_size=batch_size)
    requests = hellaswag_requests(examples)

    def measure(_: float) -> Result:
        start = time.perf_counter()
        nats = [nats for nats, _ in lm.loglikelihood(requests, disable_tqdm=True)]
        return {"seconds": time.perf_counter() - start, "nats": nats}

    return {"requests": len(requests)}, measure


def hellaswag_requests(examples: int) -> list[Any]:
    from slm.evaluation.zero_shot.tasks import find_tasks

    (task,) = find_tasks(["hellaswag"], test_data() / "zero_shot")
    requests = []
    for index, row in enumerate(task.definition.eval_docs):
        if index == examples:
            break
        context = task.definition.fewshot_context(row, num_fewshot=0)
        requests += task.definition.construct_requests(
            row, context, metadata=("hellaswag", index, 1)
        )
    return requests


def main() -> None:
    parser = measuring_parser(__doc__.split("\n", 1)[0], threads=2, rounds=3)
    parser.add_argument("--examples", type=int, default=500)
    parser.add_argument("--shape", default="L30-d576")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="fp32")
    arguments, machine = parse_and_describe(parser)
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        export_model(arguments.shape, folder)

        def start(batch_size: int | None) -> Worker:
            settings = folder, batch_size, arguments.examples, arguments.dtype
            return Worker(contender, *settings, threads=arguments.threads)

        names = {OURS: None} | {
            f"lm-eval, batch size {size}": size for size in arguments.batch_sizes
        }
        starts = {name: lambda size=size: start(size) for name, size in names.items()}
        with started_workers(starts, concurrently=False) as workers:
            results = measure_in_rounds(workers, arguments.rounds, 0.0)
    report(results, arguments)
    write_results(
        arguments.json, machine, {k: [r["seconds"] for r in v] for k, v in results.items()}
    )


def report(results: dict[str, list[Result]], arguments: Any) -> None:
    seconds = {name: [result["seconds"] for result in rounds] for name, rounds in results.items()}
    difference = {
        name: max(
            abs(a - b) for a, b in zip(rounds[0]["nats"], results[OURS][0]["nats"], strict=True)
        )
        for name, rounds in results.items()
    }
    rows = [
        [
            name,
            f"{statistics.median(values):.2f}",
            f"{median_ratio(values, seconds[OURS]):.2f}",
            f"{difference[name]:.1e}",
        ]
        for name, values in seconds.items()
    ]
    title = f"{arguments.examples} examples of HellaSwag, {arguments.shape}, {arguments.dtype}"
    print_table(title, ["contender", "seconds", "seconds / ours", "largest difference, nats"], rows)
    others = [
        median_ratio(values, seconds[OURS]) for name, values in seconds.items() if name != OURS
    ]
    print(
        f"lm-eval at its best batch size takes {min(others):.2f} times our seconds: {check_target(min(others), 1.0)}"
    )


if __name__ == "__main__":
    main()
