"""Paired benchmarks: measure contenders alternately, each in a separate process.

The speed of a machine drifts and its cores are shared, so only measurements taken within seconds of each
other are compared: every round measures each contender once, and a ratio is the median of the ratios
within rounds. Separate processes isolate the threads, compiled code and memory of the contenders. Progress goes
to stderr, one line per contender that is ready and one per round.
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import re
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table

from slm.files import write_json
from slm.tracking.environment import CPUINFO, describe_environment

Key = TypeVar("Key")
Result = dict[str, Any]
Measure = Callable[[float], Result]  # argument: duration of the measurement in seconds
TABLE_WIDTH = 120
CLOSE_SECONDS = 10.0


class Worker:
    """A process that builds one contender and measures it on request.

    `build(*arguments)` runs in the process with `threads` torch threads. It returns facts about the
    contender, which become `facts`, and the function that measures it.
    """

    facts: Result

    def __init__(self, build: Callable[..., tuple[Result, Measure]], *arguments: Any, threads: int):
        context = multiprocessing.get_context("spawn")
        self._is_ready = False
        self._pipe, end = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(end, build, arguments, threads), daemon=True
        )
        self._process.start()
        end.close()

    def wait_until_ready(self) -> None:
        """Block until the contender is built."""
        if not self._is_ready:
            self.facts, self._is_ready = self.receive(), True

    def request(self, seconds: float) -> None:
        self._pipe.send(seconds)

    def receive(self) -> Result:
        """Block until the next result of the process, and return it.

        Raises:
            RuntimeError: if the process failed; the message contains its traceback.
        """
        try:
            succeeded, value = self._pipe.recv()
        except EOFError:
            self._process.join()
            code = self._process.exitcode
            raise RuntimeError(f"a contender process exited with code {code}") from None
        if not succeeded:
            raise RuntimeError(f"a contender failed:\n{value}")
        return value

    def close(self) -> None:
        self._pipe.close()
        self._process.join(CLOSE_SECONDS)
        self._process.terminate()


def _serve(
    pipe: Any,
    build: Callable[..., tuple[Result, Measure]],
    arguments: Sequence[Any],
    threads: int,
) -> None:
    import torch

    torch.set_num_threads(threads)
    try:
        facts, measure = build(*arguments)
        pipe.send((True, facts))
        while True:
            pipe.send((True, measure(pipe.recv())))
    except EOFError:
        pass  # the parent closed the pipe
    except Exception:
        pipe.send((False, traceback.format_exc()))


@contextmanager
def started_workers(
    starts: Mapping[Key, Callable[[], Worker]], *, concurrently: bool = True
) -> Iterator[dict[Key, Worker]]:
    """Start workers, yield them when all are ready, and close them at the end.

    With `concurrently=False` they are built one after the other, to limit peak memory.
    """
    with ExitStack() as stack:
        workers: dict[Key, Worker] = {}
        for key, start in starts.items():
            workers[key] = start()
            stack.callback(workers[key].close)
            if not concurrently:
                workers[key].wait_until_ready()
        for key, worker in workers.items():
            worker.wait_until_ready()
            report_progress(f"{_label(key)} is ready")
        yield workers


def measure_in_rounds(
    workers: Mapping[Key, Worker], rounds: int, seconds: float
) -> dict[Key, list[Result]]:
    """Measure every worker once per round, one at a time, in the given order."""
    results: dict[Key, list[Result]] = {key: [] for key in workers}
    for number in range(1, rounds + 1):
        start_seconds = time.perf_counter()
        for key, worker in workers.items():
            worker.request(seconds)
            results[key].append(worker.receive())
        elapsed_seconds = time.perf_counter() - start_seconds
        report_progress(f"round {number} of {rounds} took {elapsed_seconds:.1f} s")
    return results


def report_progress(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)


def _label(key: object) -> str:
    return " ".join(map(str, key)) if isinstance(key, tuple) else str(key)


def run_for(step: Callable[[], object], seconds: float) -> tuple[int, float]:
    """Repeat `step` for at least `seconds` and at least once; return the count and the elapsed seconds."""
    import torch

    synchronize = torch.cuda.synchronize if torch.cuda.is_available() else (lambda: None)
    synchronize()
    start_seconds, steps = time.perf_counter(), 0
    while not steps or time.perf_counter() - start_seconds < seconds:
        step()
        steps += 1
    synchronize()
    return steps, time.perf_counter() - start_seconds


def median_ratio(ours: Sequence[float], other: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(ours, other, strict=True))


def check_target(value: float, target: float, *, at_least: bool = True) -> str:
    """Return `met` or `missed`, with the target."""
    met = value >= target if at_least else value <= target
    return f"{'met' if met else 'missed'} ({'>=' if at_least else '<='} {target:g})"


def describe_machine(threads: int) -> dict[str, Any]:
    """Return the device, cores, threads and versions that a measurement depends on."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    name = _processor_name()
    return {
        **describe_environment(device=gpu or name, threads=threads),
        "cpu": name,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


def _processor_name() -> str:
    try:
        text = CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor()
    found = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    return found[1] if found else platform.machine()


def print_machine(machine: Mapping[str, Any]) -> None:
    versions = machine["versions"]
    print(
        f"{machine['device']} ({machine['cpu_instruction_set']}, torch uses {machine['cpu_capability']}), "
        f"{machine['cores']} cores, {machine['threads']} threads, "
        f"torch {versions['torch']}, commit {machine['commit'] or 'unknown'}"
        f"{' with uncommitted changes' if machine['dirty'] else ''}"
    )


def measuring_parser(
    description: str, *, threads: int, rounds: int, seconds: float | None = None
) -> argparse.ArgumentParser:
    """Return a parser of the options of every paired benchmark, with these defaults."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--threads", type=int, default=threads)
    parser.add_argument("--rounds", type=int, default=rounds)
    if seconds is not None:
        duration = "duration of one measurement in a round"
        parser.add_argument("--seconds", type=float, default=seconds, help=duration)
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="overrides for slm only"
    )
    parser.add_argument("--json", type=Path)
    return parser


def parse_and_describe(
    parser: argparse.ArgumentParser,
) -> tuple[argparse.Namespace, dict[str, Any]]:
    """Parse the command line; print and return the machine too."""
    arguments = parser.parse_args()
    machine = describe_machine(arguments.threads)
    print_machine(machine)
    return arguments, machine


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table with numeric columns aligned right and text aligned left."""
    table = Table()
    for index, column in enumerate(columns):
        is_numeric = all(re.match(r"[-\d.,]+", row[index]) for row in rows)
        table.add_column(column, justify="right" if is_numeric else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console = Console()
    console.width = max(console.width, TABLE_WIDTH)  # rich assumes 80 columns for files and pipes
    print(f"\n{title}")
    console.print(table)


def write_results(path: Path | None, machine: Mapping[str, Any], results: Any) -> None:
    if path is not None:
        write_json(path, {"machine": dict(machine), "results": results})
        print(f"written to {path}", file=sys.stderr)
