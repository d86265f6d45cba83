"""Acceptance check of slm on a GPU, in at most five minutes.

    python -m tests.benchmarks.gpu_acceptance --json FILE [--only STAGE ...] [--device cuda|cpu] [--quick]

Stages, most valuable first: versions, parity, resume, speed, loss_chunks, small. Only when named: decode,
pytest, presets, ranks. docs/gpu.md says what each checks and what a miss means. Every stage runs in a process of its
own with a time limit; its rows are printed and saved as they are measured, so a stage that is stopped keeps
them. The exit code is 1 if a bound is missed, a stage fails, or a stage is stopped. Scratch files are in
`.cache/` of the checkout and are removed.

`--device cpu --quick` runs all stages at toy size on a CPU: a check of this command, not of the machine.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

# Without this, asking for the number of GPUs would start CUDA in this process, and the stages that are
# forked from it could not use it. It has to be set before torch is imported.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")

import torch

from slm.files import read_json, write_json
from tests.benchmarks.acceptance import (
    decode,
    loss_chunks,
    on_request,
    parity,
    ranks,
    resume,
    small,
    speed,
    versions,
)
from tests.benchmarks.acceptance.processes import end_tree
from tests.benchmarks.acceptance.rows import BAD, FAILED, ROOT, Options, Row, Rows, read_rows
from tests.benchmarks.paired import describe_machine

CPU_LIMIT_SECONDS = 300.0  # of a stage; a CPU that is shared may be slow
CANNOT_FORK = 3
MACHINE_FILE = "machine.json"
JOIN_SECONDS = 10.0
TICK_SECONDS = 1.0
TABLE_VALUE_CHARACTERS = 60


@dataclass(frozen=True)
class Stage:
    run: Callable[[Options, Rows], None]
    limit_seconds: float
    on_request: bool = False


STAGES = {
    "versions": Stage(versions.run, 25),
    "parity": Stage(parity.run, 50),
    "resume": Stage(resume.run, 45),
    "speed": Stage(speed.run, 110),
    "loss_chunks": Stage(loss_chunks.run, 20),
    "small": Stage(small.run, 45),
    "decode": Stage(decode.run, 120, on_request=True),
    "pytest": Stage(on_request.run_pytest, 240, on_request=True),
    "presets": Stage(on_request.run_presets, 400, on_request=True),
    "ranks": Stage(ranks.run, 400, on_request=True),
}


@dataclass(frozen=True)
class StageResult:
    stage: str
    status: str
    """running, finished, failed, or stopped (at its time limit or with the command)."""
    seconds: float
    limit_seconds: float
    rows: list[Row]

    @property
    def is_bad(self) -> bool:
        return self.status != "finished" or any(row.status in BAD for row in self.rows)


def run_stages(
    names: Sequence[str], options: Options, save: Callable[[Sequence[StageResult]], None]
) -> list[StageResult]:
    """Run the stages in order; call `save` with the results so far, also while a stage runs.

    A signal stops the current stage; its rows are saved before the exception is raised.
    """
    results: list[StageResult] = []
    method = "fork"  # saves each stage the seconds of its imports
    for name in names:
        print(f"\n{name}", flush=True)
        run = StageRun(name, options)
        try:
            exit_code = run.until_done(method, lambda result: save([*results, result]))
            if exit_code == CANNOT_FORK:
                method = "spawn"
                run.until_done(method, lambda result: save([*results, result]))
        finally:
            run.stop()
            results.append(run.result)
            print(f"  {run.result.status} after {run.result.seconds:.1f} s", flush=True)
            save(results)
    return results


class StageRun:
    """One stage in a process of its own, which ends at the time limit of the stage."""

    def __init__(self, name: str, options: Options):
        self._name = name
        self._options = options
        self._limit_seconds = STAGES[name].limit_seconds if options.on_gpu else CPU_LIMIT_SECONDS
        self._status = "running"
        self._start_seconds = self._end_seconds = time.monotonic()
        self._process: Any = None

    def until_done(self, method: str, on_tick: Callable[[StageResult], None]) -> int | None:
        """Start the process and block until it ends or the limit has passed; return the exit code."""
        context: Any = multiprocessing.get_context(method)
        arguments = (self._name, self._options, method)
        self._process = context.Process(target=_serve_stage, args=arguments)
        self._process.start()
        while self._process.exitcode is None and self._seconds < self._limit_seconds:
            self._process.join(TICK_SECONDS)
            on_tick(self.result)
        return self._process.exitcode

    def stop(self) -> None:
        """Set the final status; end the process and its descendants if it still runs."""
        code = self._process.exitcode if self._process else None
        if code is None and self._process and self._process.pid:
            end_tree(self._process.pid)
            self._process.join(JOIN_SECONDS)
        self._status = {None: "stopped", 0: "finished"}.get(code, FAILED)
        self._end_seconds = time.monotonic()

    @property
    def _seconds(self) -> float:
        end_seconds = time.monotonic() if self._status == "running" else self._end_seconds
        return end_seconds - self._start_seconds

    @property
    def result(self) -> StageResult:
        rows = read_rows(_rows_file(self._options, self._name))
        if self._status == FAILED and not any(row.status == FAILED for row in rows):
            note = f"exit code {self._process.exitcode}"
            rows.append(Row("process of the stage", FAILED, note=note))
        return StageResult(self._name, self._status, self._seconds, self._limit_seconds, rows)


def _rows_file(options: Options, name: str) -> Path:
    return options.folder / f"{name}.jsonl"


def _serve_stage(name: str, options: Options, method: str) -> None:
    """Run a stage in its own process; an error becomes a row."""
    os.setsid()
    # As the handler of the command, but for the signal of `end_tree`: stages clean up on SystemExit.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    if options.on_gpu and method == "fork":
        _exit_if_cuda_cannot_fork()
    rows = Rows(_rows_file(options, name))
    machine = options.folder / MACHINE_FILE
    try:
        if not machine.exists():
            write_json(machine, describe_machine(os.cpu_count() or 1))
        STAGES[name].run(options, rows)
    except Exception as error:
        traceback.print_exc()
        lines = str(error).strip().splitlines()
        rows.failed(type(error).__name__, lines[0] if lines else "")
        sys.stdout.flush()
        os._exit(1)


def _exit_if_cuda_cannot_fork() -> None:
    try:
        torch.cuda.current_device()
    except RuntimeError:
        traceback.print_exc()
        os._exit(CANNOT_FORK)


def print_results(results: Sequence[StageResult]) -> None:
    """Print all rows without their notes, aligned; rich would cut them in narrow terminals."""
    table = [("stage", "status", "check", "value", "bound")]
    for result in results:
        table.append((result.stage, result.status, "the stage", f"{result.seconds:.1f} s", ""))
        for row in result.rows:
            check, value, bound, status, _ = row.cells()
            table.append((result.stage, status, check, value[:TABLE_VALUE_CHARACTERS], bound))
    widths = [max(len(cells[column]) for cells in table) for column in range(len(table[0]))]
    print("\nGPU acceptance")
    for cells in table:
        line = "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        print(line.rstrip())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--json", type=Path, required=True, metavar="FILE", help="results, updated while it runs"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=STAGES,
        metavar="STAGE",
        default=[],
        help=f"stages to run, of {', '.join(STAGES)}; default: those that fit into five minutes, with --quick all",
    )
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda", help="cpu only with --quick"
    )
    parser.add_argument("--quick", action="store_true", help="toy sizes, to check this command")
    arguments = parser.parse_args()
    default = [name for name, stage in STAGES.items() if arguments.quick or not stage.on_request]
    names = arguments.only or default
    if arguments.device == "cpu" and not arguments.quick:
        parser.error("on a CPU the full sizes would take hours; add --quick")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit("torch sees no CUDA device; on a CPU, run --device cpu --quick")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    cache = ROOT / ".cache"
    cache.mkdir(exist_ok=True)
    with TemporaryDirectory(prefix="gpu-acceptance-", dir=cache) as folder:
        options = Options(arguments.device, arguments.quick, Path(folder))
        results = run_stages(names, options, partial(save_json, arguments.json, options))
    print_results(results)
    bad = [result.stage for result in results if result.is_bad]
    print(f"not met: {', '.join(bad)}" if bad else "all bounds are met", flush=True)
    sys.exit(1 if bad else 0)


def save_json(path: Path, options: Options, results: Sequence[StageResult]) -> None:
    """Write the results so far; the file is replaced atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    machine = options.folder / MACHINE_FILE
    write_json(
        path,
        {
            "machine": read_json(machine) if machine.exists() else {},
            "device": options.device,
            "quick": options.quick,
            "bad_stages": [result.stage for result in results if result.is_bad],
            "stages": [asdict(result) for result in results],
        },
    )


if __name__ == "__main__":
    main()
