"""A signal to one process of a distributed run, or to torchrun, stops all; the run resumes exactly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from slm.tracking.checkpoints import newest_checkpoint
from slm.tracking.run_dir import RunDirectory
from tests.conftest import PATIENCE_SECONDS, ROOT, cli_command, cli_env
from tests.ranks import Ending, Job, train_on_ranks
from tests.running import assert_same_run

pytestmark = pytest.mark.slow
STEPS = 120
ARGUMENTS = (
    "experiment=smoke", "tracking=disabled", f"budget.tokens={STEPS * 1024}", "trainer.strategy=ddp",
    "trainer.devices=2", "trainer.log_every_steps=1", "trainer.validate_every_steps=null",
    "trainer.checkpoint_every_steps=7",
)  # fmt: skip
SIGNALS = [
    ("torchrun", signal.SIGINT), (0, signal.SIGTERM), (1, signal.SIGUSR1), (0, signal.SIGKILL),
    (1, signal.SIGKILL),
]  # fmt: skip
"""Whom of the processes each signal is sent to: torchrun, or a rank."""


def start(folder: Path, cache_dir: Path, *arguments: str) -> subprocess.Popen[str]:
    python, *run = cli_command("train.py", folder, cache_dir, *ARGUMENTS, *arguments)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return subprocess.Popen(
        [python, *torchrun, *run], cwd=ROOT, env=cli_env(), stderr=subprocess.PIPE, text=True
    )


def run_in(folder: Path) -> RunDirectory:
    (config,) = (folder / "runs").glob("*/*/config.yaml")
    return RunDirectory(config.parent)


def rows_in(folder: Path) -> int:
    return sum(path.read_text().count("\n") for path in folder.glob("runs/*/*/metrics.jsonl"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> RunDirectory:
    folder = tmp_path_factory.mktemp("whole")
    whole = start(folder, cache_dir)
    _, said = whole.communicate(timeout=PATIENCE_SECONDS)
    assert whole.returncode == 0, said
    assert said.count("finished: validation") == 1, "only rank 0 logs"
    assert rows_in(folder) == STEPS + 1, "only rank 0 writes"
    return run_in(folder)


@dataclass(frozen=True)
class Stop:
    """A run one of whose processes was sent a signal, as it was when all of them had ended."""

    run: RunDirectory
    exit_code: int
    said: str
    ranks: list[int]
    """Process ids."""
    state: str
    checkpoint_step: int
    rows: int
    has_result: bool


def stop(folder: Path, cache_dir: Path, victim: str | int, number: int) -> Stop:
    process = start(folder, cache_dir)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while rows_in(folder) < 20 and time.monotonic() < deadline:
        time.sleep(0.02)
    ranks = children(process.pid)
    assert len(ranks) == 2
    os.kill(process.pid if victim == "torchrun" else ranks[int(victim)], number)
    _, said = process.communicate(timeout=PATIENCE_SECONDS)
    run = run_in(folder)
    found = newest_checkpoint(run.checkpoints)
    assert found is not None
    has_result = run.result() is not None
    return Stop(
        run, process.returncode, said, ranks, run.state(), found[1], rows_in(folder), has_result
    )


@pytest.fixture(scope="module")
def stops(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> dict[Any, Stop]:
    """One stopped run for each of SIGNALS."""
    return {case: stop(tmp_path_factory.mktemp("stopped"), cache_dir, *case) for case in SIGNALS}


@pytest.fixture(scope="module")
def continued(stops: dict[Any, Stop], tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Any]:
    """How each stopped run ended when it was started again: all in one pair of processes."""
    jobs = [Job(one.run.spec().config) for one in stops.values()]
    endings = train_on_ranks(tmp_path_factory.mktemp("continued"), jobs)
    return dict(zip(stops, endings, strict=True))


@pytest.mark.parametrize(("victim", "number"), SIGNALS)
def test_a_signal_to_one_ends_all(
    stops: dict[Any, Stop], victim: str | int, number: signal.Signals
) -> None:
    stopped = stops[victim, number]
    assert stopped.exit_code == 1  # torchrun's, whatever those of its processes
    assert not any(Path(f"/proc/{rank}").exists() for rank in stopped.ranks)
    step, said = stopped.checkpoint_step, stopped.said
    assert step < STEPS and not stopped.has_result
    if number == signal.SIGKILL:
        # Whoever is left says so, unless torchrun ends it before.
        assert stopped.state in {"interrupted", "failed"}
        assert said.count("another process of this run has ended") <= 1
    else:
        assert stopped.state == "interrupted" and step == stopped.rows
        assert said.count(f"interrupted by {number.name} after step {step} of {STEPS}") == 1
    if number not in {signal.SIGKILL, signal.SIGINT} and victim != "torchrun":
        assert said.count(f"exitcode  : {128 + number}") >= 1


@pytest.mark.parametrize(("victim", "number"), SIGNALS)
def test_a_stopped_run_continues_exactly(
    stops: dict[Any, Stop],
    continued: dict[Any, Any],
    undisturbed: RunDirectory,
    victim: str | int,
    number: signal.Signals,
) -> None:
    stopped = stops[victim, number]
    remaining = Ending(steps=list(range(stopped.checkpoint_step, STEPS)))
    assert continued[victim, number] == [remaining] * 2
    assert_same_run(stopped.run, undisturbed)


def children(of: int) -> list[int]:
    """Return the process ids of the children in the order of their start, which is the rank order."""
    found = subprocess.run(["pgrep", "-P", str(of)], capture_output=True, text=True, check=False)
    return sorted(int(pid) for pid in found.stdout.split())


def test_config_error_is_printed_once(tmp_path: Path, cache_dir: Path) -> None:
    wrong = start(tmp_path, cache_dir, "model.n_layer=3")
    _, said = wrong.communicate(timeout=PATIENCE_SECONDS)
    assert wrong.returncode == 1 and said.count("did you mean model.n_layers?") == 1
    assert said.count("exitcode  : 2") >= 1  # torchrun may end the other process before it exits
    one_too_few = start(tmp_path, cache_dir, "trainer.devices=3")
    _, said = one_too_few.communicate(timeout=PATIENCE_SECONDS)
    assert said.count("make 3 processes; 2 were started") == 1
    assert (
        "torchrun --nproc-per-node=3 train.py trainer=cpu trainer.strategy=ddp trainer.devices=3"
        in said
    )
    assert not (tmp_path / "runs").exists()


def test_sweep_py_rejects_several_processes(tmp_path: Path, cache_dir: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*torchrun, *cli_command("sweep.py", tmp_path, cache_dir, "study=smoke")[1:]]
    done = subprocess.run(
        command, cwd=ROOT, env=cli_env(), capture_output=True, text=True, check=False
    )
    assert (
        done.returncode == 1
        and done.stderr.count("start trainer.devices processes for each run") == 1
    )
    assert not (tmp_path / "runs").exists()
