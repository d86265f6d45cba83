"""Stages that run only when asked for: the tests that need a GPU, and all presets."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

from tests.benchmarks.acceptance.measuring import add_speed, measure_speed
from tests.benchmarks.acceptance.rows import ROOT, Options, Rows
from tests.benchmarks.peers import Mode

PRESETS = ("125m", "350m", "600m", "1b")


def run_pytest(options: Options, rows: Rows) -> None:
    check = "pytest -m gpu"
    if not options.on_gpu:
        rows.skipped(check, "needs CUDA")
        return
    if importlib.util.find_spec("pytest") is None:
        rows.skipped(check, "pytest is not installed")
        return
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "--no-header"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    print(done.stdout, flush=True)
    lines = done.stdout.strip().splitlines()
    rows.holds(check, done.returncode == 0, lines[-1] if lines else f"exit code {done.returncode}")


def run_presets(options: Options, rows: Rows) -> None:
    precision = "bf16" if options.on_gpu else "fp32"
    for preset in PRESETS[:1] if options.quick else PRESETS:
        for compiled in (False,) if options.quick else (False, True):
            mode = Mode(precision, compiled)
            add_speed(options, rows, f"{preset} {mode.name}", measure_speed(options, preset, mode))
