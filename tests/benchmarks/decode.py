"""Greedy decoding at batch 1 by slm and by transformers' generate, from the same weights.

    python -m tests.benchmarks.decode [--json FILE] [--threads N] [--rounds N] [--set KEY=VALUE ...]

Both generate in this process, one after the other in every round, so that the drift of the machine is shared:
transformers' LlamaForCausalLM.generate with its default cache, slm as `slm.load(folder, dtype).generate`. Times are of whole
calls, prefill included. The peak memory is that of slm alone in a process of its own, less what the process had
before it loaded the model. CPU seconds of both are printed too: on a machine that other programs use, their ratio
is more stable than that of wall times.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from slm.architecture.shapes import ModelShape, count_parameters
from slm.config.hydra import compose_config
from slm.evaluation.load import load_model
from slm.run.spec import resolve
from slm.tracking.environment import cpu_multiplies_bf16
from tests.benchmarks.paired import (
    Result,
    check_target,
    measuring_parser,
    median_ratio,
    parse_and_describe,
    print_table,
    report_progress,
    write_results,
)
from tests.benchmarks.peers import export_weights

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TARGETS = {"fp32": 1.4, "bf16": 1.5}  # ratios at the 125M shape
MEMORY_TARGET_BYTES = 150e6  # above weights and cache
STATUS = Path("/proc/self/status")


def main() -> None:
    parser = measuring_parser(__doc__.splitlines()[0], threads=2, rounds=5)
    parser.add_argument("--shape", nargs="+", default=["model=mobilellm_125m"], metavar="KEY=VALUE")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--prompt_tokens", type=int, default=64)
    parser.add_argument("--new_tokens", type=int, default=128)
    arguments, machine = parse_and_describe(parser)
    torch.set_num_threads(arguments.threads)
    spec = resolve(compose_config([*arguments.shape, *arguments.set]))
    size = (1, arguments.prompt_tokens)
    prompt = torch.randint(spec.shape.vocab_size, size, generator=torch.manual_seed(0))
    results = []
    with TemporaryDirectory(prefix="decode-") as name:
        folder = Path(name)
        export_weights(spec, folder)
        for dtype in arguments.dtypes:
            if dtype == "bf16" and cpu_multiplies_bf16() is False:
                report_progress("bf16 skipped: this CPU has no bf16 instructions")
                continue
            result = compare(folder, dtype, prompt, arguments.new_tokens, arguments.rounds)
            memory = measure_memory(folder, dtype, prompt, arguments.new_tokens, arguments.threads)
            cache_bytes = cache_size(spec.shape, dtype, prompt, arguments.new_tokens)
            weights = count_parameters(spec.shape).params_total * DTYPES[dtype].itemsize
            extra_bytes = memory - weights - cache_bytes
            results.append({"dtype": dtype, **result, "extra_memory_bytes": extra_bytes})
    print_results(results, arguments.shape)
    write_results(arguments.json, machine, results)


def compare(folder: Path, dtype: str, prompt: torch.Tensor, new_tokens: int, rounds: int) -> Result:
    """Generate alternately with both libraries; return seconds per call of every round and their ratio."""
    contenders = {"slm": our_generate(folder, dtype), "transformers": their_generate(folder, dtype)}
    tokens = {name: call(prompt, new_tokens) for name, call in contenders.items()}
    wall: dict[str, list[float]] = {name: [] for name in contenders}
    cpu: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(1, rounds + 1):
        for name, call in contenders.items():
            wall_start, cpu_start = time.perf_counter(), time.process_time()
            call(prompt, new_tokens)
            wall[name].append(time.perf_counter() - wall_start)
            cpu[name].append(time.process_time() - cpu_start)
        report_progress(f"{dtype}: round {number} of {rounds}")
    same = float((tokens["slm"] == tokens["transformers"]).float().mean())
    return {
        "wall_seconds": wall,
        "cpu_seconds": cpu,
        "tokens_per_second": {n: new_tokens / statistics.median(wall[n]) for n in wall},
        "ratio": median_ratio(wall["transformers"], wall["slm"]),
        "cpu_ratio": median_ratio(cpu["transformers"], cpu["slm"]),
        "same_tokens": same,
    }


Generate = Callable[[torch.Tensor, int], torch.Tensor]


def our_generate(folder: Path, dtype: str) -> Generate:
    return load_model(folder, dtype).generate


def their_generate(folder: Path, dtype: str, device: str = "cpu") -> Generate:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    model = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=DTYPES[dtype])
    model = model.to(device).eval()
    model.generation_config.eos_token_id = None  # both generate all tokens
    model.generation_config.pad_token_id = 0

    @torch.inference_mode()
    def call(prompt: torch.Tensor, new_tokens: int) -> torch.Tensor:
        mask = torch.ones_like(prompt)
        return model.generate(
            prompt, attention_mask=mask, max_new_tokens=new_tokens, do_sample=False
        )

    return call


def cache_size(shape: ModelShape, dtype: str, prompt: torch.Tensor, new_tokens: int) -> int:
    """Return the bytes of the keys and values of all tokens."""
    per_token = 2 * shape.depth * shape.n_kv_heads * shape.d_head * DTYPES[dtype].itemsize
    return per_token * (prompt.shape[1] + new_tokens)


def measure_memory(
    folder: Path, dtype: str, prompt: torch.Tensor, new_tokens: int, threads: int
) -> int:
    """Return the growth of the resident peak of a new process that loads a model and generates."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        arguments = (str(folder), dtype, prompt.tolist(), new_tokens, threads)
        return int(pool.apply(_peak_growth, arguments))


def _peak_growth(
    folder: str, dtype: str, prompt: Sequence[Any], new_tokens: int, threads: int
) -> int:
    torch.set_num_threads(threads)
    torch.ones(64, 64) @ torch.ones(64, 64)  # loads the math libraries
    before = _resident_bytes("VmRSS")
    model = load_model(folder, dtype)
    # The weights are read in fp32: the load is no part of the peak, what it leaves behind is.
    Path("/proc/self/clear_refs").write_text("5")
    model.generate(torch.tensor(prompt), new_tokens)
    return _resident_bytes("VmHWM") - before


def _resident_bytes(field: str) -> int:
    (line,) = (each for each in STATUS.read_text().splitlines() if each.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def print_results(results: Sequence[Result], shape: Sequence[str]) -> None:
    rows = [
        [
            result["dtype"],
            f"{result['tokens_per_second']['slm']:.1f}",
            f"{result['tokens_per_second']['transformers']:.1f}",
            f"{result['ratio']:.2f}",
            f"{result['cpu_ratio']:.2f}",
            check_target(result["ratio"], TARGETS[result["dtype"]]),
            f"{result['extra_memory_bytes'] / 1e6:.0f}",
            check_target(result["extra_memory_bytes"], MEMORY_TARGET_BYTES, at_least=False),
            f"{result['same_tokens']:.0%}",
        ]
        for result in results
    ]
    columns = [
        "dtype", "slm t/s", "peer t/s", "ratio", "CPU ratio", "target", "extra MB", "target ", "same tokens",
    ]  # fmt: skip
    title = f"Greedy decoding, batch 1, {' '.join(shape)}; the peer is transformers, extra MB are above weights and cache"
    print_table(title, columns, rows)


if __name__ == "__main__":
    main()
