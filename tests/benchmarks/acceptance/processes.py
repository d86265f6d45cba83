"""Descendants of a process and their end, on Linux."""

from __future__ import annotations

import os
import signal
import time
from collections import defaultdict
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

GRACE_SECONDS = 5.0
POLL_SECONDS = 0.05


def descendants(pid: int) -> set[int]:
    """Return the ids of all live children of a process, their children, and so on.

    torchrun starts its processes in sessions of their own, so a process group does not hold them all.
    """
    children: defaultdict[int, list[int]] = defaultdict(list)
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                children[_parent(folder)].append(int(folder.name))
    found: set[int] = set()
    waiting = [pid]
    while waiting:
        new = [child for child in children[waiting.pop()] if child not in found]
        found.update(new)
        waiting += new
    return found


def _parent(folder: Path) -> int:
    # The name of the command may contain spaces and parentheses: state and parent follow the last one.
    return int((folder / "stat").read_text().rpartition(")")[2].split()[1])


def alive(pids: Collection[int]) -> set[int]:
    """Return those that still run; a zombie has ended."""
    running = set()
    for pid in pids:
        with suppress(OSError):
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            if state not in "ZX":
                running.add(pid)
    return running


def end_tree(pid: int) -> None:
    """Stop a process and its descendants: SIGTERM, and SIGKILL for those that remain."""
    members = {pid, *descendants(pid)}
    for number in (signal.SIGTERM, signal.SIGKILL):
        members |= descendants(pid)
        _signal(alive(members), number)
        deadline = time.monotonic() + GRACE_SECONDS
        while alive(members) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)


def _signal(pids: Collection[int], number: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
