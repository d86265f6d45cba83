"""Training steps of MobileLLM's presets on a CUDA device, in bf16: tokens/s, MFU and peak memory.

    python -m tests.benchmarks.gpu_training [--presets 125m 350m 600m 1b] [--batch-sequences 32]
        [--modes bf16-eager bf16-compiled] [--libraries slm transformers litgpt] [--attention sdpa flash]
        [--rounds 3] [--seconds 5] [--set KEY=VALUE ...] [--json FILE]

Sequences have 2048 tokens. Flash attention is measured if flash-attn is installed, for slm and transformers.
All libraries start from the same weights, and their first losses must agree. Each is measured alone on the
device, because its memory is too small for two; so results are medians, not paired ratios. FLOPs follow
slm's convention (`slm.architecture.flops`) for every library. The peak is that of `slm.training.device.accelerator`;
without a known peak there is no MFU.

This has not been run on a GPU. The code shared with `training.py` and the measuring loop have run on a CPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import statistics
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from slm.architecture.shapes import count_parameters
from slm.training.device.accelerator import peak_flops
from tests.benchmarks.paired import (
    Worker,
    describe_machine,
    measure_in_rounds,
    print_machine,
    print_table,
    started_workers,
    write_results,
)
from tests.benchmarks.peers import LIBRARIES, Case, Mode, contender, export_weights
from tests.benchmarks.training import check_equal, installed

MODES = ("bf16-eager", "bf16-compiled")
SEQ_LEN = 2048


def compare(
    case: Case, libraries: Sequence[str], modes: Sequence[str], rounds: int, seconds: float
) -> Iterator[dict[str, Any]]:
    """Measure each library in each mode with one attention backend, alone on the device.

    Raises:
        AssertionError: if parameter counts or first losses differ between libraries.
    """
    spec = case.spec("slm", Mode.named(modes[0]))
    params, expected_loss = count_parameters(spec.shape).params_total, None
    peak = peak_flops(torch.cuda.get_device_name(), "bf16") if case.device == "cuda" else None
    for library, mode in itertools.product(libraries, modes):
        start = partial(Worker, contender, library, mode, case, threads=1)
        with started_workers({library: start}) as workers:
            facts = workers[library].facts
            expected_loss = expected_loss or facts["first_loss"]
            check_equal((library, mode), facts, params, expected_loss)
            results = measure_in_rounds(workers, rounds, seconds)[library]
        rate = statistics.median(r["tokens_per_second"] for r in results)
        yield {
            "library": library,
            "mode": mode,
            "attention": spec.config.model.attention,
            "params": params,
            **facts,
            "tokens_per_second": rate,
            "mfu": None if peak is None else rate * spec.flops_per_token / peak,
            "peak_memory_bytes": results[-1]["peak_memory_bytes"],
            "rounds": results,
        }


def table_row(preset: str, cell: dict[str, Any]) -> list[str]:
    return [
        preset,
        cell["attention"],
        cell["mode"],
        cell["library"],
        f"{cell['tokens_per_second']:,.0f}",
        "unknown" if cell["mfu"] is None else f"{cell['mfu']:.1%}",
        f"{cell['peak_memory_bytes'] / 1e9:.2f}",
        f"{cell['first_loss']:.4f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--presets", nargs="+", default=["125m", "350m", "600m", "1b"])
    parser.add_argument("--batch-sequences", type=int, default=32)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--libraries", nargs="+", choices=LIBRARIES, default=LIBRARIES)
    parser.add_argument(
        "--attention", nargs="+", choices=("sdpa", "flash"), default=("sdpa", "flash")
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="duration of a round")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="overrides for slm only"
    )
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("no CUDA device is available; run this benchmark on a GPU machine")
    machine = describe_machine(1)
    print_machine(machine)
    libraries = installed(arguments.libraries)
    has_flash = importlib.util.find_spec("flash_attn") is not None
    backends = [name for name in arguments.attention if name == "sdpa" or has_flash]
    results, rows = [], []
    for preset in arguments.presets:
        shared = [
            f"model=mobilellm_{preset}",
            f"model.seq_len={SEQ_LEN}",
            f"optimizer.global_batch_tokens={SEQ_LEN * arguments.batch_sequences}",
        ]
        with TemporaryDirectory() as folder:
            for attention in backends:
                overrides = (*shared, f"model.attention={attention}")
                case = Case(overrides, "cuda", Path(folder), tuple(arguments.set))
                if attention == backends[0]:
                    export_weights(case.spec("slm", Mode.named(MODES[0])), case.weights)
                # litgpt has no option for the attention backend: it always calls torch's sdpa.
                supported = [name for name in libraries if attention == "sdpa" or name != "litgpt"]
                for cell in compare(
                    case, supported, arguments.modes, arguments.rounds, arguments.seconds
                ):
                    results.append({"preset": preset, **cell})
                    rows.append(table_row(preset, cell))
    columns = ["preset", "attention", "mode", "library", "tokens/s", "MFU", "peak GB", "first loss"]
    title = f"{arguments.batch_sequences} x {SEQ_LEN} tokens on {machine['device']}"
    print_table(title, columns, rows)
    write_results(arguments.json, machine, results)


if __name__ == "__main__":
    main()
