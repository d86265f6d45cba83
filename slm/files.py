"""Atomic writes, checksums, and locks between processes."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from slm.errors import DataError, SlmError

CHUNK_BYTES = 1 << 20
LFS_POINTER = b"version https://git-lfs"


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; on success rename it to `path` and sync to disk.

    Raises:
        OSError: with `path` as its filename, also where the original error has none (a full disk).
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def read_object(
    path: Path, fix: str, keys: Sequence[str] = (), error: type[SlmError] = DataError
) -> dict[str, Any]:
    """Read a file with a JSON object that has the given keys.

    Raises:
        SlmError: of the type `error`, with the file, what is wrong with it and the fix.
    """
    reason = f"no {' and '.join(keys)}"
    try:
        content = read_json(path)
        if not isinstance(content, dict):
            reason = "no JSON object"
        elif all(key in content for key in keys):
            return content
    except ValueError as invalid:
        reason = f"not valid JSON: {invalid}" if path.stat().st_size else "the file is empty"
    raise error(f"{path}: not readable ({reason}); {fix}")


def check_not_lfs_pointer(path: Path) -> None:
    """Raise DataError if a file is the pointer that Git leaves instead of a large file."""
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) != LFS_POINTER:
            return
    raise DataError(
        f"{path}: a Git LFS pointer instead of the file; run `git lfs pull` in {path.parent}"
    )


def canonical_hash(value: Any) -> str:
    """Return the SHA-256 of a value's canonical JSON, in hexadecimal digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def size_and_mtime(path: Path) -> list[int]:
    """Return a file's size in bytes and its time of modification in ns.

    While both are unchanged, the content counts as unchanged.
    """
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def try_lock(path: Path, *, shared: bool = False) -> IO[str] | None:
    """Lock a file and return it open; return None if another process holds the lock.

    The lock is released when the file is closed or the process dies. A `shared` lock excludes only exclusive ones; it
    needs no permission to write, and does not create the file.

    Raises:
        FileNotFoundError: if there is no file to share.
    """
    stream = path.open("r" if shared else "a+", encoding="utf-8")
    try:
        fcntl.flock(stream, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        stream.close()
        return None
    return stream


@contextmanager
def blocking_lock(path: Path, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold an exclusive lock; if another process holds it, call `on_wait` once and block."""
    stream = try_lock(path)
    if stream is None:
        on_wait()
        stream = path.open("a+", encoding="utf-8")
        fcntl.flock(stream, fcntl.LOCK_EX)
    with stream:
        yield
