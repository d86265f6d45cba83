"""Measures contenders in turn, each in a process of its own, and compares the rounds in pairs.

Machines drift and share their cores, so a figure means something beside another that was taken seconds
before or after it: every round measures all contenders once, and ratios are medians over rounds. A process
of its own keeps what one contender leaves behind (threads, compiled code, allocated memory) from the next.
"""

from __future__ import annotations

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
from slm.tracking.environment import describe_environment

Key = TypeVar("Key")
Result = dict[str, Any]
Measure = Callable[[float], Result]  # measures for about so many seconds
TABLE_WIDTH = 120
CLOSE_SECONDS = 10.0


class Worker:
    """A process that builds one contender and measures it whenever it is asked to.

    `build(*arguments)` runs in the process, with `threads` torch threads, and returns what is known
    of the contender, for `known`, and the function that measures it.
    """

    known: Result

    def __init__(self, build: Callable[..., tuple[Result, Measure]], *arguments: Any, threads: int):
        context = multiprocessing.get_context("spawn")
        self._is_ready = False
        self._pipe, end = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(end, build, arguments, threads), daemon=True
        )
        self._process.start()
        end.close()

    def wait(self) -> None:
        """Until it can be measured."""
        if not self._is_ready:
            self.known, self._is_ready = self.answer(), True

    def ask(self, seconds: float) -> None:
        self._pipe.send(seconds)

    def answer(self) -> Result:
        """What was asked for last.

        Raises:
            RuntimeError: with the traceback of the process.
        """
        try:
            fine, value = self._pipe.recv()
        except EOFError:
            self._process.join()
            raise RuntimeError(f"a contender ended with {self._process.exitcode}") from None
        if not fine:
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
        known, measure = build(*arguments)
        pipe.send((True, known))
        while True:
            pipe.send((True, measure(pipe.recv())))
    except EOFError:
        pass  # the parent is gone
    except Exception:
        pipe.send((False, traceback.format_exc()))


@contextmanager
def working(
    starts: Mapping[Key, Callable[[], Worker]], *, at_once: bool = True
) -> Iterator[dict[Key, Worker]]:
    """Workers that are ready to be measured; they are closed at the end.

    They make themselves ready all at once, or one after the other where memory would not hold that.
    """
    with ExitStack() as stack:
        workers: dict[Key, Worker] = {}
        for key, start in starts.items():
            workers[key] = start()
            stack.callback(workers[key].close)
            if not at_once:
                workers[key].wait()
        for worker in workers.values():
            worker.wait()
        yield workers


def in_turn(workers: Mapping[Key, Worker], rounds: int, seconds: float) -> dict[Key, list[Result]]:
    """Each round measures every worker once, in the order given; all have answered before it."""
    results: dict[Key, list[Result]] = {key: [] for key in workers}
    for _ in range(rounds):
        for key, worker in workers.items():
            worker.ask(seconds)
            results[key].append(worker.answer())
    return results


def repeated(step: Callable[[], object], seconds: float) -> tuple[int, float]:
    """Steps done, and the seconds that they took: at least one, until `seconds` have passed."""
    import torch

    wait = torch.cuda.synchronize if torch.cuda.is_available() else (lambda: None)
    wait()
    start_seconds, steps = time.perf_counter(), 0
    while not steps or time.perf_counter() - start_seconds < seconds:
        step()
        steps += 1
    wait()
    return steps, time.perf_counter() - start_seconds


def median_ratio(ours: Sequence[float], other: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(ours, other, strict=True))


def verdict(value: float, target: float, *, at_least: bool = True) -> str:
    met = value >= target if at_least else value <= target
    return f"{'met' if met else 'missed'} ({'>=' if at_least else '<='} {target:g})"


def describe_machine(threads: int) -> dict[str, Any]:
    """What the figures depend on besides the code: device, cores, threads and versions."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    name, wide = _processor()
    return {
        **describe_environment(device=gpu or name, threads=threads),
        "cpu": name,
        "cpu_16_bit": wide,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


def _processor() -> tuple[str, list[str]]:
    """Name of the processor, and its instructions for 16-bit matrices where the system tells."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor(), []
    name = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    found = {flag for flag in ("avx512_bf16", "amx_bf16") if flag in text}
    return name[1] if name else platform.machine(), sorted(found)


def print_machine(machine: Mapping[str, Any]) -> None:
    versions = machine["versions"]
    capability = " ".join([machine["cpu_capability"], *machine["cpu_16_bit"]])
    print(
        f"{machine['device']} ({capability}), {machine['cores']} cores, {machine['threads']} threads, "
        f"torch {versions['torch']}, commit {machine['commit'] or 'unknown'}"
        f"{' and uncommitted changes' if machine['dirty'] else ''}"
    )


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Text to the left, columns of figures to the right."""
    table = Table()
    for index, column in enumerate(columns):
        is_figure = all(re.match(r"[-\d.,]+", row[index]) for row in rows)
        table.add_column(column, justify="right" if is_figure else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console = Console()
    console.width = max(console.width, TABLE_WIDTH)  # a file or a pipe counts as 80 columns
    print(f"\n{title}")
    console.print(table)


def save(path: Path | None, machine: Mapping[str, Any], results: Any) -> None:
    if path is not None:
        write_json(path, {"machine": dict(machine), "results": results})
        print(f"written to {path}", file=sys.stderr)
