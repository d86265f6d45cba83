"""Exclusive use of a run by one process, on one machine or on several that share a file system. Torch-free.

The owner locks a file that contains its host and pid. On the owner's machine the lock itself shows whether
the owner is alive: the kernel releases it when the process dies. Other machines use a heartbeat instead,
because some shared file systems do not support locks across machines: the owner touches the file, and an owner whose file
was not touched for `STALE_SECONDS` counts as dead. Clocks of machines may therefore differ by a minute. An
owner that was suspended for that long and finds its file taken over exits at once, without writing.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NoReturn

from slm.errors import InUse
from slm.files import try_lock

log = logging.getLogger(__name__)
HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 120.0
# Errors of os.link on file systems without hard links, such as exFAT and some network and FUSE file systems.
NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS}
ATTEMPTS = 5  # a process that only reads the owner holds a shared lock for an instant


@dataclass(frozen=True)
class Owner:
    """Process that holds a lease; an unreadable lock file counts as held by an unknown local process."""

    host: str
    pid: int | None
    age_seconds: float
    """Time since the last heartbeat."""

    def __str__(self) -> str:
        process = "another process" if self.pid is None else f"process {self.pid}"
        return f"{process} on {self.host} (heartbeat {self.age_seconds:.0f} s ago)"


class Lease:
    """Exclusive right to work on a run or a trunk, represented by a lock file."""

    def __init__(self, path: Path, host: str | None = None):
        """`host` replaces the name of this machine (for tests)."""
        self.path = path
        self.host = host or socket.gethostname()

    def owner(self) -> Owner | None:
        """Return the live owner, or None if there is no owner or it is dead."""
        try:
            lock = try_lock(self.path, shared=True)
        except FileNotFoundError:
            return None
        owner = self._read_owner()
        if lock is not None:
            lock.close()
        is_held = owner is not None and self._is_alive(owner, is_locked=lock is None)
        return owner if is_held else None

    def take(self, on_heartbeat: Callable[[], None] = lambda: None) -> HeldLease:
        """Acquire the lease; a thread calls `on_heartbeat` at every heartbeat.

        If the owner is on another machine, this blocks until its next heartbeat or until it counts as dead. The folder of
        the lock file is created if it does not exist.

        Raises:
            InUse: if a live process holds the lease.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            for _ in range(ATTEMPTS):
                stream = self._create() or self._take_over()
                if stream is not None:
                    return HeldLease(self.path, stream, on_heartbeat)
                time.sleep(0.1)
            owner = self.owner()
            if owner is None:
                self._remove_stale_lock()
            elif owner.host == self.host or self._has_heartbeat():
                raise InUse(
                    f"{self._resource} is in use by {owner}; wait until it finishes, or stop it"
                )

    def _has_heartbeat(self) -> bool:
        """Return True at the next heartbeat, or False once STALE_SECONDS pass without one.

        A requeued job may start on this machine before its killed process counts as dead.
        """
        last = self._read_owner()
        while (owner := self.owner()) is not None:
            if last is None or owner.age_seconds < last.age_seconds:
                return True
            last = owner
            time.sleep(1.0)
        return False

    @property
    def _resource(self) -> Path:
        """Path to name in messages: the run directory, or the lock file's path without its suffix."""
        return self.path.with_suffix("") if self.path.suffix else self.path.parent

    def _create(self) -> IO[str] | None:
        """Create the lock file, already locked and with its owner written; None if it exists.

        On a file system without hard links, create an empty file and return None.
        """
        new = self.path.with_name(f".{self.path.name}.{self.host}.{os.getpid()}")
        new.unlink(missing_ok=True)
        stream = try_lock(new)
        assert stream is not None
        try:
            self._write_owner(stream)
            os.link(new, self.path)
        except FileExistsError:
            stream.close()
            return None
        except OSError as error:
            stream.close()
            if error.errno not in NO_HARD_LINKS:
                raise
            # An empty file, which `_take_over` locks: until then, another machine may take it over too, and the
            # first heartbeat then ends the one that wrote first.
            with suppress(FileExistsError):
                self.path.open("x").close()
            return None
        finally:
            new.unlink()
        return stream

    def _take_over(self) -> IO[str] | None:
        """Lock the file of a dead owner and write this process into it; None if the owner is alive."""
        stream = try_lock(self.path)
        if stream is None:
            return None
        owner = self._read_owner()
        if owner is not None and not self._is_alive(owner, is_locked=False):
            self._write_owner(stream)
            if is_still_at(stream, self.path):
                return stream
        stream.close()
        return None

    def _remove_stale_lock(self) -> None:
        """Delete the file of a dead machine if the file server still keeps its lock."""
        stream = try_lock(self.path)
        owner = self._read_owner()
        if stream is not None:
            stream.close()
        elif owner is not None and not self._is_alive(owner, is_locked=True):
            self.path.unlink(missing_ok=True)

    def _is_alive(self, owner: Owner, *, is_locked: bool) -> bool:
        return is_locked if owner.host == self.host else owner.age_seconds < STALE_SECONDS

    def _write_owner(self, stream: IO[str]) -> None:
        stream.seek(0)
        stream.truncate()
        stream.write(json.dumps({"host": self.host, "pid": os.getpid()}))
        stream.flush()

    def _read_owner(self) -> Owner | None:
        """Return the owner that the file names, alive or dead; None if there is no file."""
        try:
            age = time.time() - self.path.stat().st_mtime
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        try:
            saved = json.loads(text)
            return Owner(saved["host"], saved["pid"], age)
        except (json.JSONDecodeError, KeyError, TypeError):
            return Owner(self.host, None, age)


class HeldLease:
    """Lease held by this process, with the thread that sends its heartbeat; call `release` at the end."""

    def __init__(self, path: Path, stream: IO[str], on_heartbeat: Callable[[], None]):
        self._path = path
        self._stream = stream
        self._on_heartbeat = on_heartbeat
        self._content = path.read_text(encoding="utf-8")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._send_heartbeats, daemon=True)
        self._thread.start()

    def stop_heartbeat(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def release(self) -> None:
        """Delete the lock file, unless another process has taken it over; a second call does nothing."""
        if self._stream.closed:
            return
        self.stop_heartbeat()
        with suppress(OSError):
            if self.is_held:
                self._path.unlink()
        self._stream.close()

    @property
    def is_held(self) -> bool:
        """Whether the lock file is still the one that this process wrote."""
        if not is_still_at(self._stream, self._path):
            return False
        return self._path.read_text(encoding="utf-8") == self._content

    def _send_heartbeats(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            with suppress(OSError):  # a full or missing disk is reported by the training thread
                if not self.is_held:
                    self._exit()
                os.utime(self._path)
                self._on_heartbeat()

    def _exit(self) -> NoReturn:
        log.error(
            "%s: another process took over the run while this one was suspended; exiting",
            self._path.parent,
        )
        os._exit(InUse.exit_code)


def is_still_at(stream: IO[str], path: Path) -> bool:
    """Whether an open file is still the one at `path`; its folder may have been moved meanwhile."""
    try:
        return os.fstat(stream.fileno()).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False
