"""Leases: one process per run on one or several machines, and takeover after a process dies."""

from __future__ import annotations

import errno
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
from slm.files import try_lock
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


def start_holder(path: Path, host: str, heartbeat_seconds: float = 0.05) -> subprocess.Popen[str]:
    """Start a process that holds the lease as if it ran on `host`."""
    command = [sys.executable, "-c", HOLD, str(path), host, str(heartbeat_seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def set_age(path: Path, seconds: float) -> None:
    modified = time.time() - seconds
    os.utime(path, (modified, modified))


def test_lease_is_exclusive_until_released(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    held = Lease(path).take()
    owner = Lease(path).owner()
    assert owner is not None and owner.pid == os.getpid()
    with pytest.raises(InUse, match=f"in use by process {os.getpid()} on "):
        Lease(path).take()
    held.release()
    assert Lease(path).owner() is None and not path.exists()
    Lease(path).take().release()


def test_reading_the_owner_needs_no_permission_to_write(tmp_path: Path) -> None:
    """A colleague's folder may be read-only; and its owner may delete the file at any time."""
    path = tmp_path / "folder" / "lock"
    assert Lease(path).owner() is None and not list(tmp_path.iterdir())
    Lease(path).take().release()  # creates the folder
    with pytest.raises(FileNotFoundError):
        try_lock(path, shared=True)
    path.write_text("")
    stream = try_lock(path, shared=True)
    assert stream is not None and not stream.writable()
    stream.close()


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS])
def test_lease_without_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    fail_to_link(monkeypatch, code)
    test_lease_is_exclusive_until_released(tmp_path)
    assert not list(tmp_path.iterdir())


def test_other_errors_of_the_lock_file_are_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_to_link(monkeypatch, errno.ENOSPC)
    with pytest.raises(OSError, match="No space left"):
        Lease(tmp_path / "lock").take()
    assert not list(tmp_path.iterdir())


def fail_to_link(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def link(source: Path, target: Path) -> None:
        raise OSError(code, os.strerror(code), str(source), None, str(target))

    monkeypatch.setattr(os, "link", link)


def test_local_lease_is_free_once_its_process_is_dead(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    process = start_holder(path, "here", heartbeat_seconds=60)
    set_age(path, 10 * lease.STALE_SECONDS)  # suspended, but alive
    assert Lease(path, "here").owner() is not None
    process.kill()
    process.wait()
    assert Lease(path, "here").owner() is None
    Lease(path, "here").take().release()


def test_remote_lease_is_held_while_it_has_a_heartbeat(tmp_path: Path) -> None:
    """The file is not locked, as on a shared file system that does not pass locks on."""
    path = tmp_path / "lock"
    path.write_text(json.dumps({"host": "there", "pid": 1}))
    assert Lease(path, "here").owner() is not None
    stop = threading.Event()

    def send_heartbeats() -> None:
        while not stop.wait(0.2):
            os.utime(path)

    thread = threading.Thread(target=send_heartbeats)
    thread.start()
    with pytest.raises(InUse, match="in use by process 1 on there"):
        Lease(path, "here").take()
    stop.set()
    thread.join()
    set_age(path, lease.STALE_SECONDS - 2)  # killed, and its job is restarted here at once
    assert Lease(path, "here").owner() is not None
    held = Lease(path, "here").take()
    assert held.is_held
    held.release()


def test_suspended_owner_exits_without_writing_after_takeover(tmp_path: Path) -> None:
    """The suspended machine still has its lock, but its heartbeat is stale."""
    path = tmp_path / "lock"
    process = start_holder(path, "there")
    process.send_signal(signal.SIGSTOP)
    time.sleep(0.2)
    set_age(path, lease.STALE_SECONDS + 1)
    held = Lease(path, "here").take()
    process.send_signal(signal.SIGCONT)
    assert process.wait(timeout=20) == InUse.exit_code
    assert held.is_held
    held.release()


def test_concurrent_takeover_has_one_winner(tmp_path: Path) -> None:
    """Eight processes try to take the lease of a dead one at once; the winner prints "taken" and holds it."""
    path = tmp_path / "lock"
    code = (
        "import sys, time; from pathlib import Path; from slm.tracking.lease import Lease\n"
        "time.sleep(max(0, float(sys.argv[2]) - time.time()))\n"
        "Lease(Path(sys.argv[1])).take(); print('taken', flush=True); time.sleep(2)"
    )
    for content in (None, "", json.dumps({"host": "elsewhere", "pid": 7})):
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_text(content)
            set_age(path, lease.STALE_SECONDS + 1)
        command = [sys.executable, "-c", code, str(path), str(time.time() + 1.0)]
        processes = [
            subprocess.Popen(
                command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            for _ in range(8)
        ]
        outputs = [process.communicate(timeout=60) for process in processes]
        assert [out for out, _ in outputs].count("taken\n") == 1
        assert sum("InUse" in error for _, error in outputs) == 7
