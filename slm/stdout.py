"""Handling of a stdout whose reader stops reading, such as `| head`."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def exit_when_stdout_closes() -> Iterator[None]:
    """Exit with code 1 and no message once the reader of stdout is gone, as rich does for its tables."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()  # here, because Python reports an error of its own flush at exit
    except BrokenPipeError:
        if not _reader_is_gone():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _reader_is_gone() -> bool:
    """Return whether stdout is a pipe without a reader; other pipes of the process may be broken too."""
    poller = select.poll()
    poller.register(sys.stdout.fileno(), 0)  # no event is requested: errors are always reported
    return bool(poller.poll(0))
