"""A study whose processes are killed at random gives the same results as an undisturbed study."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from slm.tracking.run_dir import RunDirectory
from tests.conftest import ROOT, cli_command, cli_env
from tests.in_process import run_here
from tests.running import assert_same_run

CHECKPOINT_STEPS = 10
STUDY = (
    "study=smoke", "study.sizes=[80k]", "study.tokens_per_param=[0.25,0.75,2.25]",
    f"trainer.checkpoint_every_steps={CHECKPOINT_STEPS}", "trainer.log_every_steps=1",
    "trainer.validate_every_steps=25", "tracking=disabled", "action=run",
)  # fmt: skip
MAX_STEPS = 40  # that the runs take between two kills
# Which process is killed, in random order: a run that takes steps, any process that the sweep has started (at any
# moment, also while it imports), or the sweep itself, whose runs then continue alone.
KILLS = [
    *[("run", signal.SIGKILL)] * 5, *[("run", signal.SIGTERM)] * 2, ("run", signal.SIGINT),
    ("any", signal.SIGKILL), ("sweep", signal.SIGKILL),
]  # fmt: skip


def start(runs: Path, cache_dir: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        cli_command("sweep.py", runs, cache_dir, *STUDY),
        cwd=ROOT, env=cli_env(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def training(folder: Path) -> list[int]:
    """Return the ids of the processes that took a step within the last second."""
    pids = []
    for run in all_runs(folder).values():
        rows = run.path / "metrics.jsonl"
        if rows.exists() and time.time() - rows.stat().st_mtime < 1 and run.is_in_use():
            pids.append(json.loads((run.path / "status.json").read_text())["owner"]["pid"])
    return pids


def children(of: int) -> list[int]:
    """Return the ids of all child processes, also of those that do not train yet."""
    found = subprocess.run(["pgrep", "-P", str(of)], capture_output=True, text=True, check=False)
    return [int(pid) for pid in found.stdout.split()]


def all_runs(folder: Path) -> dict[str, RunDirectory]:
    paths = (folder / "runs").glob("smoke/*/status.json")
    return {path.parent.name: RunDirectory(path.parent) for path in paths}


def rows_in(folder: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("runs/smoke/*/metrics.jsonl"))


def wait_for_victims(
    sweep: subprocess.Popen[bytes], place: Path, kind: str, chance: random.Random
) -> list[int]:
    """Return the processes of which one is to be killed now; none if the sweep ends before.

    Runs have taken some steps since the last kill; the others are killed after up to five seconds.
    """
    steps, wait_seconds = chance.randint(1, MAX_STEPS), chance.uniform(0, 5)
    begin_seconds, rows, taken = time.monotonic(), rows_in(place), 0
    while sweep.poll() is None:
        time.sleep(0.05)
        before, rows = rows, rows_in(place)
        taken += min(rows - before, 10)  # a branch begins with all rows of its trunk
        victims: list[int] = []
        if kind == "run":
            victims = training(place) if taken >= steps else []
        elif time.monotonic() - begin_seconds > wait_seconds:
            victims = [sweep.pid] if kind == "sweep" else children(sweep.pid)
        if victims:
            return victims
    return []


@pytest.mark.slow
def test_random_kills_leave_no_trace(tmp_path: Path, cache_dir: Path) -> None:
    command = cli_command("sweep.py", tmp_path / "calm", cache_dir, *STUDY, "hydra/launcher=basic")
    assert run_here(command).returncode == 0
    undisturbed = all_runs(tmp_path / "calm")
    assert len(undisturbed) == 2 * 3

    place, chance = tmp_path / "killed", random.Random(0)
    remaining = chance.sample(KILLS, len(KILLS))
    finished: dict[str, int] = {}  # when result.json of a finished run was written
    for _ in range(60):
        sweep = start(place, cache_dir)
        while sweep.poll() is None:
            if remaining:
                victims = wait_for_victims(sweep, place, remaining[0][0], chance)
                if victims:
                    _, number = remaining.pop(0)
                    victim = str(chance.choice(victims))
                    subprocess.run(["kill", f"-{number.value}", victim], check=False)
            else:
                time.sleep(0.2)
            for name, run in all_runs(place).items():
                result = run.path / "result.json"
                if name in finished:
                    assert result.stat().st_mtime_ns == finished[name], f"{name} was run twice"
                elif run.state() == "finished" and result.exists():
                    finished[name] = result.stat().st_mtime_ns
        if sweep.returncode == 0:
            break
        while any(run.is_in_use() for run in all_runs(place).values()):
            time.sleep(0.2)
    assert sweep.returncode == 0 and not remaining

    survived = all_runs(place)
    assert survived.keys() == undisturbed.keys()
    repeated = 0
    for name, run in survived.items():
        assert_same_run(run, undisturbed[name])
        lines = (run.path / "metrics.jsonl").read_text().splitlines()
        rows = [row for row in map(json.loads, lines) if "train/loss" in row]
        repeated += len(rows) - len({row["progress/step"] for row in rows})
    # A kill repeats at most the steps since the last checkpoint, in both concurrent runs.
    assert 0 < repeated <= 2 * len(KILLS) * CHECKPOINT_STEPS
    print(f"{len(survived)} runs equal, {repeated} steps taken twice")
