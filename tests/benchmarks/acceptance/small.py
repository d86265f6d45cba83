"""Total speed of study cells of 2.8 million parameters that share one GPU: alone, time-sliced, under MPS."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.benchmarks.acceptance.rows import Options, Rows
from tests.benchmarks.paired import Worker, started_workers
from tests.benchmarks.peers import Case, Mode, contender

PROCESSES, QUICK_PROCESSES = 4, 2
ROUNDS, QUICK_ROUNDS = 3, 1
SECONDS, QUICK_SECONDS = 1.5, 0.1
MPS_START_SECONDS = 10.0
MPS_CONTROL = "nvidia-cuda-mps-control"
CELL = ("family=deep_thin", "size=2.8m", "model.seq_len=256", "optimizer.global_batch_tokens=16384")
QUICK = ("model=tiny", "model.n_layers=1", "model.seq_len=32", "optimizer.global_batch_tokens=128")


def run(options: Options, rows: Rows) -> None:
    processes = QUICK_PROCESSES if options.quick else PROCESSES
    together = f"{processes} processes, time slices"
    alone_rate, plain_rate = _rates(options, processes)
    rows.measured("1 process", alone_rate, "tokens/s")
    rows.measured(together, plain_rate, "tokens/s", "total")
    rows.measured(f"{together} / 1 process", plain_rate / alone_rate)
    check = f"{processes} processes under MPS"
    reason = _without_mps(options)
    if reason:
        rows.skipped(check, reason)
    else:
        _add_mps(options, rows, check, processes, alone_rate)
    rows.skipped("CUDA graph of the step", "not built")


def _rates(options: Options, processes: int) -> tuple[float, float]:
    """Return the tokens/s of one process while the others are idle, and the total of all at once."""
    mode = Mode("bf16" if options.on_gpu else "fp32", False)
    case = Case(QUICK if options.quick else CELL, options.device, Path())
    starts = {
        f"process {number}": partial(Worker, contender, "slm", mode.name, case, threads=1)
        for number in range(1, 1 + processes)
    }
    rounds = QUICK_ROUNDS if options.quick else ROUNDS
    seconds = QUICK_SECONDS if options.quick else SECONDS
    alone, together = [], []
    with started_workers(starts) as workers:
        for _ in range(rounds):
            alone.append(_total([workers["process 1"]], seconds))
            together.append(_total(workers.values(), seconds))
    return statistics.median(alone), statistics.median(together)


def _total(workers: Collection[Worker], seconds: float) -> float:
    """Measure workers at the same time; return the sum of their tokens/s."""
    for worker in workers:
        worker.request(seconds)
    return sum(worker.receive()["tokens_per_second"] for worker in workers)


def _add_mps(options: Options, rows: Rows, check: str, processes: int, alone_rate: float) -> None:
    try:
        with mps():
            _, rate = _rates(options, processes)
    except (RuntimeError, OSError) as error:
        lines = str(error).strip().splitlines()
        rows.skipped(check, f"MPS does not work here: {lines[-1] if lines else error!r}")
        return
    rows.measured(check, rate, "tokens/s", "total")
    rows.measured(f"{check} / 1 process", rate / alone_rate)


def _without_mps(options: Options) -> str:
    if not options.on_gpu:
        return "needs CUDA"
    return "" if shutil.which(MPS_CONTROL) else f"{MPS_CONTROL} is not installed"


@contextmanager
def mps() -> Iterator[None]:
    """Run an MPS server with its own pipe directory for the processes started inside the block.

    Raises:
        RuntimeError: if it does not start.
    """
    # In /tmp, because the path of a socket may have at most 108 characters.
    with TemporaryDirectory(prefix="mps-") as folder:
        own = {"CUDA_MPS_PIPE_DIRECTORY": folder, "CUDA_MPS_LOG_DIRECTORY": folder}
        old = {key: os.environ.get(key) for key in own}
        os.environ.update(own)
        server = subprocess.Popen([MPS_CONTROL, "-f"], stdout=subprocess.DEVNULL)
        try:
            _wait_until_ready(server)
            yield
        finally:
            _control("quit")
            _end(server)
            for key, value in old.items():
                if value is None:
                    del os.environ[key]
                else:
                    os.environ[key] = value


def _wait_until_ready(server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + MPS_START_SECONDS
    while _control("get_server_list") != 0:
        if server.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{MPS_CONTROL} does not answer (exit code {server.poll()})")
        time.sleep(0.2)


def _control(command: str) -> int:
    """Send a command to the control daemon; return its exit code."""
    try:
        done = subprocess.run(
            [MPS_CONTROL], input=command, capture_output=True, text=True, timeout=5, check=False
        )
    except subprocess.TimeoutExpired:
        return 1
    return done.returncode


def _end(server: subprocess.Popen[bytes]) -> None:
    try:
        server.wait(5)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
