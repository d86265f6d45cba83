"""Acceptance check of slm on a GPU, in at most five minutes.

    python -m tests.benchmarks.gpu_acceptance --json FILE [--only STAGE ...] [--device cuda|cpu] [--quick]

Stages, most valuable first: versions, parity, resume, speed, loss_chunks, small. Only when named: pytest,
presets, ranks. docs/gpu.md says what each checks and what a miss means. Every stage runs in a process of its
own with a time limit; its rows are printed and saved as they are measured, so a stage that is stopped keeps
them. The exit code is 1 if a bound is missed, a stage fails, or a stage is stopped. Scratch files are in
`.cache/` of the checkout and are removed.

`--device cpu --quick` runs all stages at toy size on a CPU: a check of this command, not of the machine.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

# Without this, asking for the number of GPUs would start CUDA in this process, and the stages that are
# forked from it could not use it. It has to be set before torch is imported.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")

from slm.files import read_json, write_json
from tests.benchmarks.acceptance import (
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
from tests.benchmarks.acceptance.rows import BAD, FAILED, Options, Row, Rows, read_rows
from tests.benchmarks.paired import describe_machine
from tests.conftest import ROOT

CPU_LIMIT_SECONDS = 300.0  # of a stage; a CPU that is shared may be slow
CANNOT_FORK = 3
JOIN_SECONDS = 10.0


@dataclass(frozen=True)
class Stage:
    run: Callable[[Options, Rows], None]
    limit_seconds: float
    on_request: bool = False


STAGES = {
    "versions": Stage(versions.run, 30),
    "parity": Stage(parity.run, 50),
    "resume": Stage(resume.run, 35),
    "speed": Stage(speed.run, 115),
    "loss_chunks": Stage(loss_chunks.run, 25),
    "small": Stage(small.run, 45),
    "pytest": Stage(on_request.run_pytest, 240, on_request=True),
    "presets": Stage(on_request.run_presets, 400, on_request=True),
    "ranks": Stage(ranks.run, 400, on_request=True),
}


@dataclass(frozen=True)
class StageResult:
    stage: str
    status: str
    """finished, failed or stopped."""
    seconds: float
    limit_seconds: float
    rows: list[Row]

    @property
    def is_bad(self) -> bool:
        return self.status != "finished" or any(row.status in BAD for row in self.rows)


def run_stages(
    names: Sequence[str], options: Options, save: Callable[[list[StageResult], Any], None]
) -> list[StageResult]:
    """Run the stages in order; call `save` with the results so far after each, and the machine."""
    results: list[StageResult] = []
    method = "fork"  # saves each stage the seconds of its imports
    for name in names:
        print(f"\n{name}", flush=True)
        result, code = _run_stage(name, options, method)
        if code == CANNOT_FORK:
            method = "spawn"
            result, _ = _run_stage(name, options, method)
        results.append(result)
        print(f"  {result.status} after {result.seconds:.1f} s", flush=True)
        machine = options.folder / "machine.json"
        save(results, read_json(machine) if machine.exists() else {})
    return results


def _run_stage(name: str, options: Options, method: str) -> tuple[StageResult, int | None]:
    """Run one stage in a process; stop the process and its descendants at the time limit."""
    limit_seconds = STAGES[name].limit_seconds if options.on_gpu else CPU_LIMIT_SECONDS
    context: Any = multiprocessing.get_context(method)
    process = context.Process(target=_serve_stage, args=(name, options, method))
    sys.stdout.flush()
    start_seconds = time.monotonic()
    process.start()
    process.join(limit_seconds)
    status = "finished"
    if process.exitcode is None:
        status = "stopped"
        end_tree(process.pid)
        process.join(JOIN_SECONDS)
    elif process.exitcode != 0:
        status = FAILED
    seconds = time.monotonic() - start_seconds
    rows = read_rows(_rows_file(options, name))
    if status == FAILED and not any(row.status == FAILED for row in rows):
        rows.append(Row("process of the stage", FAILED, note=f"exit code {process.exitcode}"))
    return StageResult(name, status, seconds, limit_seconds, rows), process.exitcode


def _rows_file(options: Options, name: str) -> Path:
    return options.folder / f"{name}.jsonl"


def _serve_stage(name: str, options: Options, method: str) -> None:
    """Run a stage in its own process; an error becomes a row."""
    os.setsid()
    if options.on_gpu and method == "fork":
        _exit_if_cuda_cannot_fork()
    rows = Rows(_rows_file(options, name))
    machine = options.folder / "machine.json"
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
    import torch

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
            table.append((result.stage, status, check, value, bound))
    widths = [max(len(cells[column]) for cells in table) for column in range(len(table[0]))]
    print("\nGPU acceptance")
    for cells in table:
        line = "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        print(line.rstrip())


def as_json(result: StageResult) -> dict[str, Any]:
    return {**asdict(result), "is_bad": result.is_bad}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True, metavar="FILE")
    parser.add_argument("--only", nargs="+", choices=STAGES, metavar="STAGE", default=[])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="toy sizes, to check this command")
    arguments = parser.parse_args()
    default = [name for name, stage in STAGES.items() if arguments.quick or not stage.on_request]
    names = arguments.only or default
    arguments.json.parent.mkdir(parents=True, exist_ok=True)

    def save(results: list[StageResult], machine: Any) -> None:
        bad = [result.stage for result in results if result.is_bad]
        done = {"quick": arguments.quick, "device": arguments.device, "bad_stages": bad}
        stages = [as_json(result) for result in results]
        write_json(arguments.json, {"machine": machine, **done, "stages": stages})

    cache = ROOT / ".cache"
    cache.mkdir(exist_ok=True)
    with TemporaryDirectory(prefix="gpu-acceptance-", dir=cache) as folder:
        options = Options(arguments.device, arguments.quick, Path(folder))
        results = run_stages(names, options, save)
    print_results(results)
    bad = [result.stage for result in results if result.is_bad]
    print(f"not met: {', '.join(bad)}" if bad else "all bounds are met", flush=True)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
