"""Runs trained by several processes, one run after the other, as train.py trains them.

    torchrun --nproc-per-node=2 -m tests.team JOBS.json FOLDER

A job is a config and what goes wrong in it; each process writes what became of its jobs to FOLDER.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from slm.config.load import load_config
from slm.config.schema import Config, to_tree
from slm.errors import SlmError
from slm.training.execute import train_all
from slm.training.launch import find_place
from slm.training.module import LanguageModule
from slm.training.team import Team, assembled
from tests.conftest import ROOT, cli_env


@dataclass(frozen=True)
class Job:
    """`cut_before_step` is a power cut in all processes; a poisoned weight is that of rank 1 alone."""

    config: Config
    cut_before_step: int | None = None
    poisoned_step: int | None = None
    is_patient: bool = False
    """Refused steps are told of when a row is due, as on a GPU."""


@dataclass(frozen=True)
class Ending:
    """Of one job in one process: the error, if it met one."""

    error: str = ""
    message: str = ""
    exit_code: int = 0
    steps: list[int] = field(default_factory=list)
    """Those that were taken."""


def train_in_team(
    folder: Path, jobs: Sequence[Job], processes: int = 2, timeout_seconds: float = 240
) -> list[list[Ending]]:
    """What became of each job in each process: [job][rank]."""
    folder.mkdir(exist_ok=True)
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone",
        f"--nproc-per-node={processes}", "-m", *module_arguments(folder, jobs),
    ]  # fmt: skip
    env = {**cli_env(), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout_seconds,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return endings(folder, processes)


def module_arguments(folder: Path, jobs: Sequence[Job]) -> list[str]:
    written = [{**vars(job), "config": to_tree(job.config)} for job in jobs]
    (folder / "jobs.json").write_text(json.dumps(written))
    return ["tests.team", str(folder / "jobs.json"), str(folder)]


def endings(folder: Path, processes: int) -> list[list[Ending]]:
    by_rank = [
        [Ending(**ending) for ending in json.loads((folder / f"rank-{rank}.json").read_text())]
        for rank in range(processes)
    ]
    return [list(of_job) for of_job in zip(*by_rank, strict=True)]


def main(jobs: Path, folder: Path) -> None:
    logging.getLogger("slm").setLevel(logging.INFO)
    met: list[dict[str, Any]] = []
    with assembled(find_place(os.environ), print) as team:
        for written in json.loads(jobs.read_text()):
            job = Job(**{**written, "config": load_config(written["config"])})
            met.append(asdict(run_job(job, team)))
    (folder / f"rank-{team.rank}.json").write_text(json.dumps(met))


def run_job(job: Job, team: Team) -> Ending:
    with harmed(job, team) as steps:
        try:
            train_all(job.config, team)
        except Exception as error:
            code = error.exit_code if isinstance(error, SlmError) else 1
            return Ending(type(error).__name__, str(error), code, steps)
    return Ending(steps=steps)


@contextmanager
def harmed(job: Job, team: Team) -> Iterator[list[int]]:
    """Steps that are taken inside, with what the job says goes wrong in them."""
    original = LanguageModule.take_step
    steps: list[int] = []

    def take_step(self: LanguageModule, step: int, batch: torch.Tensor) -> dict[str, Any]:
        if step == job.cut_before_step:
            raise RuntimeError("power cut")
        self.finite_steps.at_once = not job.is_patient
        if step == job.poisoned_step and team.rank == 1:
            weight = self.model.blocks[1].mlp_norm.weight.detach()
            part = weight.to_local() if isinstance(weight, DTensor) else weight
            part[0] = float("inf")
        steps.append(step)
        return original(self, step, batch)

    LanguageModule.take_step = take_step  # type: ignore[method-assign]
    try:
        yield steps
    finally:
        LanguageModule.take_step = original  # type: ignore[method-assign]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
