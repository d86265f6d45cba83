"""Peak memory and time of slm's training step, compared with the same model and plain cross-entropy.

    python -m tests.benchmarks.memory [--shape mobilellm_125m] [--mode fp32-eager] [--threads 2]
        [--rounds 3] [--set KEY=VALUE ...] [--json FILE]

slm's step computes the loss in chunks. The plain step computes all logits and
`F.cross_entropy` in fp32. Each runs in a separate process, and the two alternate. Memory is the peak resident
size of the process including imports (on a GPU: the peak that torch allocated).

Target for mobilellm_125m in fp32: at least 450 MB less than the plain step, in at most 1.05 of its time.
"""

from __future__ import annotations

import statistics
import sys
from functools import partial
from pathlib import Path

import torch

from tests.benchmarks.paired import (
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
from tests.benchmarks.peers import Case, contender
from tests.benchmarks.training import MODES, SHAPES, supported_modes

SAVED_BYTES_TARGET = 450e6
TIME_TARGET = 1.05


def main() -> None:
    parser = measuring_parser(__doc__.splitlines()[0], threads=2, rounds=3)
    parser.add_argument("--shape", choices=SHAPES, default="mobilellm_125m")
    parser.add_argument("--mode", choices=MODES, default="fp32-eager")
    arguments, machine = parse_and_describe(parser)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if not supported_modes([arguments.mode], machine, device):
        sys.exit(1)
    case = Case(tuple(SHAPES[arguments.shape]), device, Path(), tuple(arguments.set))
    starts = {
        name: partial(Worker, contender, name, arguments.mode, case, threads=arguments.threads)
        for name in ("slm", "plain")
    }
    with started_workers(starts, concurrently=False) as workers:
        facts = {name: worker.facts for name, worker in workers.items()}
        measured = measure_in_rounds(workers, arguments.rounds, 0.0)
    assert facts["slm"]["params"] == facts["plain"]["params"]
    peak_bytes = {name: rounds[-1]["peak_memory_bytes"] for name, rounds in measured.items()}
    seconds = {name: [r["step_seconds"] for r in rounds] for name, rounds in measured.items()}
    rows = [
        [
            name,
            f"{peak_bytes[name] / 1e6:,.0f}",
            f"{statistics.median(seconds[name]):.2f}",
            f"{facts[name]['first_loss']:.5f}",
        ]
        for name in workers
    ]
    title = f"{arguments.shape}, {arguments.mode}: a training step"
    print_table(title, ["step", "peak MB", "seconds", "first loss"], rows)
    saved_bytes = peak_bytes["plain"] - peak_bytes["slm"]
    ratio = median_ratio(seconds["slm"], seconds["plain"])
    print(
        f"slm saves {saved_bytes / 1e6:,.0f} MB and takes {ratio:.3f} of the plain step's time "
        f"({machine['cpu_instruction_set']})"
    )
    if (arguments.shape, arguments.mode) == ("mobilellm_125m", "fp32-eager"):
        print(
            f"memory: {check_target(saved_bytes / 1e6, SAVED_BYTES_TARGET / 1e6)}, "
            f"time: {check_target(ratio, TIME_TARGET, at_least=False)}"
        )
    write_results(arguments.json, machine, {"facts": facts, "rounds": measured})


if __name__ == "__main__":
    main()
