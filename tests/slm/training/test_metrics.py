"""The clock of the training time."""

from __future__ import annotations

import io
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from slm.run.spec import RunSpec
from slm.tracking import run_dir
from slm.tracking.wandb import Mirror
from slm.training.metrics import Metrics
from tests.running import run_to_end


def test_kernels_before_a_validation_count_as_training_time(
    tiny_spec: Callable[..., RunSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock stops at a validation, so that the kernels of the steps before it must have ended; no row is due."""
    synchronized: list[int] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: synchronized.append(1))
    stream = io.StringIO()
    spec = tiny_spec(trainer={"log_every_steps": 100})
    metrics = Metrics(spec, stream, Mirror(), peak_flops=None, val_bytes=None)
    metrics.start(2)
    output: Any = SimpleNamespace(loss=SimpleNamespace(is_cuda=True))
    metrics.after_step(3, output)
    assert not synchronized
    metrics.after_step(4, output, before_validation=True)
    assert synchronized == [1] and stream.getvalue() == ""


def test_steps_before_a_validation_are_marked(
    tiny_spec: Callable[..., RunSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    original, marked = Metrics.after_step, []

    def record(self: Metrics, done: int, *arguments: Any, **options: Any) -> None:
        if options.get("before_validation"):
            marked.append(done)
        original(self, done, *arguments, **options)

    monkeypatch.setattr(Metrics, "after_step", record)
    run, _ = run_to_end(tiny_spec(trainer={"log_every_steps": 5, "validate_every_steps": 7}))
    rows = run.read_metrics()
    assert marked == [row[run_dir.STEP] for row in rows if run_dir.VAL_LOSS in row] == [7, 14, 20]
    logged = [row[run_dir.STEP] for row in rows if run_dir.TRAIN_LOSS in row]
    assert logged == [1, 5, 10, 15, 20]
