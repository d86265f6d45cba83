"""Runs trained inside of the test's process, and what is compared of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from slm.config.schema import Config
from slm.run.spec import RunSpec, branch_specs
from slm.tracking import run_dir
from slm.tracking.checkpoints import newest_checkpoint
from slm.tracking.result import RunResult
from slm.tracking.run_dir import RunDirectory
from slm.training.execute import train_all
from slm.training.module import LanguageModule
from slm.training.runner import train

TIMED = {run_dir.TOKENS_PER_SECOND}


def run_to_end(spec: RunSpec) -> tuple[RunDirectory, RunResult]:
    run = RunDirectory.of(spec)
    with run.claim(spec):
        return run, train(spec, run)


def branches_to_end(config: Config) -> list[RunDirectory]:
    """All branches of a config, as train.py trains them."""
    train_all(config)
    return [RunDirectory.of(spec) for spec in branch_specs(config)]


def checkpoint(run: RunDirectory) -> dict[str, Any]:
    found = newest_checkpoint(run.checkpoints)
    assert found is not None
    return torch.load(found[0], weights_only=True)


def weights(run: RunDirectory) -> dict[str, Tensor]:
    return checkpoint(run)["state_dict"]


def losses(run: RunDirectory) -> list[tuple[float, float, float]]:
    keys = (run_dir.TRAIN_LOSS, run_dir.GRAD_NORM, run_dir.LR)
    return [tuple(row[k] for k in keys) for row in run.read_metrics() if run_dir.TRAIN_LOSS in row]  # type: ignore[misc]


def assert_same_run(ours: RunDirectory, theirs: RunDirectory) -> None:
    """Bit for bit: every row but its speed, weights, moments, random states and the final losses."""
    rows = [
        [{k: v for k, v in row.items() if k not in TIMED} for row in run.read_metrics()]
        for run in (ours, theirs)
    ]
    assert rows[0] == rows[1]
    saved, other = checkpoint(ours), checkpoint(theirs)
    assert_equal(saved["state_dict"], other["state_dict"])
    assert_equal(saved["optimizer_states"], other["optimizer_states"])
    assert_equal(saved["random_states"], other["random_states"])
    assert saved["global_step"] == other["global_step"]
    mine, his = ours.result(), theirs.result()
    assert mine is not None and his is not None
    for field in ("val_loss_nats_per_token", "train_loss_nats_per_token", "steps", "loss_spikes"):
        assert getattr(mine, field) == getattr(his, field), field


def assert_equal(one: Any, other: Any) -> None:
    if isinstance(one, Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, list):
        for mine, his in zip(one, other, strict=True):
            assert_equal(mine, his)
    else:
        assert one == other


@contextmanager
def power_cut(monkeypatch: pytest.MonkeyPatch, before_step: int) -> Iterator[None]:
    """Training fails, without being asked, before it takes this step."""
    original = LanguageModule.take_step

    def fail(self: LanguageModule, step: int, batch: Tensor) -> dict[str, Any]:
        if step == before_step:
            raise RuntimeError("power cut")
        return original(self, step, batch)

    with monkeypatch.context() as patched:
        patched.setattr(LanguageModule, "take_step", fail)
        with pytest.raises(RuntimeError, match="power cut"):
            yield


@contextmanager
def counted_steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Every training step that is taken inside, by its number."""
    original = LanguageModule.take_step
    taken: list[int] = []

    def count(self: LanguageModule, step: int, batch: Tensor) -> dict[str, Any]:
        taken.append(step)
        return original(self, step, batch)

    with monkeypatch.context() as patched:
        patched.setattr(LanguageModule, "take_step", count)
        yield taken
