"""Errors of the processes of a run: which of them end the process at once."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from slm.config.schema import Config
from slm.errors import DataError, Diverged, Interrupted, PeerFailed, RunError, SlmError
from slm.training import execute
from slm.training.distributed import workers as workers_module
from slm.training.distributed.rank import Placement
from slm.training.distributed.workers import Workers, joined_workers

SHARED = [
    Diverged("loss nan"),
    Interrupted("interrupted by SIGTERM", signal.SIGTERM),
    PeerFailed("process 0: no space", 1),
]


class Exited(BaseException):
    """Raised instead of the end of the process."""


@pytest.fixture
def placement(monkeypatch: pytest.MonkeyPatch) -> Placement:
    """Replace the process group: this process is rank 1 of 2."""

    def end(code: int) -> None:
        raise Exited(code)

    monkeypatch.setattr(workers_module, "_join", lambda placement: Workers(1, 2, 1))
    monkeypatch.setattr(Workers, "shutdown_barrier", lambda self: None)
    monkeypatch.setattr(os, "_exit", end)
    return Placement(1, 2, 1, "env://")


def raise_in_process(placement: Placement, error: Exception) -> None:
    with joined_workers(placement, print):
        raise error


def test_error_of_one_rank_is_printed_and_ends_its_process(
    placement: Placement, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Exited, match="1"):
        raise_in_process(placement, RunError("step-8.ckpt: not a checkpoint of this run"))
    assert capsys.readouterr().err == "process 1: step-8.ckpt: not a checkpoint of this run\n"


@pytest.mark.parametrize("error", SHARED, ids=lambda error: type(error).__name__)
def test_error_of_all_ranks_is_raised(placement: Placement, error: SlmError) -> None:
    with pytest.raises(type(error)):
        raise_in_process(placement, error)


def test_error_that_workers_have_shared_is_raised(placement: Placement) -> None:
    error = DataError("no corpus")
    error.is_shared = True  # type: ignore[attr-defined]
    with pytest.raises(DataError):
        raise_in_process(placement, error)


@pytest.mark.parametrize(("world_size", "trained"), [(1, 2), (2, 1)])
def test_next_branch_does_not_start_after_an_error_of_one_rank(
    tiny_config: Callable[..., Config],
    monkeypatch: pytest.MonkeyPatch,
    world_size: int,
    trained: int,
) -> None:
    """The other ranks still train the first branch."""
    started: list[str] = []

    def train(spec: object, *_: object) -> None:
        started.append("branch")
        raise RunError("bug on one rank")

    monkeypatch.setattr(execute, "_train", train)
    monkeypatch.setattr(execute, "StopSignal", lambda workers: None)
    specs = execute.branch_specs(tiny_config(budget={"tokens": 5120, "branches": [2560]}))
    workers = Workers(0, world_size)
    with pytest.raises(RunError):
        execute._train_each(specs, [object()] * 2, workers, more_jobs=False)  # type: ignore[list-item]
    assert len(started) == trained
