"""Sole use of a run, between the processes of one machine and of machines that share its files. Torch-free.

A lock file names its owner and is locked by it. On one machine the lock itself tells whether the owner
lives: it dies with its process. Of another machine's owner the heartbeat tells, since not every shared
file system passes locks on: the owner touches the file, and one left untouched for `STALE_SECONDS` is
dead, so clocks of machines may differ by a minute. An owner who stood still for that long (a suspended
machine) and finds its file in other hands ends at once, without writing.
"""

from __future__ import annotations

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
ATTEMPTS = 5  # someone who only asks for the owner holds the lock for an instant


@dataclass(frozen=True)
class Owner:
    """Who holds a lease, as its file says; of a file without words, somebody on this machine."""

    host: str
    pid: int | None
    age_seconds: float

    def __str__(self) -> str:
        process = "another process" if self.pid is None else f"process {self.pid}"
        return f"{process} on {self.host} (heartbeat {self.age_seconds:.0f} s ago)"


class Lease:
    """The right to work on what a lock file stands for."""

    def __init__(self, path: Path, host: str | None = None):
        """`host`: the name of this machine, if not its own."""
        self.path = path
        self.host = host or socket.gethostname()

    def owner(self) -> Owner | None:
        """Who works on it now; None if nobody does, or only one who died."""
        if not self.path.exists():
            return None
        lock = try_lock(self.path, shared=True)
        written = self._written()
        if lock is not None:
            lock.close()
        is_held = written is not None and self._lives(written, is_locked=lock is None)
        return written if is_held else None

    def take(self, on_beat: Callable[[], None] = lambda: None) -> HeldLease:
        """Hold it; `on_beat` is called from a thread at every heartbeat.

        If another machine holds it, that takes until its next heartbeat.

        Raises:
            InUse: if somebody alive holds it.
        """
        while True:
            for _ in range(ATTEMPTS):
                stream = self._create() or self._inherit()
                if stream is not None:
                    return HeldLease(self.path, stream, on_beat)
                time.sleep(0.1)
            owner = self.owner()
            if owner is None:
                self._remove_left_lock()
            elif owner.host == self.host or self._beats():
                raise InUse(f"{self._what} is in use by {owner}")

    def _beats(self) -> bool:
        """Whether another machine's owner touches the file before it counts as dead.

        A job that a scheduler has moved to this machine may come before its old owner's heart is missed.
        """
        seen = self._written()
        while (owner := self.owner()) is not None:
            if seen is None or owner.age_seconds < seen.age_seconds:
                return True
            seen = owner
            time.sleep(1.0)
        return False

    @property
    def _what(self) -> Path:
        """What is locked: the folder of a run, or what the file is named after."""
        return self.path.with_suffix("") if self.path.suffix else self.path.parent

    def _create(self) -> IO[str] | None:
        """The lock file where there is none, locked and signed before anyone can see it."""
        new = self.path.with_name(f".{self.path.name}.{self.host}.{os.getpid()}")
        new.unlink(missing_ok=True)
        stream = try_lock(new)
        assert stream is not None
        try:
            self._sign(stream)
            os.link(new, self.path)
        except FileExistsError:
            stream.close()
            return None
        finally:
            new.unlink()
        return stream

    def _inherit(self) -> IO[str] | None:
        """The lock file of an owner who died."""
        stream = try_lock(self.path)
        if stream is None:
            return None
        written = self._written()
        if written is not None and not self._lives(written, is_locked=False):
            self._sign(stream)
            if is_still_at(stream, self.path):
                return stream
        stream.close()
        return None

    def _remove_left_lock(self) -> None:
        """A dead machine's lock that a file server still keeps, since nobody can have it otherwise."""
        stream = try_lock(self.path)
        written = self._written()
        if stream is not None:
            stream.close()
        elif written is not None and not self._lives(written, is_locked=True):
            self.path.unlink(missing_ok=True)

    def _lives(self, written: Owner, *, is_locked: bool) -> bool:
        return is_locked if written.host == self.host else written.age_seconds < STALE_SECONDS

    def _sign(self, stream: IO[str]) -> None:
        stream.seek(0)
        stream.truncate()
        stream.write(json.dumps({"host": self.host, "pid": os.getpid()}))
        stream.flush()

    def _written(self) -> Owner | None:
        try:
            age = time.time() - self.path.stat().st_mtime
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        try:
            signed = json.loads(text)
            return Owner(signed["host"], signed["pid"], age)
        except (json.JSONDecodeError, KeyError, TypeError):
            return Owner(self.host, None, age)


class HeldLease:
    """A lease in our hands, with its heart; `release` it."""

    def __init__(self, path: Path, stream: IO[str], on_beat: Callable[[], None]):
        self._path = path
        self._stream = stream
        self._on_beat = on_beat
        self._signature = path.read_text(encoding="utf-8")
        self._stop = threading.Event()
        self._heart = threading.Thread(target=self._beat, daemon=True)
        self._heart.start()

    def stop_beating(self) -> None:
        self._stop.set()
        if self._heart.is_alive():
            self._heart.join()

    def release(self) -> None:
        self.stop_beating()
        with suppress(OSError):
            if self.is_ours:
                self._path.unlink()
        self._stream.close()

    @property
    def is_ours(self) -> bool:
        if not is_still_at(self._stream, self._path):
            return False
        return self._path.read_text(encoding="utf-8") == self._signature

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            with suppress(OSError):  # a full or absent disk is met by the training thread
                if not self.is_ours:
                    self._give_up()
                os.utime(self._path)
                self._on_beat()

    def _give_up(self) -> NoReturn:
        log.error("%s was taken over while this process stood still; it ends", self._path.parent)
        os._exit(InUse.exit_code)


def is_still_at(stream: IO[str], path: Path) -> bool:
    """Whether an open file is the one at `path`: its folder may have been set aside meanwhile."""
    try:
        return os.fstat(stream.fileno()).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False
