"""Startup time: seconds until the first step of a run, the help text, a plan, or a configuration error.

    python -m tests.benchmarks.startup [--rounds 5] [--only first-step help ...] [--json FILE]

Each command runs in a new Python process. One warm-up round prepares the data and fills the disk cache. The
first step counts as taken when its row appears in metrics.jsonl, which is polled every 3 ms; other commands
are timed until they exit, and their exit code is checked. The first step is measured with experiment=smoke.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

from slm.cores import available_cores
from tests.benchmarks.paired import (
    check_target,
    describe_machine,
    print_machine,
    print_table,
    write_results,
)

ROOT = Path(__file__).parents[2]
CACHE_DIR = Path(gettempdir()) / "slm-benchmarks"
POLL_SECONDS = 0.003
LIMIT_SECONDS = 120.0


@dataclass(frozen=True)
class Command:
    arguments: tuple[str, ...]
    target_seconds: float
    exit_code: int = 0
    to_first_step: bool = False


COMMANDS = {
    "first-step": Command(("train.py", "experiment=smoke"), 10.0, to_first_step=True),
    "help": Command(("train.py", "--help"), 1.5),
    "cfg": Command(("train.py", "--cfg", "job"), 1.5),
    "mistake": Command(("train.py", "model.n_layer=3", "optimizer.lr=-1"), 1.5, exit_code=2),
    "plan": Command(("sweep.py", "study=demo", "action=plan"), 3.0),
}


def seconds_of(command: Command, runs_dir: Path) -> float:
    """Run the command once; return its seconds.

    Raises:
        RuntimeError: if it exits with another code than expected, or takes no step.
    """
    folders = [f"runs_dir={runs_dir}", f"cache_dir={CACHE_DIR}"]
    start_seconds = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *command.arguments, *folders],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    if command.to_first_step:
        elapsed_seconds = _wait_for_first_row(process, runs_dir, start_seconds)
        _, errors = process.communicate(timeout=LIMIT_SECONDS)
    else:
        _, errors = process.communicate(timeout=LIMIT_SECONDS)
        elapsed_seconds = time.perf_counter() - start_seconds
    if process.returncode != command.exit_code:
        raise RuntimeError(f"{command.arguments} exited with {process.returncode}:\n{errors}")
    return elapsed_seconds


def _wait_for_first_row(
    process: subprocess.Popen[str], runs_dir: Path, start_seconds: float
) -> float:
    while process.poll() is None:
        for path in runs_dir.glob("*/*/metrics.jsonl"):
            if path.read_bytes().count(b"\n"):
                return time.perf_counter() - start_seconds
        time.sleep(POLL_SECONDS)
    raise RuntimeError(f"no step was taken:\n{process.communicate()[1]}")


def measure(names: Sequence[str], rounds: int) -> dict[str, list[float]]:
    """Measure the seconds of each command in every round, after one warm-up round."""
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + 1):
        for name in names:
            with TemporaryDirectory() as runs_dir:
                elapsed_seconds = seconds_of(COMMANDS[name], Path(runs_dir))
            if number:
                seconds[name].append(elapsed_seconds)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    machine = describe_machine(available_cores())
    print_machine(machine)
    seconds = measure(arguments.only, arguments.rounds)
    rows = []
    for name, rounds in seconds.items():
        command, median = COMMANDS[name], statistics.median(rounds)
        label = " ".join(command.arguments) + (" to step 1" if command.to_first_step else "")
        target = check_target(median, command.target_seconds, at_least=False)
        rows.append([label, f"{median:.2f}", f"{min(rounds):.2f}", f"{max(rounds):.2f}", target])
    columns = ["command", "median s", "min s", "max s", "target"]
    print_table(f"Startup time over {arguments.rounds} rounds", columns, rows)
    write_results(arguments.json, machine, seconds)


if __name__ == "__main__":
    main()
