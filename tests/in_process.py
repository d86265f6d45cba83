"""Commands in the test process, which has imported torch, hydra and pandas: a process needs seconds for that."""

from __future__ import annotations

import io
import logging
import os
import runpy
import subprocess
import sys
from collections.abc import Iterator
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).parents[1]
OFFLINE = {"WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1"}


def run_here(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run `python SCRIPT ...` or `python -m MODULE ...` in this process and return what a process would.

    An exception other than SystemExit, which a process would print as a traceback, is raised.
    """
    _, *words = command
    out, err, code = io.StringIO(), io.StringIO(), 0
    with _state_of_a_new_process(), redirect_stdout(out), redirect_stderr(err):
        try:
            if words[0] == "-m":
                sys.argv = words[1:]
                runpy.run_module(words[1], run_name="__main__", alter_sys=True)
            else:
                sys.argv = [str(ROOT / words[0]), *words[1:]]
                runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())


@contextmanager
def _state_of_a_new_process() -> Iterator[None]:
    """Restore arguments, environment and loggers afterwards; messages go to the stderr of the block."""
    logger = logging.getLogger("slm")
    before = logger.handlers[:], logger.level, logger.propagate
    logger.handlers = []
    with patch.object(sys, "argv", sys.argv), patch.dict(os.environ, OFFLINE), chdir(ROOT):
        try:
            yield
        finally:
            logger.handlers, logger.propagate = before[0], before[2]
            logger.setLevel(before[1])
