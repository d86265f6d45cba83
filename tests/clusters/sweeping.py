"""Sweeps that run in the background while a test kills, preempts or stops their processes."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from slm.files import read_json
from slm.tracking.checkpoints import newest_checkpoint
from slm.tracking.run_dir import RunDirectory
from tests.clusters.slurm import wait_until
from tests.conftest import PATIENCE_SECONDS, ROOT, cli_command, cli_env
from tests.in_process import run_here
from tests.running import assert_same_run

# Four runs in two jobs: each job trains the token budgets of one family.
SMOKE = ("study=smoke", "action=run", "study.sizes=[80k]")
# Two short runs, which the tests suspend before they act, so that a fast machine does not finish them first.
PAIR = (
    "study=smoke",
    "action=run",
    "study.families=[deep_thin]",
    "study.sizes=[128k]",
    "study.seeds=[0,1]",
    "study.tokens_per_param=[0.5]",
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

    def run_here(self) -> int:
        """Run the sweep in this process, which saves its imports; return its exit code."""
        command = cli_command("sweep.py", self.folder, self.cache_dir, *self.arguments)
        with patch.dict(os.environ, self.env):
            done = run_here(command)
        self.folder.mkdir(exist_ok=True)
        (self.folder / "output.txt").write_text(done.stdout + done.stderr)
        return done.returncode

    @property
    def output(self) -> str:
        return (self.folder / "output.txt").read_text()

    def runs(self) -> dict[str, RunDirectory]:
        """Return the run directories by run id."""
        paths = (self.folder / "runs" / "smoke").glob("[!.]*/status.json")
        return {path.parent.name: RunDirectory(path.parent) for path in sorted(paths)}

    def suspend(self, runs: int, resumes: int = 0) -> list[RunDirectory]:
        """Suspend each run that has a checkpoint and has resumed this often; return them, once there are `runs`."""
        suspended: dict[str, RunDirectory] = {}

        def has_suspended() -> bool:
            for run_id, run in self.runs().items():
                if run_id not in suspended and is_underway(run, resumes):
                    os.kill(pid_of(run), signal.SIGSTOP)
                    suspended[run_id] = run
            return len(suspended) >= runs

        wait_until(has_suspended, PATIENCE_SECONDS)
        return [suspended[run_id] for run_id in sorted(suspended)]


def wait_for_exit(process: subprocess.Popen[bytes]) -> int:
    """Return the exit code of a sweep; kill it after PATIENCE_SECONDS."""
    try:
        return process.wait(timeout=PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise


def is_underway(run: RunDirectory, resumes: int) -> bool:
    has_checkpoint = newest_checkpoint(run.checkpoints) is not None
    return run.state() == "running" and has_checkpoint and count_resumes(run) == resumes


def pid_of(run: RunDirectory) -> int:
    return int(read_json(run.path / "status.json")["owner"]["pid"])


def kill(run: RunDirectory) -> None:
    """Kill the run's process with SIGKILL, as the kernel does when memory runs out."""
    os.kill(pid_of(run), signal.SIGKILL)


def resume(run: RunDirectory) -> None:
    """Let the process of a suspended run continue."""
    os.kill(pid_of(run), signal.SIGCONT)


def has_pending(run: RunDirectory, number: int) -> bool:
    """Return whether a signal waits for the suspended process of a run."""
    status = Path(f"/proc/{pid_of(run)}/status").read_text()
    (mask,) = (line.split()[1] for line in status.splitlines() if line.startswith("ShdPnd:"))
    return bool(int(mask, 16) >> (number - 1) & 1)


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


def training_processes(study: Sweep) -> list[int]:
    """Return the processes of train.py that work for a study, on this machine."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # the process has ended
            arguments = path.read_text().split("\0")
            if (
                str(ROOT / "train.py") in arguments
                and f"++runs_dir={study.folder}/runs" in arguments
            ):
                found.append(int(path.parent.name))
    return found
