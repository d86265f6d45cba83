"""A run that was cut off anywhere and continued equals one that was not, bit for bit."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from slm.errors import Interrupted
from slm.run.spec import RunSpec
from slm.tracking import run_dir
from slm.tracking.run_dir import RunDirectory
from slm.training.callbacks.validation import Validation
from slm.training.module import LanguageModule
from tests.conftest import merged
from tests.running import assert_same_run, power_cut, run_to_end

Spec = Callable[..., RunSpec]
EVERY_STEP: dict[str, Any] = {
    "trainer": {
        "checkpoint_every_steps": 1, "micro_batch_sequences": 4, "validate_every_steps": 5
    }
}  # fmt: skip


@pytest.mark.parametrize("at", [1, 5, 10, 13])
def test_a_power_cut_leaves_no_trace(
    tiny_spec: Spec, tmp_path: Path, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = run_to_end(tiny_spec(runs_dir=str(tmp_path / "whole"), **EVERY_STEP))
    spec = tiny_spec(runs_dir=str(tmp_path / "cut"), **EVERY_STEP)
    with power_cut(monkeypatch, before_step=at):
        run_to_end(spec)
    assert RunDirectory.of(spec).state() == "failed"
    resumed, _ = run_to_end(spec)
    assert_same_run(resumed, whole)


@pytest.mark.parametrize(
    "settings",
    [
        {"trainer": {"checkpoint_every_steps": 4, "num_workers": 2}},
        {"trainer": {"checkpoint_every_steps": 3}, "model": {"dropout": 0.2}},
        # 21 epochs of a corpus of its own: cut and resumed within one.
        {"trainer": {"checkpoint_every_steps": 2}, "budget": {"tokens": 30 * 256}},
        {"trainer": {"checkpoint_every_steps": 6}, "optimizer": {"z_loss": 1e-3}},
    ],
    ids=["workers", "dropout", "epochs", "z_loss"],
)
def test_twice_cut_within_and_between_checkpoints(
    tiny_spec: Spec,
    tmp_path: Path,
    settings: dict[str, Any],
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if request.node.callspec.id == "epochs":
        (tmp_path / "text.txt").write_text("a text that is read many times over. " * 40)
        settings = merged(settings, {"data": few_words(tmp_path)})
    whole, result = run_to_end(tiny_spec(runs_dir=str(tmp_path / "whole"), **settings))
    assert request.node.callspec.id != "epochs" or result.epochs > 3
    spec = tiny_spec(runs_dir=str(tmp_path / "cut"), **settings)
    for at in (7, 15):
        with power_cut(monkeypatch, before_step=at):
            run_to_end(spec)
    resumed, _ = run_to_end(spec)
    assert_same_run(resumed, whole)


def few_words(folder: Path) -> dict[str, Any]:
    text, held_out = folder / "text.txt", folder / "held_out.txt"
    held_out.write_text("a text that is kept for the end. " * 9)
    return {
        "source": "text_files", "files": [str(text)], "val_files": [str(held_out)],
        "val_tokens": 64, "max_epochs": 100,
    }  # fmt: skip


def test_what_the_process_drew_before_does_not_matter(tiny_spec: Spec, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"model": {"dropout": 0.3}}
    first, _ = run_to_end(tiny_spec(runs_dir=str(tmp_path / "first"), **settings))
    torch.rand(17)
    second, _ = run_to_end(tiny_spec(runs_dir=str(tmp_path / "second"), **settings))
    assert_same_run(second, first)


class Cut(DataLoader[Any]):
    """A validation loader that dies, or is told to stop, in the middle of its n-th pass."""

    def __init__(self, loader: DataLoader[Any], at_pass: int, fail: Callable[[], None]):
        super().__init__(loader.dataset, batch_size=8, generator=torch.Generator())
        self.left, self.fail = at_pass, fail

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        for index, batch in enumerate(super().__iter__()):
            if index == 2:
                self.left -= 1
                if self.left == 0:
                    self.fail()
            yield batch


def die() -> None:
    raise RuntimeError("power cut")


def be_told() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("at_pass", [1, 2, 4])
@pytest.mark.parametrize("fail", [die, be_told])
def test_a_validation_cut_off_is_made_up_for(
    tiny_spec: Spec,
    tmp_path: Path,
    at_pass: int,
    fail: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """20 steps validated every 5: pass 4 is the one after the last step."""
    settings: dict[str, Any] = {"trainer": {"validate_every_steps": 5}}
    whole, _ = run_to_end(tiny_spec(runs_dir=str(tmp_path / "whole"), **settings))
    spec = tiny_spec(runs_dir=str(tmp_path / "cut"), **settings)
    original = Validation.__init__

    def cut(self: Validation, loader: DataLoader[Any], *rest: Any, **more: Any) -> None:
        original(self, Cut(loader, at_pass, fail), *rest, **more)

    with monkeypatch.context() as patched:
        patched.setattr(Validation, "__init__", cut)
        with pytest.raises(RuntimeError if fail is die else Interrupted) as caught:
            run_to_end(spec)
    if isinstance(caught.value, Interrupted):
        assert caught.value.exit_code == 128 + signal.SIGTERM
        assert f"after step {5 * at_pass} of 20" in str(caught.value)
    resumed, _ = run_to_end(spec)
    assert_same_run(resumed, whole)
    validated = [row[run_dir.STEP] for row in resumed.read_metrics() if run_dir.VAL_LOSS in row]
    assert validated == [5, 10, 15, 20]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_is_an_orderly_end(
    tiny_spec: Spec, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    spec = tiny_spec()
    heard: list[int] = []
    before = signal.signal(number, lambda *_: heard.append(number))
    try:
        with monkeypatch.context() as patched:
            patched.setattr(
                RunDirectory, "open_metrics", noisy(RunDirectory.open_metrics, number, at_row=7)
            )
            with pytest.raises(Interrupted, match=f"interrupted by {number.name} after step 7"):
                run_to_end(spec)
        run = RunDirectory.of(spec)
        assert run.state() == "interrupted" and heard == []
        os.kill(os.getpid(), number)
        assert heard == [number]  # the handler from before is back
    finally:
        signal.signal(number, before)


def test_a_signal_ends_a_block_of_steps_early(
    tiny_spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"trainer": {"log_every_steps": 10}}
    whole, _ = run_to_end(tiny_spec(runs_dir=str(tmp_path / "whole"), **settings))
    spec = tiny_spec(runs_dir=str(tmp_path / "cut"), **settings)
    original = LanguageModule.take_step

    def terminated(self: LanguageModule, step: int, batch: torch.Tensor) -> dict[str, Any]:
        if step == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, step, batch)

    with monkeypatch.context() as patched:
        patched.setattr(LanguageModule, "take_step", terminated)
        with pytest.raises(Interrupted, match="after step 7 of 20"):
            run_to_end(spec)
    resumed, _ = run_to_end(spec)
    assert_same_run(resumed, whole)


def noisy(open_metrics: Callable[[RunDirectory], Any], number: int, at_row: int) -> Any:
    """metrics.jsonl, but writing a certain row raises a signal."""

    class Noisy:
        def __init__(self, stream: Any):
            self.stream, self.rows = stream, 0

        def write(self, text: str) -> None:
            self.rows += 1
            if self.rows == at_row:
                os.kill(os.getpid(), number)
            self.stream.write(text)

        def __enter__(self) -> Noisy:
            return self

        def __exit__(self, *_: object) -> None:
            self.stream.close()

    return lambda run: Noisy(open_metrics(run))
