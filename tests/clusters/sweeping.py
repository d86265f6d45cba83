"""Sweeps that run in the background while a test kills, preempts or stops their processes."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from slm.files import read_json
from slm.tracking.checkpoints import newest_checkpoint
from slm.tracking.run_dir import RunDirectory
from tests.clusters.slurm import wait_until
from tests.conftest import PATIENCE_SECONDS, ROOT, cli_command, cli_env
from tests.running import assert_same_run

SMOKE = ("study=smoke", "action=run")
# Two runs of about ten seconds each.
PAIR = (
    "study=smoke",
    "action=run",
    "study.families=[deep_thin]",
    "study.sizes=[128k]",
    "study.seeds=[0,1]",
    "study.tokens_per_param=[2]",
    "trainer.checkpoint_every_steps=20",
    "tracking=disabled",
)
ONE = (*PAIR, "study.seeds=[0]")


@dataclass(frozen=True)
class Sweep:
    """Call of sweep.py in `folder`; its output goes to a file there."""

    folder: Path
    cache_dir: Path
    arguments: tuple[str, ...]
    env: Mapping[str, str]

    def start(self) -> subprocess.Popen[bytes]:
        self.folder.mkdir(exist_ok=True)
        command = cli_command("sweep.py", self.folder, self.cache_dir, *self.arguments)
        with (self.folder / "output.txt").open("w") as output:
            return subprocess.Popen(
                command, cwd=ROOT, env={**cli_env(), **self.env}, stdout=output, stderr=output
            )

    def run(self) -> int:
        """Run the sweep and return its exit code."""
        return wait_for_exit(self.start())

    @property
    def output(self) -> str:
        return (self.folder / "output.txt").read_text()

    def runs(self) -> dict[str, RunDirectory]:
        """Return the run directories by run id."""
        paths = (self.folder / "runs" / "smoke").glob("[!.]*/status.json")
        return {path.parent.name: RunDirectory(path.parent) for path in sorted(paths)}

    def wait_for_checkpoints(self, runs: int) -> None:
        """Wait until this number of runs is running and has a checkpoint."""
        wait_until(
            lambda: sum(is_underway(run) for run in self.runs().values()) >= runs, PATIENCE_SECONDS
        )


def wait_for_exit(process: subprocess.Popen[bytes]) -> int:
    """Return the exit code of a sweep; kill it after PATIENCE_SECONDS."""
    try:
        return process.wait(timeout=PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise


def is_underway(run: RunDirectory) -> bool:
    return run.state() == "running" and newest_checkpoint(run.checkpoints) is not None


def kill(run: RunDirectory) -> None:
    """Kill the run's process with SIGKILL, as the kernel does when memory runs out."""
    os.kill(read_json(run.path / "status.json")["owner"]["pid"], signal.SIGKILL)


def saved_state(run: RunDirectory) -> str:
    """Return the state that the process wrote last; `running` if it was killed."""
    return str(read_json(run.path / "status.json")["state"])


def count_resumes(run: RunDirectory) -> int:
    return (run.path / "log.txt").read_text().count("continuing after step")


def assert_same_study(ours: Sweep, theirs: Sweep) -> None:
    """Compare all runs of two studies bit for bit."""
    runs, others = ours.runs(), theirs.runs()
    assert runs and runs.keys() == others.keys()
    for run_id, run in runs.items():
        assert run.state() == "finished", ours.output
        assert_same_run(run, others[run_id])
