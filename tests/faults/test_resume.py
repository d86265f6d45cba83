"""A run that was interrupted and resumed equals an uninterrupted run, bit for bit."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from slm.data.examples import ValidationSet
from slm.errors import Interrupted
from slm.run.spec import RunSpec
from slm.tracking import run_dir
from slm.tracking.run_dir import RunDirectory
from slm.training.batches import ValidationBatches
from slm.training.step import StepOutput, TrainingStep
from slm.training.stop_on_signal import StopSignal
from tests.conftest import merged
from tests.running import assert_same_run, power_cut, run_to_end

Spec = Callable[..., RunSpec]
EVERY_STEP: dict[str, Any] = {
    "trainer": {
        "checkpoint_every_steps": 1,
        "micro_batch_sequences": 4,
        "validate_every_steps": 5,
    }
}


@pytest.mark.parametrize("at", [1, 5, 10, 13])
def test_resume_after_a_crash_is_exact(
    tiny_spec: Spec, tmp_path: Path, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    uninterrupted, _ = run_to_end(tiny_spec(runs_dir=str(tmp_path / "uninterrupted"), **EVERY_STEP))
    spec = tiny_spec(runs_dir=str(tmp_path / "cut"), **EVERY_STEP)
    with power_cut(monkeypatch, before_step=at):
        run_to_end(spec)
    assert RunDirectory.of(spec).state() == "failed"
    resumed, _ = run_to_end(spec)
    assert_same_run(resumed, uninterrupted)


@pytest.mark.parametrize(
    "settings",
    [
        {"trainer": {"checkpoint_every_steps": 4, "num_workers": 2}},
        {"trainer": {"checkpoint_every_steps": 3}, "model": {"dropout": 0.2}},
        # A short corpus with 21 epochs: the crashes are within an epoch.
        {"trainer": {"checkpoint_every_steps": 2}, "budget": {"tokens": 30 * 256}},
        {"trainer": {"checkpoint_every_steps": 6}, "optimizer": {"z_loss": 1e-3}},
    ],
    ids=["workers", "dropout", "epochs", "z_loss"],
)
def test_resume_after_two_crashes_is_exact(
    tiny_spec: Spec,
    tmp_path: Path,
    settings: dict[str, Any],
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if request.node.callspec.id == "epochs":
        (tmp_path / "text.txt").write_text("a text that is read many times over. " * 40)
        settings = merged(settings, {"data": short_corpus(tmp_path)})
    uninterrupted, result = run_to_end(
        tiny_spec(runs_dir=str(tmp_path / "uninterrupted"), **settings)
    )
    assert request.node.callspec.id != "epochs" or result.epochs > 3
    spec = tiny_spec(runs_dir=str(tmp_path / "cut"), **settings)
    for at in (7, 15):
        with power_cut(monkeypatch, before_step=at):
            run_to_end(spec)
    resumed, _ = run_to_end(spec)
    assert_same_run(resumed, uninterrupted)


def short_corpus(folder: Path) -> dict[str, Any]:
    text, held_out = folder / "text.txt", folder / "held_out.txt"
    held_out.write_text("a text that is kept for the end. " * 9)
    return {
        "source": "text_files",
        "files": [str(text)],
        "val_files": [str(held_out)],
        "val_tokens": 64,
        "max_epochs": 100,
    }


def test_run_does_not_depend_on_earlier_random_draws(tiny_spec: Spec, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"model": {"dropout": 0.3}}
    first, _ = run_to_end(tiny_spec(runs_dir=str(tmp_path / "first"), **settings))
    torch.rand(17)
    second, _ = run_to_end(tiny_spec(runs_dir=str(tmp_path / "second"), **settings))
    assert_same_run(second, first)


class SmallBatches(ValidationBatches):
    """Validation batches of 8 windows; the n-th pass calls `fail` in its middle."""

    fail: Callable[[], None]
    remaining_passes = 0

    def __init__(self, val: ValidationSet, batch_size: int, rank: int = 0, world_size: int = 1):
        super().__init__(val, 8, rank, world_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        SmallBatches.remaining_passes -= 1
        for index, batch in enumerate(super().__iter__()):
            if index == 2 and SmallBatches.remaining_passes == 0:
                SmallBatches.fail()
            yield batch


def crash() -> None:
    raise RuntimeError("power cut")


def send_sigterm() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("at_pass", [1, 2, 4])
@pytest.mark.parametrize("fail", [crash, send_sigterm])
def test_interrupted_validation_is_repeated_on_resume(
    tiny_spec: Spec,
    tmp_path: Path,
    at_pass: int,
    fail: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """20 steps with a validation every 5 steps; the fourth pass is after the last step."""
    monkeypatch.setattr("slm.training.loop.ValidationBatches", SmallBatches)
    monkeypatch.setattr(SmallBatches, "fail", staticmethod(fail), raising=False)
    settings: dict[str, Any] = {"trainer": {"validate_every_steps": 5}}
    uninterrupted, _ = run_to_end(tiny_spec(runs_dir=str(tmp_path / "uninterrupted"), **settings))
    spec = tiny_spec(runs_dir=str(tmp_path / "cut"), **settings)
    monkeypatch.setattr(SmallBatches, "remaining_passes", at_pass)
    with pytest.raises(RuntimeError if fail is crash else Interrupted) as caught:
        run_to_end(spec)
    if isinstance(caught.value, Interrupted):
        assert caught.value.exit_code == 128 + signal.SIGTERM
        assert f"after step {5 * at_pass} of 20" in str(caught.value)
    resumed, _ = run_to_end(spec)
    assert_same_run(resumed, uninterrupted)
    validated = [row[run_dir.STEP] for row in resumed.read_metrics() if run_dir.VAL_LOSS in row]
    assert validated == [5, 10, 15, 20]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_signal_interrupts_the_run_and_restores_the_handler(
    tiny_spec: Spec, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    spec = tiny_spec()
    received: list[int] = []
    before = signal.signal(number, lambda *_: received.append(number))
    try:
        with monkeypatch.context() as patched:
            patched.setattr(
                RunDirectory,
                "open_metrics",
                signal_at_row(RunDirectory.open_metrics, number, at_row=7),
            )
            with pytest.raises(Interrupted, match=f"interrupted by {number.name} after step 7"):
                run_to_end(spec)
        run = RunDirectory.of(spec)
        assert run.state() == "interrupted" and received == []
        os.kill(os.getpid(), number)
        assert received == [number]  # the previous handler is installed again
    finally:
        signal.signal(number, before)


def test_signal_stops_between_metric_rows(
    tiny_spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"trainer": {"log_every_steps": 10}}
    uninterrupted, _ = run_to_end(tiny_spec(runs_dir=str(tmp_path / "uninterrupted"), **settings))
    spec = tiny_spec(runs_dir=str(tmp_path / "cut"), **settings)
    original = TrainingStep.take

    def terminate(self: TrainingStep, step: int, pairs: torch.Tensor) -> StepOutput:
        if step == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, step, pairs)

    with monkeypatch.context() as patched:
        patched.setattr(TrainingStep, "take", terminate)
        with pytest.raises(Interrupted, match="after step 7 of 20"):
            run_to_end(spec)
    resumed, _ = run_to_end(spec)
    assert_same_run(resumed, uninterrupted)


def signal_at_row(open_metrics: Callable[[RunDirectory], Any], number: int, at_row: int) -> Any:
    """Return an `open_metrics` whose stream sends a signal when it writes row `at_row`."""

    class SignalingStream:
        def __init__(self, stream: Any):
            self.stream, self.rows = stream, 0

        def fileno(self) -> int:
            return self.stream.fileno()

        def write(self, text: str) -> None:
            self.rows += 1
            if self.rows == at_row:
                os.kill(os.getpid(), number)
            self.stream.write(text)

        def __enter__(self) -> SignalingStream:
            return self

        def __exit__(self, *_: object) -> None:
            self.stream.close()

    return lambda run: SignalingStream(open_metrics(run))


@pytest.mark.parametrize(
    ("rerun", "command"),
    [(False, "the same command"), (True, "the same command without rerun=true")],
)
def test_message_names_the_command_that_continues(
    tiny_spec: Spec, monkeypatch: pytest.MonkeyPatch, rerun: bool, command: str
) -> None:
    monkeypatch.setattr(StopSignal, "poll", lambda self: signal.SIGTERM)
    with pytest.raises(Interrupted, match=f"saved, and {command} continues from there"):
        run_to_end(tiny_spec(rerun=rerun))
