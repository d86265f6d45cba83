"""Helpers that train runs in the test process and compare their results."""

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
from slm.training.runner import train
from slm.training.step import StepOutput, TrainingStep

MACHINE_KEYS = {run_dir.TOKENS_PER_SECOND, run_dir.PEAK_MEMORY}


def run_to_end(spec: RunSpec) -> tuple[RunDirectory, RunResult]:
    run = RunDirectory.of(spec)
    with run.claim(spec):
        return run, train(spec, run)


def branches_to_end(config: Config) -> list[RunDirectory]:
    """Train all branches of a config as train.py does; return their run directories."""
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
    """Assert that two runs are equal bit for bit, except for timing and memory.

    Compares metric rows, weights, optimizer state, random states and the final losses.
    """
    rows = [
        [{k: v for k, v in row.items() if k not in MACHINE_KEYS} for row in run.read_metrics()]
        for run in (ours, theirs)
    ]
    assert rows[0] == rows[1]
    saved, other = checkpoint(ours), checkpoint(theirs)
    assert_equal(saved["state_dict"], other["state_dict"])
    assert_equal(saved["optimizer"], other["optimizer"])
    assert_equal(saved["random_states"], other["random_states"])
    assert saved["global_step"] == other["global_step"]
    result, expected = ours.result(), theirs.result()
    assert result is not None and expected is not None
    for field in ("val_loss_nats_per_token", "train_loss_nats_per_token", "steps", "loss_spikes"):
        assert getattr(result, field) == getattr(expected, field), field


def assert_equal(one: Any, other: Any) -> None:
    """Assert that two nested structures of dicts, lists and tensors are equal bit for bit."""
    if isinstance(one, Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, list):
        for item, other_item in zip(one, other, strict=True):
            assert_equal(item, other_item)
    else:
        assert one == other


@contextmanager
def power_cut(monkeypatch: pytest.MonkeyPatch, before_step: int) -> Iterator[None]:
    """Raise an unexpected error before training step `before_step`, and catch it."""
    original = TrainingStep.take

    def fail(self: TrainingStep, step: int, pairs: Tensor) -> StepOutput:
        if step == before_step:
            raise RuntimeError("power cut")
        return original(self, step, pairs)

    with monkeypatch.context() as patched:
        patched.setattr(TrainingStep, "take", fail)
        with pytest.raises(RuntimeError, match="power cut"):
            yield


@contextmanager
def counted_steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Record the numbers of the training steps that are taken inside the context."""
    original = TrainingStep.take
    taken: list[int] = []

    def count(self: TrainingStep, step: int, pairs: Tensor) -> StepOutput:
        taken.append(step)
        return original(self, step, pairs)

    with monkeypatch.context() as patched:
        patched.setattr(TrainingStep, "take", count)
        yield taken
