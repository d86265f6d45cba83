"""Studies that run in the background while a test kills, preempts or stops something."""

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
from tests.conftest import ROOT, cli_command, cli_env
from tests.running import assert_same_run

SMOKE = ("study=smoke", "action=run")
# Two runs of some ten seconds.
PAIR = (
    "study=smoke", "action=run", "study.families=[deep_thin]", "study.sizes=[128k]", "study.seeds=[0,1]",
    "study.tokens_per_param=[2]", "trainer.checkpoint_every_steps=20", "tracking=disabled",
)  # fmt: skip
ONE = (*PAIR, "study.seeds=[0]")


@dataclass(frozen=True)
class Sweep:
    """A study in `folder`, with what it says in a file."""

    folder: Path
    cache_dir: Path
    arguments: tuple[str, ...]
    env: Mapping[str, str]

    def start(self) -> subprocess.Popen[bytes]:
        self.folder.mkdir(exist_ok=True)
        command = cli_command("sweep.py", self.folder, self.cache_dir, *self.arguments)
        with (self.folder / "said.txt").open("w") as said:
            return subprocess.Popen(
                command, cwd=ROOT, env={**cli_env(), **self.env}, stdout=said, stderr=said
            )

    def to_end(self) -> int:
        return ended(self.start())

    @property
    def said(self) -> str:
        return (self.folder / "said.txt").read_text()

    def runs(self) -> dict[str, RunDirectory]:
        """By run id."""
        paths = (self.folder / "runs" / "smoke").glob("[!.]*/status.json")
        return {path.parent.name: RunDirectory(path.parent) for path in sorted(paths)}

    def wait_for_checkpoints(self, runs: int) -> None:
        """Until so many runs are in the middle."""
        wait_until(lambda: sum(is_underway(run) for run in self.runs().values()) >= runs, 120)


def ended(process: subprocess.Popen[bytes]) -> int:
    """The exit code of a sweep, which is stopped if it does not come to an end."""
    try:
        return process.wait(timeout=240)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise


def is_underway(run: RunDirectory) -> bool:
    return run.state() == "running" and newest_checkpoint(run.checkpoints) is not None


def kill(run: RunDirectory) -> None:
    """As the kernel does it when memory is short."""
    os.kill(read_json(run.path / "status.json")["owner"]["pid"], signal.SIGKILL)


def saved_state(run: RunDirectory) -> str:
    """What its process wrote last: `running` if it could not do so in the end."""
    return str(read_json(run.path / "status.json")["state"])


def times_resumed(run: RunDirectory) -> int:
    return (run.path / "log.txt").read_text().count("going on after step")


def assert_same_study(ours: Sweep, theirs: Sweep) -> None:
    """The same runs, bit for bit."""
    runs, others = ours.runs(), theirs.runs()
    assert runs and runs.keys() == others.keys()
    for run_id, run in runs.items():
        assert run.state() == "finished", ours.said
        assert_same_run(run, others[run_id])
