"""Who may work on a run: one process, here or on another machine, and the next one when it died."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from slm.errors import InUse
from slm.tracking import lease
from slm.tracking.lease import Lease
from tests.conftest import ROOT

HOLD = """
import sys, time
from pathlib import Path
from slm.tracking import lease
lease.HEARTBEAT_SECONDS = float(sys.argv[3])
held = lease.Lease(Path(sys.argv[1]), sys.argv[2]).take()
print('held', flush=True)
time.sleep(60)
"""


def holder(path: Path, host: str, beat_seconds: float = 0.05) -> subprocess.Popen[str]:
    """A process that holds the lease as if it ran on `host`."""
    command = [sys.executable, "-c", HOLD, str(path), host, str(beat_seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_one_at_a_time_and_free_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    held = Lease(path).take()
    owner = Lease(path).owner()
    assert owner is not None and owner.pid == os.getpid()
    with pytest.raises(InUse, match=f"in use by process {os.getpid()} on "):
        Lease(path).take()
    held.release()
    assert Lease(path).owner() is None and not path.exists()
    Lease(path).take().release()


def test_on_one_machine_the_lock_dies_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    process = holder(path, "here", beat_seconds=60)
    age(path, 10 * lease.STALE_SECONDS)  # stopped or suspended, but alive
    assert Lease(path, "here").owner() is not None
    process.kill()
    process.wait()
    assert Lease(path, "here").owner() is None
    Lease(path, "here").take().release()


def test_another_machine_lives_by_its_heartbeat(tmp_path: Path) -> None:
    """Its file without its lock: what a file system shows that does not pass locks on."""
    path = tmp_path / "lock"
    path.write_text(json.dumps({"host": "there", "pid": 1}))
    assert Lease(path, "here").owner() is not None
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(0.2):
            os.utime(path)

    heart = threading.Thread(target=beat)
    heart.start()
    with pytest.raises(InUse, match="in use by process 1 on there"):
        Lease(path, "here").take()
    stop.set()
    heart.join()
    age(path, lease.STALE_SECONDS - 2)  # killed; its job comes to this machine at once
    assert Lease(path, "here").owner() is not None
    held = Lease(path, "here").take()
    assert held.is_ours
    held.release()


def test_who_was_taken_over_ends_without_writing(tmp_path: Path) -> None:
    """A machine that stood still: its lock is still there, its heart has not beaten for long."""
    path = tmp_path / "lock"
    process = holder(path, "there")
    process.send_signal(signal.SIGSTOP)
    time.sleep(0.2)
    age(path, lease.STALE_SECONDS + 1)
    held = Lease(path, "here").take()
    process.send_signal(signal.SIGCONT)
    assert process.wait(timeout=20) == InUse.exit_code
    assert held.is_ours
    held.release()


def test_a_race_has_one_winner(tmp_path: Path) -> None:
    """Eight processes want the file of one that died; each that gets it says so and keeps it."""
    path = tmp_path / "lock"
    code = (
        "import sys, time; from pathlib import Path; from slm.tracking.lease import Lease\n"
        "time.sleep(max(0, float(sys.argv[2]) - time.time()))\n"
        "Lease(Path(sys.argv[1])).take(); print('mine', flush=True); time.sleep(2)"
    )
    for leftover in (None, "", json.dumps({"host": "elsewhere", "pid": 7})):
        path.unlink(missing_ok=True)
        if leftover is not None:
            path.write_text(leftover)
            age(path, lease.STALE_SECONDS + 1)
        command = [sys.executable, "-c", code, str(path), str(time.time() + 1.0)]
        racers = [
            subprocess.Popen(
                command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            for _ in range(8)
        ]
        outputs = [racer.communicate(timeout=60) for racer in racers]
        assert [said for said, _ in outputs].count("mine\n") == 1
        assert sum("InUse" in error for _, error in outputs) == 7
