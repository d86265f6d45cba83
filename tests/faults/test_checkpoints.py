"""Damaged checkpoints, full disks, and signals before the first checkpoint."""

from __future__ import annotations

import copy
import os
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from slm.config.schema import Config
from slm.errors import RunError
from slm.files import file_hash
from slm.run.spec import RunSpec, resolve
from slm.tracking.checkpoints import checksum_path, newest_checkpoint
from slm.tracking.run_dir import RunDirectory
from slm.training import checkpoint
from slm.training.execute import train_all
from tests.conftest import PATIENCE_SECONDS, ROOT, cli_command, cli_env
from tests.in_process import run_here
from tests.running import assert_same_run, counted_steps, run_to_end

Spec = Callable[..., RunSpec]


@pytest.mark.parametrize("damage", ["truncate", "flip", "delete"])
def test_resume_uses_the_previous_checkpoint_if_the_newest_is_damaged(
    tiny_spec: Spec, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"trainer": {"checkpoint_every_steps": 8}}
    uninterrupted, _ = run_to_end(tiny_spec(runs_dir=str(tmp_path / "uninterrupted"), **settings))
    spec = tiny_spec(**settings)
    run, _ = run_to_end(spec)
    newest = run.checkpoints / "step-00000020.ckpt"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "delete":
        newest.unlink()
    else:
        newest.write_bytes(content if damage == "flip" else content[: len(content) // 2])
    with caplog.at_level("INFO"):
        run_to_end(spec)
    assert "continuing after step 16 of 20" in caplog.text
    assert ("is damaged" in caplog.text) == (damage != "delete")
    assert_same_run(run, uninterrupted)


def test_all_checkpoints_damaged_requires_rerun(tiny_spec: Spec) -> None:
    spec = tiny_spec(trainer={"checkpoint_every_steps": 10})
    run, result = run_to_end(spec)
    for path in run.checkpoints.glob("*.ckpt"):
        path.write_bytes(b"")
    with pytest.raises(RunError, match="every checkpoint is damaged; start over with rerun=true"):
        run_to_end(spec)
    from slm.training.runner import train

    with run.claim(spec, rerun=True):
        again = train(spec, run)
    assert again.val_loss_nats_per_token == result.val_loss_nats_per_token


def test_only_two_checkpoints_are_kept(tiny_spec: Spec) -> None:
    run, _ = run_to_end(tiny_spec(trainer={"checkpoint_every_steps": 5}))
    assert [p.name for p in sorted(run.checkpoints.glob("*.ckpt"))] == [
        "step-00000015.ckpt",
        "step-00000020.ckpt",
    ]
    for path in run.checkpoints.glob("*.ckpt"):
        torch.load(path, weights_only=True)


SMALL = (
    "experiment=smoke",
    "tracking=disabled",
    "trainer.checkpoint_every_steps=10",
    "trainer.validate_every_steps=null",
)


@pytest.mark.slow
def test_failed_checkpoint_write_keeps_the_previous_checkpoint(
    tmp_path: Path, cache_dir: Path
) -> None:
    """Simulate a full disk: limit the size of every file to 60% of a checkpoint."""
    command = cli_command("train.py", tmp_path, cache_dir, *SMALL)
    done = run_here(command)
    assert done.returncode == 0, done.stderr
    (status,) = (tmp_path / "runs").glob("*/*/status.json")
    run = RunDirectory(status.parent)
    newest = newest_checkpoint(run.checkpoints)
    assert newest is not None and newest[1] == 40
    # Remove the last checkpoint and the result, so that the run resumes from step 30.
    newest[0].unlink()
    status.write_text('{"state": "interrupted"}')
    (run.path / "result.json").unlink()
    limit = int(0.6 * (run.checkpoints / "step-00000030.ckpt").stat().st_size)

    def fill_disk() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    full = subprocess.run(
        command,
        cwd=ROOT,
        env=cli_env(),
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=fill_disk,
    )
    assert full.returncode == 1
    message = full.stderr.splitlines()[-1]
    assert "step-00000040.ckpt: could not be saved (File too large" in message
    assert "step-00000030.ckpt is intact" in message and "Traceback" not in full.stderr
    assert run.state() == "failed"
    assert newest_checkpoint(run.checkpoints) == (run.checkpoints / "step-00000030.ckpt", 30)
    assert not list(run.checkpoints.glob(".*"))
    again = run_here(command)
    assert again.returncode == 0 and "continuing after step 30 of 40" in again.stderr


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a file system requires root")
def test_full_file_system_fails_without_traceback(tmp_path: Path, cache_dir: Path) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(runs)], check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a file system is not permitted")
    try:
        command = cli_command("train.py", tmp_path, cache_dir, *SMALL)
        done = run_here(command)
        assert done.returncode == 1
        assert "No space left on device" in done.stderr
    finally:
        subprocess.run(["umount", str(runs)], check=True)


def test_signal_during_imports_marks_the_run_interrupted(tmp_path: Path, cache_dir: Path) -> None:
    """Before training starts there is nothing to save, and a signal terminates the process."""
    command = cli_command("train.py", tmp_path, cache_dir, *SMALL)
    process = subprocess.Popen(
        command, cwd=ROOT, env=cli_env(), stderr=subprocess.PIPE, text=True, bufsize=1
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "steps" in line:
            break
    process.send_signal(signal.SIGUSR2)
    process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode in {-signal.SIGUSR2, 128 + signal.SIGUSR2}
    (status,) = (tmp_path / "runs").glob("*/*/status.json")
    assert RunDirectory(status.parent).state() == "interrupted"


def test_checkpoints_written_in_the_background_equal_those_of_the_loop(
    tiny_spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU a thread writes the state that was copied to the host; here the copies are made explicitly."""
    settings = {"trainer": {"checkpoint_every_steps": 3, "validate_every_steps": 5}}
    plain, _ = run_to_end(tiny_spec(runs_dir=str(tmp_path / "plain"), **settings))
    written_by = write_in_background(monkeypatch)
    run, _ = run_to_end(tiny_spec(**settings))
    assert written_by and threading.main_thread().name not in written_by
    assert_same_run(run, plain)


def test_error_of_a_background_write_stops_the_run(
    tiny_spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tiny_spec(trainer={"checkpoint_every_steps": 3})
    write_in_background(monkeypatch)
    folder = RunDirectory.of(spec).checkpoints
    folder.parent.mkdir(parents=True)
    folder.write_text("a file in the place of the folder")
    with counted_steps(monkeypatch) as steps, pytest.raises(OSError):
        run_to_end(spec)
    assert steps == list(range(6))  # raised by the next save
    assert RunDirectory.of(spec).state() == "failed"


def write_in_background(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Make checkpoints copy their tensors and write in a thread, as on a GPU; return the thread names."""
    names: list[str] = []
    original_write, original_init = checkpoint._write, checkpoint.CheckpointWriter.__init__
    original_state = checkpoint.training_state

    def write(path: Path, content: Any) -> None:
        names.append(threading.current_thread().name)
        original_write(path, content)

    def init(self: Any, folder: Path, workers: Any, thread: Any, **named: Any) -> None:
        original_init(self, folder, workers, ThreadPoolExecutor(1), **named)

    monkeypatch.setattr(checkpoint, "_write", write)
    monkeypatch.setattr(checkpoint.CheckpointWriter, "__init__", init)
    monkeypatch.setattr(
        checkpoint, "training_state", lambda *state: copy.deepcopy(original_state(*state))
    )
    return names


@pytest.mark.parametrize("damage", ["missing tensor", "other shape", "no progress", "empty"])
def test_checkpoint_that_does_not_fit_the_run_is_reported(tiny_spec: Spec, damage: str) -> None:
    """The checksum is right, so that only the content can tell."""
    spec = tiny_spec()
    run, _ = run_to_end(spec)
    found = newest_checkpoint(run.checkpoints)
    assert found is not None
    content = torch.load(found[0], weights_only=True)
    if damage == "missing tensor":
        del content["state_dict"]["model.norm.weight"]
    elif damage == "other shape":
        content["state_dict"]["model.norm.weight"] = torch.ones(3)
    elif damage == "no progress":
        del content["progress"]
    torch.save(content, found[0])
    if damage == "empty":
        found[0].write_bytes(b"")
    checksum_path(found[0]).write_text(file_hash(found[0]))
    with pytest.raises(RunError, match=r"not a checkpoint of this run .*rerun=true"):
        run_to_end(spec)


def test_finished_run_without_its_result_is_completed(tiny_config: Callable[..., Config]) -> None:
    config = tiny_config()
    train_all(config)
    run = RunDirectory.of(resolve(config))
    before = run.result()
    (run.path / "result.json").unlink()
    train_all(config)
    after = run.result()
    assert before is not None and after is not None
    assert after.val_loss_nats_per_token == before.val_loss_nats_per_token


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_loader_processes_neither_stop_nor_outlive_the_run(
    tmp_path: Path, cache_dir: Path, number: signal.Signals
) -> None:
    """torchrun and schedulers signal the whole process group; a kill must not leave the run in use."""
    arguments = (*SMALL, "trainer.num_workers=2", "budget.tokens=2m", "trainer.log_every_steps=1")
    command = cli_command("train.py", tmp_path, cache_dir, *arguments)
    process = subprocess.Popen(
        command, cwd=ROOT, env=cli_env(), stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not list(tmp_path.glob("runs/*/*/checkpoints/*.ckpt")) and time.monotonic() < deadline:
        time.sleep(0.05)
    if number == signal.SIGTERM:
        os.killpg(process.pid, number)
    else:
        process.kill()
    _, logged = process.communicate(timeout=PATIENCE_SECONDS)
    (status,) = (tmp_path / "runs").glob("*/*/status.json")
    run = RunDirectory(status.parent)
    assert run.state() == "interrupted"  # and not in use
    if number == signal.SIGTERM:
        assert process.returncode == 128 + number
        newest = newest_checkpoint(run.checkpoints)
        assert newest is not None and f"interrupted by SIGTERM after step {newest[1]} of" in logged
