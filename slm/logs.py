"""The logger of slm: messages go to stderr and, during a run, to its log.txt."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger("slm")


class StderrHandler(logging.StreamHandler):
    """Handler that writes to the stderr of the moment: a progress bar replaces it, to print above itself."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def log_to_console() -> None:
    """Send log messages of level INFO and above to stderr; do nothing if already set up."""
    if log.handlers:
        return
    handler = StderrHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False


@contextmanager
def log_to_file(path: Path) -> Iterator[None]:
    """Append log messages to `path` too, with time and level, within the context."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()
