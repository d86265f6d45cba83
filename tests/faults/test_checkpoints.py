"""Checkpoints that are damaged, torn, or do not fit on the disk."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from slm.errors import RunError
from slm.run.spec import RunSpec
from slm.tracking.checkpoints import newest_checkpoint
from slm.tracking.run_dir import RunDirectory
from tests.conftest import ROOT, cli_command, cli_env
from tests.running import assert_same_run, run_to_end

Spec = Callable[..., RunSpec]


@pytest.mark.parametrize("damage", ["truncate", "flip", "delete"])
def test_a_damaged_checkpoint_yields_to_the_one_before(
    tiny_spec: Spec, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"trainer": {"checkpoint_every_steps": 8}}
    whole, _ = run_to_end(tiny_spec(runs_dir=str(tmp_path / "whole"), **settings))
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
    assert "going on after step 16 of 20" in caplog.text
    assert ("is damaged" in caplog.text) == (damage != "delete")
    assert_same_run(run, whole)


def test_if_all_are_damaged_only_starting_over_helps(tiny_spec: Spec) -> None:
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
        "step-00000015.ckpt", "step-00000020.ckpt"
    ]  # fmt: skip
    for path in run.checkpoints.glob("*.ckpt"):
        torch.load(path, weights_only=True)


SMALL = (
    "experiment=smoke", "tracking=disabled", "trainer.checkpoint_every_steps=10",
    "trainer.validate_every_steps=null",
)  # fmt: skip


@pytest.mark.slow
def test_a_full_disk_keeps_what_is_there(tmp_path: Path, cache_dir: Path) -> None:
    """No file may grow beyond 60% of a checkpoint from some step on, as on a disk that is full."""
    command = cli_command("train.py", tmp_path, cache_dir, *SMALL)
    done = subprocess.run(command, cwd=ROOT, env=cli_env(), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    (status,) = (tmp_path / "runs").glob("*/*/status.json")
    run = RunDirectory(status.parent)
    newest = newest_checkpoint(run.checkpoints)
    assert newest is not None and newest[1] == 40
    # The last of the two is gone, as if it had never been reached.
    newest[0].unlink()
    status.write_text('{"state": "interrupted"}')
    (run.path / "result.json").unlink()
    limit = int(0.6 * (run.checkpoints / "step-00000030.ckpt").stat().st_size)

    def fill_disk() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    full = subprocess.run(
        command, cwd=ROOT, env=cli_env(), capture_output=True, text=True, check=False,
        preexec_fn=fill_disk,
    )  # fmt: skip
    assert full.returncode == 1
    said = full.stderr.splitlines()[-1]
    assert "step-00000040.ckpt: could not be saved (File too large" in said
    assert "step-00000030.ckpt is intact" in said and "Traceback" not in full.stderr
    assert run.state() == "failed"
    assert newest_checkpoint(run.checkpoints) == (run.checkpoints / "step-00000030.ckpt", 30)
    assert not list(run.checkpoints.glob(".*"))
    again = subprocess.run(
        command, cwd=ROOT, env=cli_env(), capture_output=True, text=True, check=False
    )
    assert again.returncode == 0 and "going on after step 30 of 40" in again.stderr


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_disk_that_is_really_full(tmp_path: Path, cache_dir: Path) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(runs)], check=False
    )
    if mounted.returncode:
        pytest.skip("no file system may be mounted here")
    try:
        command = cli_command("train.py", tmp_path, cache_dir, *SMALL)
        done = subprocess.run(
            command, cwd=ROOT, env=cli_env(), capture_output=True, text=True, check=False
        )
        assert done.returncode == 1 and "Traceback" not in done.stderr
        assert "No space left on device" in done.stderr
    finally:
        subprocess.run(["umount", str(runs)], check=True)


def test_a_signal_while_torch_is_imported_loses_nothing(tmp_path: Path, cache_dir: Path) -> None:
    """Before there is anything to save a signal simply ends the process; the same command goes on."""
    command = cli_command("train.py", tmp_path, cache_dir, *SMALL)
    process = subprocess.Popen(
        command, cwd=ROOT, env=cli_env(), stderr=subprocess.PIPE, text=True, bufsize=1
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "steps" in line:
            break
    process.send_signal(signal.SIGUSR2)
    process.communicate(timeout=60)
    assert process.returncode in {-signal.SIGUSR2, 128 + signal.SIGUSR2}
    (status,) = (tmp_path / "runs").glob("*/*/status.json")
    assert RunDirectory(status.parent).state() == "interrupted"
