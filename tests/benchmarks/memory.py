"""Peak memory and time of slm's training step against the same model with plain cross-entropy.

    python -m tests.benchmarks.memory [--shape mobilellm_125m] [--mode fp32-eager] [--threads 2]
        [--rounds 3] [--json FILE]

slm's step is `LanguageModule.take_step`, with the loss as it computes it. The plain one has the
model return all logits and takes `F.cross_entropy` of them in fp32. Each has a process of its own and steps
in turn; memory is the largest resident size of the process (on a GPU the largest that torch allocated),
imports included.

Target, for mobilellm_125m in fp32: 450 MB less than plain, in at most 1.05 of its time.
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial
from pathlib import Path

import torch

from tests.benchmarks.paired import (
    Worker,
    describe_machine,
    in_turn,
    median_ratio,
    print_machine,
    print_table,
    save,
    verdict,
    working,
)
from tests.benchmarks.peers import Case, contender
from tests.benchmarks.training import MODES, SHAPES

SAVED_BYTES_TARGET = 450e6
TIME_TARGET = 1.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="mobilellm_125m")
    parser.add_argument("--mode", choices=MODES, default="fp32-eager")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    machine = describe_machine(arguments.threads)
    print_machine(machine)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    case = Case(tuple(SHAPES[arguments.shape]), device, Path())
    starts = {
        name: partial(Worker, contender, name, arguments.mode, case, threads=arguments.threads)
        for name in ("slm", "plain")
    }
    with working(starts, at_once=False) as workers:
        known = {name: worker.known for name, worker in workers.items()}
        measured = in_turn(workers, arguments.rounds, 0.0)
    assert known["slm"]["params"] == known["plain"]["params"]
    peak_bytes = {name: rounds[-1]["peak_memory_bytes"] for name, rounds in measured.items()}
    seconds = {name: [r["step_seconds"] for r in rounds] for name, rounds in measured.items()}
    rows = [
        [
            name,
            f"{peak_bytes[name] / 1e6:,.0f}",
            f"{statistics.median(seconds[name]):.2f}",
            f"{known[name]['first_loss']:.5f}",
        ]
        for name in workers
    ]
    title = f"{arguments.shape}, {arguments.mode}: a training step"
    print_table(title, ["loss", "peak MB", "seconds", "first loss"], rows)
    saved_bytes = peak_bytes["plain"] - peak_bytes["slm"]
    ratio = median_ratio(seconds["slm"], seconds["plain"])
    print(f"{saved_bytes / 1e6:,.0f} MB less, in {ratio:.3f} of the time")
    if (arguments.shape, arguments.mode) == ("mobilellm_125m", "fp32-eager"):
        print(
            f"memory: {verdict(saved_bytes / 1e6, SAVED_BYTES_TARGET / 1e6)}, "
            f"time: {verdict(ratio, TIME_TARGET, at_least=False)}"
        )
    save(arguments.json, machine, {"known": known, "rounds": measured})


if __name__ == "__main__":
    main()
