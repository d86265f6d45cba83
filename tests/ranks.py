"""Train runs in several processes, one run after the other, as train.py does.

    torchrun --nproc-per-node=2 -m tests.ranks JOBS.json FOLDER

A job is a config and the faults to inject. Each process writes the outcome of its jobs to FOLDER.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch._dynamo
from torch._dynamo.utils import counters
from torch.distributed.tensor import DTensor

from slm.config.load import load_config
from slm.config.schema import Config, to_tree
from slm.errors import SlmError
from slm.training import runner
from slm.training.distributed.rank import find_placement
from slm.training.distributed.workers import Workers, joined_workers
from slm.training.execute import train_all
from slm.training.step import StepOutput, TrainingStep
from tests.conftest import PATIENCE_SECONDS, ROOT, cli_env


@dataclass(frozen=True)
class Job:
    """One run and its injected faults."""

    config: Config
    cut_before_step: int | None = None
    """All processes raise an error before this step."""
    poisoned_step: int | None = None
    """A weight of rank 1 becomes infinite before this step."""
    raising_rank: int | None = None
    """This rank raises an error before step 5, which ends its process; it first writes the time to FOLDER."""
    unreadable_rank: int | None = None
    """This rank cannot read the checkpoint to continue from."""
    defers_finite_check: bool = False
    """Report non-finite steps only when a metric row is written, as on a GPU."""


@dataclass(frozen=True)
class Ending:
    """The outcome of one job in one process."""

    error: str = ""
    """Class name of the exception; empty if the job finished."""
    message: str = ""
    exit_code: int = 0
    steps: list[int] = field(default_factory=list)
    """Numbers of the steps taken."""
    graphs: int = 0
    """Graphs that dynamo compiled."""


def train_on_ranks(folder: Path, jobs: Sequence[Job], processes: int = 2) -> list[list[Ending]]:
    """Train the jobs with torchrun; return their outcomes as [job][rank]."""
    done = run_torchrun(folder, jobs, processes)
    assert done.returncode == 0, done.stderr
    return endings(folder, processes)


def run_torchrun(
    folder: Path, jobs: Sequence[Job], processes: int = 2
) -> subprocess.CompletedProcess[str]:
    folder.mkdir(exist_ok=True)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*torchrun, f"--nproc-per-node={processes}", "-m", *module_arguments(folder, jobs)]
    return subprocess.run(
        command,
        cwd=ROOT,
        env={**cli_env(), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )


def module_arguments(folder: Path, jobs: Sequence[Job]) -> list[str]:
    """Write the jobs to a file; return the arguments of `python -m` that train them."""
    trees = [{**vars(job), "config": to_tree(job.config)} for job in jobs]
    (folder / "jobs.json").write_text(json.dumps(trees))
    return ["tests.ranks", str(folder / "jobs.json"), str(folder)]


def endings(folder: Path, processes: int) -> list[list[Ending]]:
    """Read the outcomes that the processes wrote, as [job][rank]."""
    by_rank = [
        [Ending(**ending) for ending in json.loads((folder / f"rank-{rank}.json").read_text())]
        for rank in range(processes)
    ]
    return [list(of_job) for of_job in zip(*by_rank, strict=True)]


def main(jobs: Path, folder: Path) -> None:
    logging.getLogger("slm").setLevel(logging.INFO)
    outcomes: list[dict[str, Any]] = []
    with joined_workers(find_placement(os.environ), print) as workers:
        for tree in json.loads(jobs.read_text()):
            job = Job(**{**tree, "config": load_config(tree["config"])})
            outcomes.append(asdict(run_job(job, workers, folder)))
    (folder / f"rank-{workers.rank}.json").write_text(json.dumps(outcomes))


def run_job(job: Job, workers: Workers, folder: Path) -> Ending:
    torch._dynamo.reset()
    counters.clear()
    with injected_faults(job, workers, folder) as steps:
        try:
            train_all(job.config, workers)
        except Exception as error:
            if job.raising_rank is not None:
                raise
            code = error.exit_code if isinstance(error, SlmError) else 1
            return Ending(type(error).__name__, str(error), code, steps)
    return Ending(steps=steps, graphs=counters["stats"]["unique_graphs"])


@contextmanager
def injected_faults(job: Job, workers: Workers, folder: Path) -> Iterator[list[int]]:
    """Inject the faults of the job into its training steps; record the steps taken."""
    original, original_load = TrainingStep.take, runner.load_checkpoint
    steps: list[int] = []

    def load(*arguments: Any, **options: Any) -> dict[str, Any]:
        if workers.rank == job.unreadable_rank:
            raise OSError("stale file handle")
        return original_load(*arguments, **options)

    def take(self: TrainingStep, step: int, pairs: torch.Tensor) -> StepOutput:
        if step == job.cut_before_step:
            raise RuntimeError("power cut")
        if step == 5 and workers.rank == job.raising_rank:
            (folder / "raised").write_text(str(time.time()))
            raise RuntimeError("bug on one rank")
        self.finite_check.is_immediate = not job.defers_finite_check
        if step == job.poisoned_step and workers.rank == 1:
            weight = self.module.model.blocks[1].mlp_norm.weight.detach()
            shard = weight.to_local() if isinstance(weight, DTensor) else weight
            shard[0] = float("inf")
        steps.append(step)
        return original(self, step, pairs)

    TrainingStep.take = take  # type: ignore[method-assign]
    runner.load_checkpoint = load
    try:
        yield steps
    finally:
        TrainingStep.take = original  # type: ignore[method-assign]
        runner.load_checkpoint = original_load


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
