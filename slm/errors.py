"""Errors that are reported to the user, and the text of a list of configuration problems."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Final

NO_VALUE: Final = object()


class SlmError(Exception):
    """Error that the user can fix; printed as its message, without a traceback."""

    exit_code = 1
    was_shown = False  # True once the message has been printed, so that no caller prints it again


class DataError(SlmError):
    """A corpus, tokenizer or prepared shard is missing, unreadable or has changed."""


class RunError(SlmError):
    """A run directory cannot be used: it is in use, damaged, or written by another config."""


class LaunchError(SlmError):
    """Environment variables that torchrun, srun or a pod sets for each process do not fit the command."""

    exit_code = 2


class InUse(RunError):
    """Another live process holds the lease of the run, on this or another machine."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: try again later


class DesignRefused(SlmError):
    """The design of a study cannot estimate what `study.claim` requires, or repeats the text too often."""

    exit_code = 4


class StudyUnfinished(SlmError):
    """A study has cells that are not finished."""

    exit_code = 3


class Diverged(SlmError):
    """Training reached a non-finite loss or gradient; recorded as the result of the run."""

    def __init__(self, message: str, evidence: Mapping[str, Any] | None = None):
        super().__init__(message)
        self.evidence = evidence
        """The step that was skipped, its batch, and the gradient norm of each tensor group."""


class Interrupted(SlmError):
    """A signal stopped training; the state is saved."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number


class PeerFailed(SlmError):
    """Another rank of the run raised an error, so this rank stops too."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class Problem:
    """One error in a config: the key, its value, the rule that it breaks, and how to fix it."""

    key: str
    value: object
    """`NO_VALUE` if the key is not given; None is the value null."""
    rule: str
    fix: str = ""

    def __str__(self) -> str:
        value = "null" if self.value is None else self.value
        shown = self.key if value is NO_VALUE else f"{self.key}={value}"
        return f"{shown}: {self.rule}" + (f" ({self.fix})" if self.fix else "")


class ConfigError(SlmError):
    """One or more problems of a config, reported together."""

    exit_code = 2

    def __init__(self, problems: Sequence[Problem]):
        self.problems = tuple(problems)
        count = len(self.problems)
        title = "1 problem" if count == 1 else f"{count} problems"
        lines = [f"{title} in the configuration:"]
        super().__init__("\n".join([*lines, *(f"  - {problem}" for problem in self.problems)]))


class ShapeNotFound(ConfigError):
    """No shape of the requested aspect ratio and size exists within the tolerances."""


def nearest(name: str, known: Iterable[object]) -> str:
    """Return `did you mean NAME?`, or all known names if none is near."""
    names = [str(each) for each in known]
    near = nearest_name(name, names)
    return f"did you mean {near}?" if near else f"choose one of: {', '.join(names)}"


def nearest_name(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """Return the known name that is most similar to `name`; None if no similarity reaches `cutoff`."""
    return next(iter(get_close_matches(name, known, n=1, cutoff=cutoff)), None)


def describe_os_error(error: OSError) -> str:
    """Return the file and the reason of an error of the operating system."""
    reason = error.strerror or type(error).__name__
    if error.filename is None:
        return f"input/output error: {reason}"
    return f"cannot read or write {error.filename}: {reason}"
