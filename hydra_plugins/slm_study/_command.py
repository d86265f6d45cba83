"""The command line of a job, which every launcher starts, its process, and the meaning of its exit code."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from uuid import uuid4

from slm.errors import InUse
from slm.tracking.submission import VARIABLE

POLL_SECONDS = 1.0
IN_USE_LINE = re.compile(r" is in use by .+ \(heartbeat \d+ s ago\)")  # message of InUse
TORCHRUN_LINE = re.compile(r"[IWE]\d{4} .*torch/distributed/")
# Starts the command given as arguments, after asking the kernel for SIGKILL (9) when the parent process ends, and
# unblocking all signals: a worker of Ray has SIGINT blocked, and its child would inherit that.
CHILD = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, 9)
signal.pthread_sigmask(signal.SIG_SETMASK, [])
os.execv(sys.argv[1], sys.argv[1:])
"""


@dataclass(frozen=True)
class Outcome:
    """Exit code of a job and the end of its output; the code is None if the job was lost."""

    exit_code: int | None
    lines: tuple[str, ...]
    submission_id: str = ""
    """Id of the job's command, which the runs that it has begun have in status.json."""

    @property
    def last_line(self) -> str:
        return self.lines[-1] if self.lines else "no output"


class ProcessKilled(Exception):
    """A signal from outside Ray ended the process of a job; Ray retries the task."""


@dataclass(frozen=True)
class TrainCommand:
    """`python train.py OVERRIDES` in a folder; clusters send it pickled to their nodes."""

    arguments: tuple[str, ...]
    folder: str
    submission_id: str = ""
    """Tells a process of train.py with rerun=true which runs an earlier start of this command has begun."""

    @classmethod
    def of(cls, overrides: Sequence[str], processes: int = 1) -> TrainCommand:
        """Return the command of a job; torchrun starts several processes on this machine."""
        script = Path(sys.argv[0]).resolve().with_name("train.py")
        torchrun = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}")
        program = (sys.executable, *torchrun) if processes > 1 else (sys.executable,)
        return cls((*program, str(script), *overrides), str(Path.cwd()), uuid4().hex)

    def start(
        self,
        *,
        env: Mapping[str, str] | None = None,
        output: IO[bytes] | None = None,
        outlives_launcher: bool = False,
    ) -> subprocess.Popen[bytes]:
        """Start the process, with stdout and stderr in the file `output`.

        One that `outlives_launcher` has a session of its own, so that a Ctrl-C in the terminal does not reach it.
        """
        arguments = self.arguments
        if not outlives_launcher and sys.platform == "linux":
            arguments = (sys.executable, "-c", CHILD, *arguments)
        return subprocess.Popen(
            arguments,
            cwd=self.folder,
            env={**(os.environ if env is None else env), VARIABLE: self.submission_id},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=outlives_launcher,
        )

    def run(
        self,
        *,
        env: Mapping[str, str] | None = None,
        outlives_launcher: bool = False,
        on_start: Callable[[subprocess.Popen[bytes]], None] = lambda process: None,
        stop_file: Path | None = None,
    ) -> Outcome:
        """Run the process to its end; a KeyboardInterrupt is raised again once it has saved its state.

        The process is also stopped once `stop_file` exists.
        """
        with tempfile.TemporaryFile() as output:
            process = self.start(env=env, output=output, outlives_launcher=outlives_launcher)
            on_start(process)
            code = wait_or_interrupt(process, stop_file)
            output.seek(0)
            lines = run_lines(output.read().decode(errors="replace"))
            return Outcome(code, lines, self.submission_id)


def wait_or_interrupt(process: subprocess.Popen[bytes], stop_file: Path | None = None) -> int:
    """Return the exit code; send SIGINT to the process on a KeyboardInterrupt, or once `stop_file` exists.

    A KeyboardInterrupt is raised again at the end of the process.
    """
    interrupt: KeyboardInterrupt | None = None
    is_signalled = False  # a second SIGINT would stop the run before its state is saved
    while True:
        try:
            # Ray raises the interrupt without a signal, which a wait without a timeout would not notice.
            with suppress(subprocess.TimeoutExpired):
                code = process.wait(timeout=POLL_SECONDS)
                break
            if not is_signalled and stop_file is not None and stop_file.exists():
                is_signalled = True
                process.send_signal(signal.SIGINT)
        except KeyboardInterrupt as error:
            if not is_signalled:
                is_signalled = True
                process.send_signal(signal.SIGINT)
            interrupt = error
    if interrupt is not None:
        raise interrupt
    return code


def run_lines(output: str) -> tuple[str, ...]:
    """Return the lines of an output without those of torchrun, which ends in a traceback of its own."""
    lines: list[str] = []
    in_torchrun = False
    for line in output.strip().splitlines():
        if TORCHRUN_LINE.match(line):
            in_torchrun = True
        elif in_torchrun and line.startswith("Traceback"):
            break
        else:
            lines.append(line)
    return tuple(lines)


def describe_exit(code: int) -> str:
    """Return a phrase such as `exit code 1` or `killed by SIGKILL`."""
    return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"


def is_in_use(outcome: Outcome) -> bool:
    """Return whether a job ended because another process held one of its runs.

    torchrun and Slurm do not pass on the exit code. Slurm's state follows the last line of the run.
    """
    has_message = any(IN_USE_LINE.search(line) for line in outcome.lines[-2:])
    return outcome.exit_code == InUse.exit_code or (outcome.exit_code != 0 and has_message)


def is_interrupted(outcome: Outcome) -> bool:
    """Return whether a stop signal ended the job.

    torchrun exits with a code of its own, and a process that is still importing is killed by the signal.
    """
    signals = (signal.SIGINT, signal.SIGTERM)
    codes = {*(128 + number for number in signals), *(-number for number in signals)}
    return outcome.exit_code in codes or outcome.last_line.startswith("interrupted by SIG")
